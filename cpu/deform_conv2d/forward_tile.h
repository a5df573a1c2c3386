// SPDX-License-Identifier: MIT
// The work of one thread in a forward pass. For a tile of output pixels, a block of channels and
// some taps at a time, the thread writes sampled columns to cache and multiplies the columns with
// the kernel.
#ifndef JAX_DCN_CPU_DEFORM_CONV2D_FORWARD_TILE_H_
#define JAX_DCN_CPU_DEFORM_CONV2D_FORWARD_TILE_H_

#include <cstdint>
#include <type_traits>

#include "cpu/deform_conv2d/depthwise.h"
#include "cpu/deform_conv2d/forward_pass.h"
#include "cpu/deform_conv2d/positions.h"
#include "cpu/deform_conv2d/strips.h"
#include "cpu/runtime/gemm.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/simd.h"
#include "cpu/sampling/samples.h"

namespace jax_dcn::JAX_DCN_ISA {

constexpr int64_t kLineBytes = 64;  // of cache

template <typename T, typename E>
class ForwardTile {
 public:
  using A = typename Accumulator<T>::type;
  using Element = typename Packed<E>::Element;

  static int64_t ScratchBytes(const ForwardPass<T, E>& pass) {
    return ForwardTile(pass, {0, 0}, {0, 0}, nullptr).arena_.bytes();
  }

  // Makes some pixels of the result, and of each feature group the features of some panels.
  ForwardTile(const ForwardPass<T, E>& pass, Range pixels, Range panels, char* scratch)
      : pass_(pass),
        problem_(pass.problem),
        pixels_(pixels),
        panels_(panels),
        arena_(scratch),
        part_pixels_(Max(1, pass.tile_pixels / pass.groups_together)),
        samples_(pass.problem, part_pixels_, pass.groups_together, arena_) {
    const int64_t pixels_most = pass.tile_pixels, channels = pass.blocks.most_channels();
    columns_ = arena_.Take<E>(pixels_most * pass.block_taps * channels + kLanes<A>);
    panel_ = arena_.Take<Element>(pass.block_taps * channels / Packed<E>::kDepth * kPanel<A>);
    zeros_ = arena_.Take<E>(channels);
    reads_ = arena_.Take<int32_t>(pixels_most * pass.block_taps);
    rows_ = arena_.Take<int32_t>(pixels_most * pass.block_taps);
    first_rows_ = arena_.Take<int32_t>(pass.block_taps + 1);
    bias_ = arena_.Take<A>(problem_.features);
    sums_ = arena_.Take<A>(kSumsInPlace<T> ? 0 : pixels_most * problem_.features);
  }

  void Run() {
    const TileRegisters<E> registers;
    T* result = pass_.y + pixels_.begin * problem_.features;
    if constexpr (kSumsInPlace<T>) sums_ = result;
    for (int64_t o = 0; o < problem_.features; ++o) {
      bias_[o] = pass_.bias == nullptr ? A(0) : ToFloat(pass_.bias[o]);
    }
    if (!StartsWithBias()) FillWithBias();
    __builtin_memset(zeros_, 0, pass_.blocks.most_channels() * sizeof(E));
    for (int64_t i = 0; i < pass_.blocks.count(); ++i) {
      const ChannelBlock block = pass_.blocks[i];
      if (block.offset_groups.begin != groups_.begin) Choose(block.offset_groups);
      for (int64_t step = 0; step < pass_.TapSteps(); ++step) AddStep(block, pass_.TapsOf(step));
    }
    if constexpr (!kSumsInPlace<T>) Round(result);
  }

 private:
  // Whether the first product of each feature group is added to the bias. Otherwise the results
  // hold the bias before: products that leave pixels out do not write all results, and products of
  // few features write parts of lines of cache.
  bool StartsWithBias() const {
    const bool in_lines =
        pass_.depthwise || problem_.group_features() * int64_t{sizeof(A)} >= kLineBytes;
    return in_lines && !pass_.skip_zeros && pass_.product_count > 0;
  }

  void FillWithBias() const {
    ForEachRow([&](int64_t first, int64_t size) {
      __builtin_memcpy(sums_ + first, bias_ + first % problem_.features, size * sizeof(A));
    });
  }

  void Round(T* result) const {
    if (HasAllFeatures()) return RoundInto(result, sums_, pixels_.size() * problem_.features);
    ForEachRow(
        [&](int64_t first, int64_t size) { RoundInto(result + first, sums_ + first, size); });
  }

  bool HasAllFeatures() const { return panels_.size() == pass_.FeaturePanels(); }

  // Calls `f(first, size)` for each run of neighbouring results: the results of a pixel, or of a
  // pixel and a feature group.
  template <typename F>
  void ForEachRow(const F& f) const {
    const int64_t row = HasAllFeatures() ? problem_.features : problem_.group_features();
    const int64_t begin = panels_.begin * kPanel<A>;
    const int64_t end = HasAllFeatures() ? row : Min(row, panels_.end * kPanel<A>);
    for (int64_t first = 0; first < pixels_.size() * problem_.features; first += row) {
      f(first + begin, end - begin);
    }
  }

  void Choose(Range groups) {
    groups_ = groups;
    samples_.Choose(groups);
    located_ = {-1, -1};
  }

  void AddStep(const ChannelBlock& block, Range taps) {
    for (int p = 0; p < pass_.product_count; ++p) {
      const ColumnProduct<T, E>& product = pass_.products[p];
      for (Range part = {0, 0}; part.end < pixels_.size();) {
        part = {part.end, Min(part.end + part_pixels_, pixels_.size())};
        SamplePart(part, block, taps, product);
      }
      const bool first = StartsWithBias() && p == 0 && taps.begin == 0;
      if (pass_.depthwise) {
        MultiplyDepthwise(block, taps, product.kernel, first);
        continue;
      }
      block.ForEachPiece(problem_, [&](const Piece& piece) {
        Multiply(block, piece, taps, product,
                 first && piece.channels.begin % problem_.group_channels() == 0);
      });
    }
  }

  // Writes the columns of a part of the tile.
  void SamplePart(Range part, const ChannelBlock& block, Range taps,
                  const ColumnProduct<T, E>& product) {
    E* columns = columns_ + part.begin * taps.size() * block.channels.size();
    const Range pixels = {pixels_.begin + part.begin, pixels_.begin + part.end};
    if constexpr (std::is_same<E, A>::value) {
      if (pass_.ReadsInTurn(product)) {
        return samples_.SampleInTurn(pass_.primals, product.sources[0].read + block.channels.begin,
                                     pass_.first_image, pixels, columns);
      }
    }
    Locate(pixels);
    const int64_t count = List(part.size(), taps);
    for (int64_t g = block.offset_groups.begin; g < block.offset_groups.end; ++g) {
      SampleGroup(count, block, g, product, columns);
    }
  }

  void Locate(Range pixels) {
    if (pixels.begin == located_.begin) return;
    located_ = pixels;
    samples_.Locate(pass_.primals, pass_.first_image, pixels);
  }

  // Lists the samples that become columns, of the first offset group. Returns their number.
  int64_t List(int64_t pixels, Range taps) const {
    if (pass_.skip_zeros) return ReadInside(taps);
    if (!InOrder()) ReadAll(pixels, taps);
    return pixels * taps.size();
  }

  // Whether the step has the columns of all samples in order, and needs no list.
  bool InOrder() const { return !pass_.skip_zeros && pass_.TapSteps() == 1 && groups_.size() == 1; }

  // Lists all columns in the order [pixel][tap].
  void ReadAll(int64_t pixels, Range taps) const {
    int32_t* read = reads_;
    for (int64_t i = 0; i < pixels; ++i) {
      const int64_t first = i * groups_.size() * problem_.taps();
      for (int64_t tap = taps.begin; tap < taps.end; ++tap) *read++ = first + tap;
    }
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
        columns += !HasZeroColumn(samples_[read]);
      }
    }
    first_rows_[taps.size()] = columns;
    return columns;
  }

  // Writes the channels that the block and offset group `group` have in common.
  void SampleGroup(int64_t count, const ChannelBlock& block, int64_t group,
                   const ColumnProduct<T, E>& product, E* columns) const {
    const int64_t stride = block.channels.size();
    const int64_t channels = Min(stride, problem_.offset_group_channels());
    const int64_t index = group - groups_.begin, first = index * channels;
    const Target target = {group,    index * problem_.taps(), block.channels.begin + first,
                           channels, columns + first,         stride};
    for (int i = 0; i < product.source_count; ++i) {
      const E* images = product.sources[i].read;
      if (product.sources[i].tangent) {
        i > 0 ? Sample<true, true>(count, target, images)
              : Sample<false, true>(count, target, images);
      } else {
        WithWidth<A>(channels,
                     [&](auto width) { Sample<false, false, width.value>(count, target, images); });
      }
    }
  }

  // The samples and the destination of the columns of one offset group.
  struct Target {
    int64_t group, first_sample, first_channel, channels;
    E* columns;
    int64_t stride;
  };

  // A function of its own gives the loop the registers that the loop needs.
  template <bool kAdd, bool kTangent, int kWidth = 0>
  __attribute__((noinline)) void Sample(int64_t count, Target target, const E* images) const {
    const SampleArrays<A> samples = samples_;  // a copy, which no column that is written can alias
    const int32_t* reads = InOrder() ? nullptr : reads_;
    const E* const zeros = zeros_;
    images += target.first_channel;
    for (int64_t i = 0; i < count; ++i, target.columns += target.stride) {
      const int64_t read = target.first_sample + (reads != nullptr ? reads[i] : i);
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
    const int64_t pixel = located_.begin + read / (groups_.size() * problem_.taps());
    const int64_t index = problem_.SampleIndex(pixel, group, read % problem_.taps());
    auto weights = ValueWeights(sample, tangents.mask == nullptr ? A(0) : tangents.mask[index]);
    if (tangents.offset != nullptr) {
      const A* dot = tangents.offset + 2 * index;
      const auto moved = DerivativeWeights(sample, sample.mask * dot[0], sample.mask * dot[1]);
      for (int i = 0; i < kCorners; ++i) weights.corner[i] += moved.corner[i];
    }
    return weights;
  }

  // Adds a product to the sums, or where the product is the `first` of its results, to the bias.
  void Multiply(const ChannelBlock& block, const Piece& piece, Range taps,
                const ColumnProduct<T, E>& product, bool first) const {
    const int64_t features = problem_.features, group_features = problem_.group_features();
    for (int64_t i = panels_.begin; i < panels_.end; ++i) {
      const int64_t o = i * kPanel<A>, feature = piece.feature_group * group_features + o;
      const ResultMatrix<A> sums = {sums_ + feature, features, Min(kPanel<A>, group_features - o)};
      const BaseMatrix<A> base =
          first ? BaseMatrix<A>{bias_ + feature, 0} : BaseMatrix<A>{sums.data, sums.stride};
      const Element* panel = panel_;
      if (product.panels != nullptr) {
        panel = product.panels + pass_.PanelIndex(block, piece, taps, i);
      } else {
        pass_.Pack(product.kernel, piece, taps, i, panel_);
      }
      if (pass_.skip_zeros) {
        MultiplyTaps(block, piece, taps.size(), panel, sums);
      } else {
        MultiplyPixels(block, piece, taps.size(), panel, base, sums);
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
                      const Element* panel, const BaseMatrix<A>& base,
                      const ResultMatrix<A>& sums) const {
    const int64_t channels = block.channels.size() / Packed<E>::kDepth;
    const int64_t piece_channels = piece.channels.size() / Packed<E>::kDepth;
    LeftMatrix<E> columns = {
        ColumnsOf(block, piece, 0), taps * channels, piece_channels, nullptr, taps, channels};
    if (piece_channels == channels) {  // one segment: each ends with a mispredicted branch
      columns.segments = 1, columns.segment_depth = taps * channels;
    }
    MultiplyPanel<E, false, true>(pixels_.size(), columns, panel, base, sums);
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

  void MultiplyDepthwise(const ChannelBlock& block, Range taps, const T* kernel, bool first) const {
    const int64_t channels = block.channels.size(), features = problem_.features;
    const T* rows = kernel + taps.begin * features + block.channels.begin;
    const E* columns = columns_;
    A* sums = sums_ + block.channels.begin;
    for (int64_t i = 0; i < pixels_.size(); ++i, sums += features) {
      const A* base = first ? bias_ + block.channels.begin : sums;
      DepthwiseProduct<E, T, A> product = {columns,     channels, rows, features,
                                           taps.size(), base,     sums};
      Vectorised<A>(channels, product);
      columns += taps.size() * channels;
    }
  }

  const ForwardPass<T, E>& pass_;
  const DeformConv2dProblem& problem_;
  const Range pixels_, panels_;
  Arena arena_;
  const int64_t part_pixels_;
  PixelSamples<A> samples_;  // [part pixels, groups_, K] of the pixels located_
  Range groups_ = {-1, -1};  // the offset groups of the block
  Range located_ = {-1, -1};
  E* columns_;           // of a step: [tile pixels, taps, channels], or some of them
  Element* panel_;       // [taps, channels, kPanel] of a step
  E* zeros_;             // [channels] of a block
  int32_t* reads_;       // [columns]: the sample of each column
  int32_t* rows_;        // [columns]: the pixel of the tile that each column belongs to
  int32_t* first_rows_;  // [taps + 1]: the first column of each tap
  A* bias_;              // [O]
  A* sums_;              // [tile pixels, O]: the result itself, unless it is narrower
};

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_DEFORM_CONV2D_FORWARD_TILE_H_
