// SPDX-License-Identifier: MIT
// Forward and tangent of deformable convolution: a tile of output pixels, a block of channels and
// some taps at a time, sampled columns are written to cache and multiplied with the kernel there.
#ifndef JAX_DCN_CPU_KERNELS_DEFORM_CONV2D_FORWARD_H_
#define JAX_DCN_CPU_KERNELS_DEFORM_CONV2D_FORWARD_H_

#include <cstdint>

#include "common/deform_conv2d.h"
#include "cpu/kernels/arrays.h"
#include "cpu/kernels/channel_blocks.h"
#include "cpu/kernels/depthwise.h"
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/locate.h"
#include "cpu/kernels/parallel.h"
#include "cpu/kernels/samples.h"
#include "cpu/kernels/simd.h"
#include "cpu/kernels/strips.h"
#include "cpu/kernels/transposed_kernel.h"

namespace jax_dcn::JAX_DCN_ISA {

// Depth of a product: all taps of 3x3 for 64 channels. A longer one adds to the result less often.
// And pixels of a tile, whose columns then take about half of a second-level cache (Zen 1).
constexpr int64_t kDepth = 576, kTilePixels = 128;
// Channels that make one tap deep enough for a product. Pixels whose sample lies outside can then be
// left out; there are few of them in a larger image.
constexpr int64_t kTapChannels = 192, kTapPixels = 8192;
// Pixels from which on it pays to pack the kernel ahead, for all tiles.
constexpr int64_t kPackPixels = 256;

// Images whose samples are added to the columns: by the weights of the value, m w, or by those of
// its tangent, ṁ w + m ẇ.
template <typename T>
struct ColumnSource {
  const T* images;
  bool tangent;
  const typename Accumulator<T>::type* wide = nullptr;  // those of the images that are visited
};

// Columns times a kernel: a term of the result.
template <typename T>
struct ColumnProduct {
  const T* kernel;
  int source_count;
  ColumnSource<T> sources[2];
  const typename Accumulator<T>::type* panels = nullptr;  // the kernel, where it is packed ahead
};

// y = bias + Σ products
template <typename T>
class ColumnProducts {
 public:
  using A = typename Accumulator<T>::type;

  ColumnProducts(const DeformConv2dProblem& problem, const DeformConv2dPrimals<T>& primals,
                 const DeformConv2dTangents<T>& tangents, const T* bias, T* y)
      : problem_(problem),
        primals_(primals),
        tangents_(tangents),
        bias_(bias),
        y_(y),
        blocks_(problem, kDepth, kLanes<A>),
        block_taps_(BlockTaps()) {}

  void Add(const ColumnProduct<T>& product) { products_[product_count_++] = product; }

  void Run(Executor& executor) {
    Shared panels(PackAhead(executor, Arena()));
    PackAhead(executor, panels.arena());
    const int64_t bytes = SourceCount() * ImageSize() * static_cast<int64_t>(sizeof(A));
    const int64_t most = kSumsInPlace<T> ? problem_.batch : Max(1, kWideImageBytes / Max(1, bytes));
    Shared memory(kSumsInPlace<T> ? 0 : Min(most, problem_.batch) * (bytes + 64 * SourceCount()));
    for (Range images = {0, 0}; images.end < problem_.batch;) {
      images = {images.end, Min(images.end + most, problem_.batch)};
      ForEachSource([&, arena = memory.arena()](ColumnSource<T>& source) mutable {
        source.wide = Wide(executor, source.images, images, arena);
      });
      Visit(executor, images);
    }
  }

 private:
  int64_t ImageSize() const { return problem_.image_pixels() * problem_.channels; }

  template <typename F>
  void ForEachSource(F f) {
    for (int p = 0; p < product_count_; ++p) {
      for (int i = 0; i < products_[p].source_count; ++i) f(products_[p].sources[i]);
    }
  }

  int64_t SourceCount() {
    int64_t count = 0;
    ForEachSource([&](const ColumnSource<T>&) { ++count; });
    return count;
  }

  const A* Wide(Executor& executor, const T* source, Range images, Arena& arena) const {
    const T* first = source + images.begin * ImageSize();
    if constexpr (kSumsInPlace<T>) {
      return first;
    } else {
      A* wide = arena.Take<A>(images.size() * ImageSize());
      ParallelWiden(executor, wide, first, images.size() * ImageSize());
      return wide;
    }
  }

  // Of about equal number in each step.
  int64_t BlockTaps() const {
    if (blocks_.most_channels() >= kTapChannels && problem_.image_pixels() <= kTapPixels) return 1;
    const int64_t most = Max(1, kDepth / blocks_.most_channels());
    return CeilDiv(problem_.taps(), CeilDiv(problem_.taps(), most));
  }

  int64_t FeaturePanels() const { return CeilDiv(problem_.group_features(), kPanel<A>); }
  int64_t TapSteps() const { return CeilDiv(problem_.taps(), block_taps_); }
  Range TapsOf(int64_t step) const {
    return {step * block_taps_, Min((step + 1) * block_taps_, problem_.taps())};
  }

  // Packs the kernels for all tiles, unless so few would use them that each better packs for itself
  // what it multiplies next. Counts the memory if there is none yet.
  int64_t PackAhead(Executor& executor, Arena arena) {
    if (IsDepthwise(problem_) || problem_.pixels() < kPackPixels) return 0;
    for (int p = 0; p < product_count_; ++p) {
      A* panels = arena.Take<A>(problem_.channels * problem_.taps() * FeaturePanels() * kPanel<A>);
      products_[p].panels = panels;
      if (panels == nullptr) continue;
      const int64_t feature_panels = FeaturePanels(), steps = TapSteps();
      ParallelFor(executor, blocks_.count() * steps * feature_panels, 0, [=](int64_t item, char*) {
        const int64_t feature_panel = item % feature_panels, step = item / feature_panels;
        const ChannelBlock block = blocks_[step / steps];
        const Range taps = TapsOf(step % steps);
        block.ForEachPiece(problem_, [&](const Piece& piece) {
          Pack(products_[p].kernel, piece, taps, feature_panel,
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
    const int64_t rows = block.channels.begin * problem_.taps() +
                         taps.begin * block.channels.size() + before * taps.size();
    return (rows * FeaturePanels() + feature_panel * taps.size() * piece.channels.size()) *
           kPanel<A>;
  }

  void Pack(const T* kernel, const Piece& piece, Range taps, int64_t feature_panel,
            A* panel) const {
    const int64_t o = feature_panel * kPanel<A>;
    const int64_t width = Min(kPanel<A>, problem_.group_features() - o);
    for (int64_t tap = taps.begin; tap < taps.end; ++tap) {
      const T* rows = kernel + KernelIndex(problem_, piece, tap, 0) + o;
      panel = PackRows(rows, piece.channels.size(), problem_.features, width, panel);
    }
  }

  void Visit(Executor& executor, Range images) {
    const int64_t image_pixels = problem_.out_height * problem_.out_width;
    const Range pixels = {images.begin * image_pixels, images.end * image_pixels};
    first_image_ = images.begin;
    // As few tiles as fit in cache, but the same number for each thread, of about equal size: whole
    // tiles of the product.
    const int64_t workers = executor.workers(), rows = CeilDiv(pixels.size(), kTileRows);
    const int64_t sums_bytes = kSumsInPlace<T> ? 0 : problem_.features * sizeof(A);
    const int64_t most = workers * Min(kTilePixels, StripPixels(problem_, sums_bytes));
    const int64_t tiles = Min(workers * CeilDiv(pixels.size(), most), rows);
    tile_pixels_ = CeilDiv(rows, Max(1, tiles)) * kTileRows;
    ParallelFor(executor, tiles, TileScratch(nullptr).bytes, [=](int64_t tile, char* scratch) {
      const int64_t begin = tile * rows / tiles * kTileRows;
      const int64_t end = Min((tile + 1) * rows / tiles * kTileRows, pixels.size());
      Tile({pixels.begin + begin, pixels.begin + end}, TileScratch(scratch));
    });
  }

  struct Scratch {
    MaskedSample<A>* samples;    // [tile pixels, K]
    A* columns;                  // [tile pixels, taps, channels] of a block
    A* panel;                    // [taps, channels, kPanel] of a block
    A* zeros;                    // [channels] of a block
    int32_t* rows;               // pixels of the tile that the columns are of
    A* sums;                     // [tile pixels, O], unless the result itself is
    int64_t bytes;
  };

  Scratch TileScratch(char* memory) const {
    Arena arena(memory);
    const int64_t depth = block_taps_ * blocks_.most_channels();
    Scratch scratch;
    scratch.samples = arena.Take<MaskedSample<A>>(tile_pixels_ * problem_.taps());
    scratch.columns = arena.Take<A>(tile_pixels_ * depth);
    scratch.panel = arena.Take<A>(depth * kPanel<A>);
    scratch.zeros = arena.Take<A>(blocks_.most_channels());
    scratch.rows = arena.Take<int32_t>(tile_pixels_);
    scratch.sums = arena.Take<A>(kSumsInPlace<T> ? 0 : tile_pixels_ * problem_.features);
    scratch.bytes = arena.bytes();
    return scratch;
  }

  void Tile(Range pixels, Scratch scratch) const {
    __builtin_memset(scratch.zeros, 0, blocks_.most_channels() * sizeof(A));
    T* result = y_ + pixels.begin * problem_.features;
    if constexpr (kSumsInPlace<T>) scratch.sums = result;
    FillWithBias(pixels, scratch);
    for (int64_t i = 0; i < blocks_.count(); ++i) {
      const ChannelBlock block = blocks_[i];
      if (i % blocks_.per_group() == 0) Locate(pixels, block.offset_group, scratch);
      for (int64_t tap = 0; tap < problem_.taps(); tap += block_taps_) {
        const Range taps = {tap, Min(tap + block_taps_, problem_.taps())};
        const int64_t rows = ChooseRows(pixels, taps, scratch);
        for (int p = 0; p < product_count_; ++p) {
          Sample(pixels, rows, block, taps, products_[p], scratch);
          if (IsDepthwise(problem_)) {
            MultiplyDepthwise(rows, block, taps, products_[p].kernel, scratch);
            continue;
          }
          block.ForEachPiece(problem_, [&](const Piece& piece) {
            Multiply(rows, block, piece, taps, products_[p], scratch);
          });
        }
      }
    }
    if (!kSumsInPlace<T>) RoundInto(result, scratch.sums, pixels.size() * problem_.features);
  }

  void FillWithBias(Range pixels, const Scratch& scratch) const {
    const int64_t features = problem_.features;
    for (int64_t o = 0; o < features; ++o) {
      scratch.sums[o] = bias_ == nullptr ? A(0) : ToFloat(bias_[o]);
    }
    for (int64_t i = 1; i < pixels.size(); ++i) {
      __builtin_memcpy(scratch.sums + i * features, scratch.sums, features * sizeof(A));
    }
  }

  void Locate(Range pixels, int64_t group, const Scratch& scratch) const {
    LocateSamples(problem_, primals_, first_image_, pixels.begin, pixels.size(), group,
                  scratch.samples, problem_.taps());
  }

  // The pixels whose columns are multiplied, and their number: of a tap alone, those that it reads.
  int64_t ChooseRows(Range pixels, Range taps, const Scratch& scratch) const {
    const bool all = taps.size() > 1 || IsDepthwise(problem_);
    int64_t rows = 0;
    for (int64_t i = 0; i < pixels.size(); ++i) {
      scratch.rows[rows] = static_cast<int32_t>(i);
      rows += all || !IsZero(scratch.samples[i * problem_.taps() + taps.begin]);
    }
    return rows;
  }

  void Sample(Range pixels, int64_t rows, const ChannelBlock& block, Range taps,
              const ColumnProduct<T>& product, const Scratch& scratch) const {
    SampleFrom<false>(pixels, rows, block, taps, product.sources[0], scratch);
    for (int i = 1; i < product.source_count; ++i) {
      SampleFrom<true>(pixels, rows, block, taps, product.sources[i], scratch);
    }
  }

  template <bool kAdd>
  __attribute__((noinline)) void SampleFrom(Range pixels, int64_t rows, const ChannelBlock& block,
                                            Range taps, const ColumnSource<T>& source,
                                            const Scratch& scratch) const {
    const int64_t channels = block.channels.size();
    const A* images = source.wide + block.channels.begin;
    A* column = scratch.columns;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t i = scratch.rows[row];
      const int64_t index = problem_.SampleIndex(pixels.begin + i, block.offset_group, 0);
      const MaskedSample<A>* samples = scratch.samples + i * problem_.taps();
      for (int64_t tap = taps.begin; tap < taps.end; ++tap, column += channels) {
        Interpolation<kAdd, A> interpolation = {
            CornersOf(samples[tap], images, static_cast<const A*>(scratch.zeros)),
            source.tangent ? TangentWeights(samples[tap], index + tap)
                           : ValueWeights(samples[tap], samples[tap].mask),
            column};
        Vectorised<A>(channels, interpolation);
      }
    }
  }

  CornerWeights<A> TangentWeights(const MaskedSample<A>& sample, int64_t index) const {
    auto weights = ValueWeights(sample, tangents_.mask == nullptr ? A(0) : tangents_.mask[index]);
    if (tangents_.offset != nullptr) {
      const A* dot = tangents_.offset + 2 * index;
      const auto moved = DerivativeWeights(sample, sample.mask * dot[0], sample.mask * dot[1]);
      for (int i = 0; i < kCorners; ++i) weights.corner[i] += moved.corner[i];
    }
    return weights;
  }

  void Multiply(int64_t rows, const ChannelBlock& block, const Piece& piece, Range taps,
                const ColumnProduct<T>& product, const Scratch& scratch) const {
    const int64_t channels = block.channels.size(), piece_channels = piece.channels.size();
    const int64_t features = problem_.features, group_features = problem_.group_features();
    LeftMatrix<A> columns = {scratch.columns + piece.channels.begin - block.channels.begin,
                             taps.size() * channels, taps.size(), channels, piece_channels};
    if (piece_channels == channels) {  // one segment: each ends with a mispredicted branch
      columns.segments = 1, columns.segment_depth = taps.size() * channels;
    }
    for (int64_t i = 0; i < FeaturePanels(); ++i) {
      const int64_t o = i * kPanel<A>;
      const ResultMatrix<A> sums = {scratch.sums + piece.feature_group * group_features + o,
                                    features, Min(kPanel<A>, group_features - o), scratch.rows};
      if (product.panels != nullptr) {
        const A* panel = product.panels + PanelIndex(block, piece, taps, i);
        MultiplyPanel<A, false, true>(rows, columns, panel, {sums.data, features}, sums);
      } else {
        Pack(product.kernel, piece, taps, i, scratch.panel);
        MultiplyPanel<A, false>(rows, columns, scratch.panel, {sums.data, features}, sums);
      }
    }
  }

  void MultiplyDepthwise(int64_t pixels, const ChannelBlock& block, Range taps, const T* kernel,
                         const Scratch& scratch) const {
    const int64_t channels = block.channels.size(), features = problem_.features;
    const T* rows = kernel + taps.begin * features + block.channels.begin;
    const A* columns = scratch.columns;
    A* sums = scratch.sums + block.channels.begin;
    for (int64_t i = 0; i < pixels; ++i, sums += features) {
      DepthwiseProduct<T, A> product = {columns, channels, rows, features, taps.size(), sums};
      Vectorised<A>(channels, product);
      columns += taps.size() * channels;
    }
  }

  const DeformConv2dProblem& problem_;
  const DeformConv2dPrimals<T>& primals_;
  const DeformConv2dTangents<T>& tangents_;
  const T* const bias_;
  T* const y_;
  const ChannelBlocks blocks_;
  const int64_t block_taps_;
  int64_t tile_pixels_ = 0, first_image_ = 0;
  ColumnProduct<T> products_[2];
  int product_count_ = 0;
};

template <typename T>
void DeformConv2dForward(Executor& executor, const DeformConv2dProblem& problem,
                         const DeformConv2dPrimals<T>& primals, const T* bias, T* y) {
  const DeformConv2dTangents<T> none = {};
  ColumnProducts<T> products(problem, primals, none, bias, y);
  products.Add({primals.kernel, 1, {{primals.x, false}}});
  products.Run(executor);
}

template <typename T>
void DeformConv2dJvp(Executor& executor, const DeformConv2dProblem& problem,
                     const DeformConv2dPrimals<T>& primals, const DeformConv2dTangents<T>& tangents,
                     T* y_dot) {
  ColumnProducts<T> products(problem, primals, tangents, tangents.bias, y_dot);
  if (tangents.kernel != nullptr) products.Add({tangents.kernel, 1, {{primals.x, false}}});
  ColumnProduct<T> moved = {primals.kernel, 0, {}};
  if (tangents.x != nullptr) moved.sources[moved.source_count++] = {tangents.x, false};
  if (tangents.offset != nullptr || tangents.mask != nullptr) {
    moved.sources[moved.source_count++] = {primals.x, true};
  }
  if (moved.source_count > 0) products.Add(moved);
  products.Run(executor);
}

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_KERNELS_DEFORM_CONV2D_FORWARD_H_
