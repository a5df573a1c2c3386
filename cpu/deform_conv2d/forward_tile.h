// SPDX-License-Identifier: MIT
// The work of one thread in a forward pass. For a tile of output pixels, a block of channels and
// some taps at a time, the thread writes sampled columns to cache and multiplies the columns with
// the kernel.
#ifndef JAX_DCN_CPU_DEFORM_CONV2D_FORWARD_TILE_H_
#define JAX_DCN_CPU_DEFORM_CONV2D_FORWARD_TILE_H_

#include <cstdint>

#include "cpu/deform_conv2d/depthwise.h"
#include "cpu/deform_conv2d/forward_pass.h"
#include "cpu/deform_conv2d/positions.h"
#include "cpu/deform_conv2d/strips.h"
#include "cpu/runtime/gemm.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/simd.h"
#include "cpu/sampling/samples.h"

namespace jax_dcn::JAX_DCN_ISA {

template <typename T, typename E>
class ForwardTile {
 public:
  using A = typename Accumulator<T>::type;
  using Element = typename Packed<E>::Element;

  static int64_t ScratchBytes(const ForwardPass<T, E>& pass) {
    return ForwardTile(pass, {0, 0}, nullptr).arena_.bytes();
  }

  ForwardTile(const ForwardPass<T, E>& pass, Range pixels, char* scratch)
      : pass_(pass),
        problem_(pass.problem),
        pixels_(pixels),
        arena_(scratch),
        samples_(pass.problem, pass.tile_pixels, arena_) {
    const int64_t pixels_most = pass.tile_pixels, channels = pass.blocks.most_channels();
    columns_ = arena_.Take<E>(pixels_most * pass.block_taps * channels);
    panel_ = arena_.Take<Element>(pass.block_taps * channels / Packed<E>::kDepth * kPanel<A>);
    zeros_ = arena_.Take<E>(channels);
    reads_ = arena_.Take<int32_t>(pixels_most * pass.block_taps);
    rows_ = arena_.Take<int32_t>(pixels_most * pass.block_taps);
    first_rows_ = arena_.Take<int32_t>(pass.block_taps + 1);
    sums_ = arena_.Take<A>(kSumsInPlace<T> ? 0 : pixels_most * problem_.features);
  }

  void Run() {
    T* result = pass_.y + pixels_.begin * problem_.features;
    if constexpr (kSumsInPlace<T>) sums_ = result;
    FillWithBias();
    __builtin_memset(zeros_, 0, pass_.blocks.most_channels() * sizeof(E));
    for (int64_t i = 0; i < pass_.blocks.count(); ++i) {
      const ChannelBlock block = pass_.blocks[i];
      for (int64_t step = 0; step < pass_.TapSteps(); ++step) AddStep(block, pass_.TapsOf(step));
    }
    if (!kSumsInPlace<T>) RoundInto(result, sums_, pixels_.size() * problem_.features);
  }

 private:
  void FillWithBias() const {
    const int64_t features = problem_.features;
    for (int64_t o = 0; o < features; ++o) {
      sums_[o] = pass_.bias == nullptr ? A(0) : ToFloat(pass_.bias[o]);
    }
    for (int64_t i = 1; i < pixels_.size(); ++i) {
      __builtin_memcpy(sums_ + i * features, sums_, features * sizeof(A));
    }
  }

  void Locate(int64_t group) {
    if (group == located_group_) return;
    located_group_ = group;
    samples_.Locate(pass_.primals, pass_.first_image, pixels_, group);
  }

  void AddStep(const ChannelBlock& block, Range taps) {
    Locate(block.offset_groups.begin);
    const int64_t columns = InOrder()          ? pixels_.size() * taps.size()
                            : pass_.skip_zeros ? ReadInside(taps)
                                               : ReadAll(taps);
    for (int p = 0; p < pass_.product_count; ++p) {
      const ColumnProduct<T, E>& product = pass_.products[p];
      for (int64_t g = block.offset_groups.begin; g < block.offset_groups.end; ++g) {
        Locate(g);
        SampleGroup(columns, block, g, product);
      }
      if (pass_.depthwise) {
        MultiplyDepthwise(block, taps, product.kernel);
        continue;
      }
      block.ForEachPiece(problem_,
                         [&](const Piece& piece) { Multiply(block, piece, taps, product); });
    }
  }

  // Whether the step has the columns of all samples in order, and needs no list.
  bool InOrder() const { return !pass_.skip_zeros && pass_.TapSteps() == 1; }

  // Lists all columns in the order [pixel][tap]; returns the number of columns.
  int64_t ReadAll(Range taps) const {
    int32_t* read = reads_;
    for (int64_t i = 0; i < pixels_.size(); ++i) {
      const int64_t first = i * problem_.taps();
      for (int64_t tap = taps.begin; tap < taps.end; ++tap) *read++ = first + tap;
    }
    return read - reads_;
  }

  // Lists the columns that are not zero in the order [tap][pixel]; returns the number of columns.
  int64_t ReadInside(Range taps) const {
    int64_t columns = 0;
    for (int64_t tap = taps.begin; tap < taps.end; ++tap) {
      first_rows_[tap - taps.begin] = columns;
      for (int64_t i = 0; i < pixels_.size(); ++i) {
        const int64_t read = i * problem_.taps() + tap;
        reads_[columns] = read;
        rows_[columns] = i;
        columns += !IsZero(samples_[read]);
      }
    }
    first_rows_[taps.size()] = columns;
    return columns;
  }

  // Writes the channels that the block and offset group `group` have in common.
  void SampleGroup(int64_t columns, const ChannelBlock& block, int64_t group,
                   const ColumnProduct<T, E>& product) const {
    const int64_t stride = block.channels.size();
    const int64_t channels = Min(stride, problem_.offset_group_channels());
    const int64_t first = (group - block.offset_groups.begin) * channels;
    const Target target = {group, block.channels.begin + first, channels, columns_ + first, stride};
    for (int i = 0; i < product.source_count; ++i) {
      const E* images = product.sources[i].read;
      if (product.sources[i].tangent) {
        i > 0 ? Sample<true, true>(columns, target, images)
              : Sample<false, true>(columns, target, images);
      } else {
        WithWidth<A>(channels, [&](auto width) {
          Sample<false, false, width.value>(columns, target, images);
        });
      }
    }
  }

  // The destination of the columns of one offset group.
  struct Target {
    int64_t group, first_channel, channels;
    E* columns;
    int64_t stride;
  };

  // A function of its own gives the loop the registers that the loop needs.
  template <bool kAdd, bool kTangent, int kWidth = 0>
  __attribute__((noinline)) void Sample(int64_t columns, Target target, const E* images) const {
    const SampleArrays<A> samples = samples_;  // a copy, which no column that is written can alias
    const int32_t* reads = InOrder() ? nullptr : reads_;
    const E* const zeros = zeros_;
    images += target.first_channel;
    for (int64_t i = 0; i < columns; ++i, target.columns += target.stride) {
      const int64_t read = reads != nullptr ? reads[i] : i;
      const MaskedSample<A> sample = samples[read];
      const auto corners = CornersOf<A, const E>(sample, images, zeros);
      if constexpr (Packed<E>::kDepth == 1) {
        Interpolation<kAdd, A> interpolation = {
            corners, kTangent ? TangentWeights(target.group, read) : samples.WeightsOf(read),
            target.columns};
        VectorisedBy<A, kWidth>(target.channels, interpolation);
      } else {
        PairInterpolation interpolation = {corners, samples.WeightsOf(read), target.columns};
        VectorisedBy<uint32_t, kWidth / 2>(target.channels / 2, interpolation);
      }
    }
  }

  CornerWeights<A> TangentWeights(int64_t group, int64_t read) const {
    const DeformConv2dTangents<T>& tangents = pass_.tangents;
    const MaskedSample<A> sample = samples_[read];
    const int64_t pixel = pixels_.begin + read / problem_.taps();
    const int64_t index = problem_.SampleIndex(pixel, group, read % problem_.taps());
    auto weights = ValueWeights(sample, tangents.mask == nullptr ? A(0) : tangents.mask[index]);
    if (tangents.offset != nullptr) {
      const A* dot = tangents.offset + 2 * index;
      const auto moved = DerivativeWeights(sample, sample.mask * dot[0], sample.mask * dot[1]);
      for (int i = 0; i < kCorners; ++i) weights.corner[i] += moved.corner[i];
    }
    return weights;
  }

  void Multiply(const ChannelBlock& block, const Piece& piece, Range taps,
                const ColumnProduct<T, E>& product) const {
    const int64_t features = problem_.features, group_features = problem_.group_features();
    for (int64_t i = 0; i < pass_.FeaturePanels(); ++i) {
      const int64_t o = i * kPanel<A>;
      const ResultMatrix<A> sums = {sums_ + piece.feature_group * group_features + o, features,
                                    Min(kPanel<A>, group_features - o)};
      const Element* panel = panel_;
      if (product.panels != nullptr) {
        panel = product.panels + pass_.PanelIndex(block, piece, taps, i);
      } else {
        pass_.Pack(product.kernel, piece, taps, i, panel_);
      }
      if (pass_.skip_zeros) {
        MultiplyTaps(block, piece, taps.size(), panel, sums);
      } else {
        MultiplyPixels(block, piece, taps.size(), panel, sums);
      }
    }
  }

  // The channels of a piece in the packed columns from `row` on.
  const Element* ColumnsOf(const ChannelBlock& block, const Piece& piece, int64_t row) const {
    const int64_t first = piece.channels.begin - block.channels.begin;
    return reinterpret_cast<const Element*>(columns_ + row * block.channels.size() + first);
  }

  // Multiplies columns in the order [pixel][tap], by one product of all taps.
  void MultiplyPixels(const ChannelBlock& block, const Piece& piece, int64_t taps,
                      const Element* panel, const ResultMatrix<A>& sums) const {
    const int64_t channels = block.channels.size() / Packed<E>::kDepth;
    const int64_t piece_channels = piece.channels.size() / Packed<E>::kDepth;
    LeftMatrix<E> columns = {
        ColumnsOf(block, piece, 0), taps * channels, piece_channels, nullptr, taps, channels};
    if (piece_channels == channels) {  // one segment: each ends with a mispredicted branch
      columns.segments = 1, columns.segment_depth = taps * channels;
    }
    MultiplyPanel<E, false, true>(pixels_.size(), columns, panel, {sums.data, sums.stride}, sums);
  }

  // Multiplies columns in the order [tap][pixel], by one product for each tap.
  void MultiplyTaps(const ChannelBlock& block, const Piece& piece, int64_t taps,
                    const Element* panel, ResultMatrix<A> sums) const {
    const int64_t channels = block.channels.size() / Packed<E>::kDepth;
    const int64_t piece_channels = piece.channels.size() / Packed<E>::kDepth;
    for (int64_t tap = 0; tap < taps; ++tap, panel += piece_channels * kPanel<A>) {
      const int64_t first = first_rows_[tap];
      sums.indices = rows_ + first;
      MultiplyPanel<E, false, true>(first_rows_[tap + 1] - first,
                                    {ColumnsOf(block, piece, first), channels, piece_channels},
                                    panel, {sums.data, sums.stride}, sums);
    }
  }

  void MultiplyDepthwise(const ChannelBlock& block, Range taps, const T* kernel) const {
    const int64_t channels = block.channels.size(), features = problem_.features;
    const T* rows = kernel + taps.begin * features + block.channels.begin;
    const E* columns = columns_;
    A* sums = sums_ + block.channels.begin;
    for (int64_t i = 0; i < pixels_.size(); ++i, sums += features) {
      DepthwiseProduct<E, T, A> product = {columns, channels, rows, features, taps.size(), sums};
      Vectorised<A>(channels, product);
      columns += taps.size() * channels;
    }
  }

  const ForwardPass<T, E>& pass_;
  const DeformConv2dProblem& problem_;
  const Range pixels_;
  Arena arena_;
  const PixelSamples<A> samples_;  // [tile pixels, K] of offset group located_group_
  int64_t located_group_ = -1;
  E* columns_;           // of a step: [tile pixels, taps, channels], or some of them
  Element* panel_;       // [taps, channels, kPanel] of a step
  E* zeros_;             // [channels] of a block
  int32_t* reads_;       // [columns]: the sample of each column
  int32_t* rows_;        // [columns]: the pixel of the tile that each column belongs to
  int32_t* first_rows_;  // [taps + 1]: the first column of each tap
  A* sums_;              // [tile pixels, O]: the result itself, unless it is narrower
};

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_DEFORM_CONV2D_FORWARD_TILE_H_
