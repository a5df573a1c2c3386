// SPDX-License-Identifier: MIT
// The work of one thread for some taps and a block of channels: the gradient of the kernel.
#ifndef JAX_DCN_CPU_DEFORM_CONV2D_BACKWARD_KERNEL_H_
#define JAX_DCN_CPU_DEFORM_CONV2D_BACKWARD_KERNEL_H_

#include <cstdint>

#include "cpu/deform_conv2d/backward_pass.h"
#include "cpu/deform_conv2d/depthwise.h"
#include "cpu/runtime/gemm.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/simd.h"
#include "cpu/sampling/samples.h"

namespace jax_dcn::JAX_DCN_ISA {

template <typename T, typename E>
class BackwardKernel {
 public:
  using A = typename Accumulator<T>::type;
  using Element = typename Packed<E>::Element;

  static int64_t ScratchBytes(const BackwardPass<T, E>& pass) {
    return BackwardKernel(pass, 0, nullptr).scratch_bytes_;
  }

  BackwardKernel(const BackwardPass<T, E>& pass, int64_t block, char* scratch)
      : pass_(pass), problem_(pass.problem), block_(pass.blocks[block]) {
    Arena arena(scratch);
    const int64_t pixels = pass.parts.strip_pixels(), channels = pass.blocks.most_channels();
    pair_stride_ = RoundUp(CeilDiv(pixels, 2), kTileSide);
    columns_ = arena.Take<E>(pixels * channels + kLanes<A>);
    pairs_ = arena.Take<Element>(kPairs ? pair_stride_ * channels : 0);
    zeros_ = arena.Take<E>(channels + kLanes<A>);
    scratch_bytes_ = arena.bytes();
  }

  // Adds the strips of the phase, in order. No other item adds to these sums. Taps share the panels
  // of a strip, which then lie in cache.
  void Run(Range taps) {
    const TileRegisters<E> registers;
    __builtin_memset(zeros_, 0, block_.channels.size() * sizeof(E));
    for (int64_t strip = 0; strip < pass_.PhaseStrips(); ++strip) {
      for (int64_t tap = taps.begin; tap < taps.end; ++tap) {
        const auto samples = pass_.SamplesOf(strip, block_.offset_groups.begin, tap);
        WithFlag(block_.channels.size() == kBackwardChannels,
                 [&](auto full) { Sample<full.value>(samples); });
        Multiply(strip, tap, samples);
      }
    }
  }

 private:
  static constexpr bool kPairs = Packed<E>::kDepth == 2;

  template <bool kFull>
  __attribute__((noinline)) void Sample(const TapSamples<A>& samples) const {
    const int64_t channels = kFull ? kBackwardChannels : block_.channels.size();
    const E* x = pass_.x + block_.channels.begin;
    E* column = columns_;
    for (int64_t i = 0; i < samples.count; ++i, column += channels) {
      const MaskedSample<A>& sample = samples.samples[i];
      const auto corners = CornersOf<A, const E>(sample, x, zeros_);
      const auto weights = ValueWeights(sample, sample.mask);
      if constexpr (kPairs) {
        PairInterpolation interpolation = {corners, weights, column};
        Vectorised<uint32_t>(channels / 2, interpolation);
      } else {
        Interpolation<false, A> interpolation = {corners, weights, column};
        Vectorised<A>(channels, interpolation);
      }
    }
  }

  // Packs the columns where pairs are multiplied: an element is a pair of the columns of two
  // samples.
  void Pack(int64_t samples) const {
    if constexpr (kPairs) {
      if (HasTiles()) return PackForTiles(samples);
      const int64_t channels = block_.channels.size();
      Pair* pairs = pairs_;
      for (int64_t i = 0; i < samples; i += 2, pairs += channels) {
        const E* first = columns_ + i * channels;
        RowPairs row = {first, i + 1 < samples ? first + channels : zeros_, pairs};
        Vectorised<uint32_t>(channels, row);
      }
    }
  }

  // The pairs of a channel lie one after the other, and zeros follow the last.
  void PackForTiles(int64_t samples) const {
    const int64_t channels = block_.channels.size();
    for (int64_t i = 0; i < samples; i += 2 * kTileSide) {
      for (int64_t c = 0; c < channels; c += kTileSide) {
        PackTile(i, samples, c, Min(kTileSide, channels - c));
      }
    }
  }

  // Transposes the pairs of some samples and channels. Vectors read beyond the last channels.
  void PackTile(int64_t sample, int64_t samples, int64_t channel, int64_t channels) const {
    const auto row = [&](int64_t i) {
      return i < samples ? columns_ + i * block_.channels.size() + channel : zeros_;
    };
    Pair* pairs = pairs_ + channel * pair_stride_ + sample / 2;
    Pairs rows[kTileSide];
    for (int64_t p = 0; p < kTileSide; ++p, sample += 2) {
      rows[p] = LoadPairs(row(sample), row(sample + 1));
    }
    Transpose(rows);
    for (int64_t c = 0; c < channels; ++c) StorePacked(pairs + c * pair_stride_, rows[c]);
  }

  // The packed columns from a channel of the block on, as the left matrix of a product.
  LeftMatrix<E> ColumnsFrom(int64_t channel, const TapSamples<A>& samples) const {
    const int64_t channels = block_.channels.size();
    const int64_t depth = CeilDiv(samples.count, Packed<E>::kDepth);
    if constexpr (!kPairs) {
      return {columns_ + channel, channels, depth, samples.rows};
    } else if (HasTiles()) {
      return {pairs_ + channel * pair_stride_, pair_stride_, depth, samples.rows};
    } else {
      return {pairs_ + channel, channels, depth, samples.rows};
    }
  }

  // Adds the transposed columns times grad_y.
  void Multiply(int64_t strip, int64_t tap, const TapSamples<A>& samples) const {
    if (pass_.depthwise) return MultiplyDepthwise(pass_.GradYOf(strip), tap, samples);
    Pack(samples.count);
    const int64_t features = problem_.features, group_features = problem_.group_features();
    block_.ForEachPiece(problem_, [&](const Piece& piece) {
      const LeftMatrix<E> columns =
          ColumnsFrom(piece.channels.begin - block_.channels.begin, samples);
      const auto* panel = pass_.PanelsOf(strip, piece.feature_group);
      A* sums = pass_.kernel_sums + KernelIndex(problem_, piece, tap, 0);
      for (int64_t o = 0; o < group_features; o += kPanel<A>) {
        MultiplyPanel<E, true>(piece.channels.size(), columns, panel, {sums + o, features},
                               {sums + o, features, Min(kPanel<A>, group_features - o)});
        panel += (pass_.StripAt(strip).size() + pass_.kZeroRows) * kPanel<A>;
      }
    });
  }

  void MultiplyDepthwise(const E* grad_y, int64_t tap, const TapSamples<A>& samples) const {
    const int64_t channels = block_.channels.size(), features = problem_.features;
    A* sums = pass_.kernel_sums + tap * features + block_.channels.begin;
    DepthwiseSampleSum<E, A> sum = {columns_, channels,     grad_y + block_.channels.begin,
                                    features, samples.rows, samples.count,
                                    sums};
    Vectorised<A>(channels, sum);
  }

  const BackwardPass<T, E>& pass_;
  const DeformConv2dProblem& problem_;
  const ChannelBlock block_;
  E* columns_;  // [samples, channels]
  // [samples / 2, channels]; for tiles, [channels, pair_stride_]
  Element* pairs_;
  E* zeros_;  // [channels]
  int64_t pair_stride_, scratch_bytes_;
};

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_DEFORM_CONV2D_BACKWARD_KERNEL_H_
