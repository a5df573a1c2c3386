// SPDX-License-Identifier: MIT
// What the tiles of a forward pass share: the products that are summed, how the problem is divided,
// and the packed kernels.
#ifndef JAX_DCN_CPU_DEFORM_CONV2D_FORWARD_PASS_H_
#define JAX_DCN_CPU_DEFORM_CONV2D_FORWARD_PASS_H_

#include <cstdint>
#include <limits>

#include "common/deform_conv2d/problem.h"
#include "cpu/deform_conv2d/channel_blocks.h"
#include "cpu/deform_conv2d/depthwise.h"
#include "cpu/deform_conv2d/transposed_kernel.h"
#include "cpu/runtime/gemm.h"
#include "cpu/runtime/parallel.h"
#include "cpu/sampling/samples.h"

namespace jax_dcn::JAX_DCN_ISA {

// The depth of a product: all taps of 3x3 for 64 channels. A deeper product would add to the result
// less often.
constexpr int64_t kDepth = 576;
// With this many pixels, packing the kernel ahead, for all tiles, saves time.
constexpr int64_t kPackPixels = 256;
// The fixed cost of a product of a tile, in steps of depth.
constexpr int64_t kTileSteps = 8;

// Images that are sampled into the columns: by the weights of the value, m w, or by the weights of
// the tangent, ṁ w + m ẇ.
template <typename T, typename E>
struct ColumnSource {
  const T* images;
  bool tangent;
  const E* read = nullptr;  // the images that are visited, as they are read
};

// Columns times a kernel: a term of the result.
template <typename T, typename E>
struct ColumnProduct {
  const T* kernel;
  int source_count;
  ColumnSource<T, E> sources[2];
  const typename Packed<E>::Element* panels = nullptr;  // the kernel, where it is packed ahead
};

// y = bias + Σ products
//
// Images are read, and columns multiplied with the kernel, as elements E: as T, or widened.
template <typename T, typename E>
struct ForwardPass {
  using Element = typename Packed<E>::Element;
  using A = typename Accumulator<T>::type;

  ForwardPass(const DeformConv2dProblem& problem, const DeformConv2dPrimals<T>& primals,
              const DeformConv2dTangents<T>& tangents, const T* bias, T* y)
      : problem(problem),
        primals(primals),
        tangents(tangents),
        bias(bias),
        y(y),
        depthwise(IsDepthwise(problem)),
        groups_together(GroupsTogether()),
        blocks(problem, kDepth, kLanes<A>, groups_together),
        block_taps(BlockTaps()),
        skip_zeros(!depthwise && groups_together == 1 && ZerosPay()),
        in_turn(SamplesInTurn()) {}

  // Whether vectors of many samples make the columns of a product.
  bool ReadsInTurn(const ColumnProduct<T, E>& product) const {
    return in_turn && product.source_count == 1 && !product.sources[0].tangent;
  }

  void Add(const ColumnProduct<T, E>& product) { products[product_count++] = product; }

  int64_t ImageSize() const { return problem.image_pixels() * problem.channels; }
  int64_t FeaturePanels() const { return CeilDiv(problem.group_features(), kPanel<A>); }
  int64_t TapSteps() const { return CeilDiv(problem.taps(), block_taps); }
  Range TapsOf(int64_t step) const {
    return {step * block_taps, Min((step + 1) * block_taps, problem.taps())};
  }

  // Packs the kernels once for all tiles. Where few tiles would use the kernels, each tile packs
  // its own panels instead. Without memory, counts the memory.
  int64_t PackAhead(Executor& executor, Arena arena) {
    if (depthwise || problem.pixels() < kPackPixels) return 0;
    for (int p = 0; p < product_count; ++p) {
      const int64_t rows = problem.channels * problem.taps() / Packed<E>::kDepth;
      Element* panels = arena.Take<Element>(rows * FeaturePanels() * kPanel<A>);
      products[p].panels = panels;
      if (panels == nullptr) continue;
      const int64_t feature_panels = FeaturePanels(), steps = TapSteps();
      ParallelFor(executor, blocks.count() * steps * feature_panels, 0, [=](int64_t item, char*) {
        const int64_t feature_panel = item % feature_panels, step = item / feature_panels;
        const ChannelBlock block = blocks[step / steps];
        const Range taps = TapsOf(step % steps);
        block.ForEachPiece(problem, [&](const Piece& piece) {
          Pack(products[p].kernel, piece, taps, feature_panel,
               panels + PanelIndex(block, piece, taps, feature_panel));
        });
      });
    }
    return arena.bytes();
  }

  // Panels are in the order [block][taps][piece][feature panel][tap][channel][kPanel].
  int64_t PanelIndex(const ChannelBlock& block, const Piece& piece, Range taps,
                     int64_t feature_panel) const {
    const int64_t before = piece.channels.begin - block.channels.begin;
    const int64_t rows = block.channels.begin * problem.taps() +
                         taps.begin * block.channels.size() + before * taps.size();
    return (rows * FeaturePanels() + feature_panel * taps.size() * piece.channels.size()) *
           kPanel<A> / Packed<E>::kDepth;
  }

  void Pack(const T* kernel, const Piece& piece, Range taps, int64_t feature_panel,
            Element* panel) const {
    const int64_t o = feature_panel * kPanel<A>;
    const int64_t width = Min(kPanel<A>, problem.group_features() - o);
    for (int64_t tap = taps.begin; tap < taps.end; ++tap) {
      const T* rows = kernel + KernelIndex(problem, piece, tap, 0) + o;
      panel = PackRows(rows, piece.channels.size(), problem.features, width, panel);
    }
  }

  const DeformConv2dProblem& problem;
  const DeformConv2dPrimals<T>& primals;
  const DeformConv2dTangents<T>& tangents;
  const T* const bias;
  T* const y;
  const bool depthwise;
  const int64_t groups_together;  // offset groups of a block
  const ChannelBlocks blocks;
  const int64_t block_taps;  // of a step; all taps where a block has several offset groups
  const bool skip_zeros, in_turn;
  int64_t tile_pixels = 0, first_image = 0;
  ColumnProduct<T, E> products[2];
  int product_count = 0;

 private:
  // Offset groups of few channels share a product: all that fit into its depth and have a feature
  // group in common.
  int64_t GroupsTogether() const {
    const int64_t channels = Max(1, problem.offset_group_channels());
    const int64_t fit = kDepth / (problem.taps() * channels);
    const int64_t common = depthwise ? fit : problem.group_channels() / channels;
    return Max(1, Min(problem.offset_groups, Min(fit, common)));
  }

  // Whether each offset group has one channel, and the columns of a step have the order of their
  // samples.
  bool SamplesInTurn() const {
    return problem.offset_group_channels() == 1 && !skip_zeros && TapSteps() == 1 &&
           (problem.taps() == 1 || groups_together == 1) &&
           ImageSize() <= std::numeric_limits<IndexOf<A>>::max();
  }

  // The taps of a step. All steps have about the same number of taps.
  int64_t BlockTaps() const {
    const int64_t most = Max(1, kDepth / blocks.most_channels());
    return CeilDiv(problem.taps(), CeilDiv(problem.taps(), most));
  }

  // Whether one product for each tap, of the pixels whose sample lies within the image, takes less
  // time than one product for all taps. Sizes decide, and not samples: samples differ from tile to
  // tile, and results must not depend on how pixels are divided. Trained offsets are a pixel or two
  // long, and move about as many samples out of the image as a row and a column have pixels.
  bool ZerosPay() const {
    const int64_t depth = Min(blocks.most_channels(), problem.group_channels());
    return depth * (problem.height + problem.width) > kTileSteps * problem.image_pixels();
  }
};

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_DEFORM_CONV2D_FORWARD_PASS_H_
