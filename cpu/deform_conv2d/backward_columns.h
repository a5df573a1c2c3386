// SPDX-License-Identifier: MIT
// The work of one thread for a part of the pixels and a block of channels: the gradient of the
// columns, and what follows from the gradient of the columns for x, offset and mask.
#ifndef JAX_DCN_CPU_DEFORM_CONV2D_BACKWARD_COLUMNS_H_
#define JAX_DCN_CPU_DEFORM_CONV2D_BACKWARD_COLUMNS_H_

#include <cstdint>

#include "cpu/deform_conv2d/backward_pass.h"
#include "cpu/deform_conv2d/depthwise.h"
#include "cpu/runtime/gemm.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/simd.h"
#include "cpu/sampling/samples.h"

namespace jax_dcn::JAX_DCN_ISA {

template <typename T, typename E>
class BackwardColumns {
 public:
  using A = typename Accumulator<T>::type;
  using Element = typename Packed<E>::Element;

  static int64_t ScratchBytes(const BackwardPass<T, E>& pass) {
    return BackwardColumns(pass, 0, nullptr).scratch_bytes_;
  }

  BackwardColumns(const BackwardPass<T, E>& pass, int64_t block, char* scratch)
      : pass_(pass), problem_(pass.problem), index_(block), block_(pass.blocks[block]) {
    Arena arena(scratch);
    const int64_t channels = pass.blocks.most_channels();
    columns_ = arena.Take<A>(pass.parts.strip_pixels() * channels);
    zeros_ = arena.Take<A>(kPanel<A>);
    no_pixel_ = arena.Take<E>(channels);
    nowhere_ = arena.Take<A>(channels);
    scratch_bytes_ = arena.bytes();
  }

  // Adds the gradient of x to `x_sums`, after clearing the range `cleared` of `x_sums`.
  void Run(Range strips, A* x_sums, Range cleared) {
    const TileRegisters<E> registers;
    const int64_t channels = block_.channels.size();
    __builtin_memset(zeros_, 0, kPanel<A> * sizeof(A));
    __builtin_memset(no_pixel_, 0, channels * sizeof(E));
    __builtin_memset(nowhere_, 0, channels * sizeof(A));
    x_sums_ = x_sums == nullptr ? nullptr : x_sums + block_.channels.begin;
    for (int64_t i = cleared.begin; i < cleared.end; i += problem_.channels) {
      __builtin_memset(x_sums_ + i, 0, channels * sizeof(A));
    }
    for (int64_t strip = strips.begin; strip < strips.end; ++strip) {
      for (int64_t tap = 0; tap < problem_.taps(); ++tap) {
        const auto samples = pass_.SamplesOf(strip, block_.offset_groups.begin, tap);
        MultiplyByKernel(pass_.GradYOf(strip), samples, tap);
        VisitSamples(samples, pass_.want_dots ? pass_.DotsOf(index_, strip, tap) : nullptr);
      }
    }
  }

 private:
  // The gradient of one tap's columns: grad_y times the transposed kernel.
  void MultiplyByKernel(const E* grad_y, const TapSamples<A>& samples, int64_t tap) const {
    if (pass_.depthwise) return MultiplyDepthwise(grad_y, samples, tap);
    const int64_t channels = block_.channels.size(), group_features = problem_.group_features();
    const int64_t depth = group_features / Packed<E>::kDepth;
    const Element* panel = pass_.kernel.Tap(index_, tap);
    block_.ForEachPiece(problem_, [&](const Piece& piece) {
      const E* first = grad_y + piece.feature_group * group_features;
      const LeftMatrix<E> left = {reinterpret_cast<const Element*>(first),
                                  problem_.features / Packed<E>::kDepth, depth, samples.rows};
      A* columns = columns_ + piece.channels.begin - block_.channels.begin;
      for (int64_t c = 0; c < piece.channels.size(); c += kPanel<A>) {
        MultiplyPanel<E, false>(samples.count, left, panel, {zeros_, 0},
                                {columns + c, channels, Min(kPanel<A>, piece.channels.size() - c)});
        panel += depth * kPanel<A>;
      }
    });
  }

  void MultiplyDepthwise(const E* grad_y, const TapSamples<A>& samples, int64_t tap) const {
    const int64_t channels = block_.channels.size(), features = problem_.features;
    const T* kernel = pass_.primals.kernel + tap * features + block_.channels.begin;
    __builtin_memset(columns_, 0, samples.count * channels * sizeof(A));
    for (int64_t i = 0; i < samples.count; ++i) {
      const E* row = grad_y + samples.rows[i] * features + block_.channels.begin;
      A* columns = columns_ + i * channels;
      DepthwiseProduct<E, T, A> product = {row, 0, kernel, 0, 1, columns, columns};
      Vectorised<A>(channels, product);
    }
  }

  // Takes the dot products of each sample of one tap, and adds the sample to the gradient of x.
  void VisitSamples(const TapSamples<A>& samples, A* dots) const {
    WithFlag(pass_.want_dots, [&](auto want_dots) {
      WithFlag(pass_.grads.x != nullptr, [&](auto sums) {
        WithFlag(block_.channels.size() == kBackwardChannels, [&](auto full) {
          using Gradients = SampleGradients<want_dots.value, sums.value, A, E>;
          VisitSamples<Gradients, full.value>(samples, dots);
        });
      });
    });
  }

  template <typename Gradients, bool kFull>
  __attribute__((noinline)) void VisitSamples(const TapSamples<A>& samples, A* dots) const {
    const int64_t channels = kFull ? kBackwardChannels : block_.channels.size();
    const E* x = pass_.want_x ? pass_.x + block_.channels.begin : nullptr;
    const A* column = columns_;
    for (int64_t i = 0; i < samples.count; ++i, column += channels) {
      const MaskedSample<A>& sample = samples.samples[i];
      Gradients gradients(CornersOf<A, const E>(sample, x, no_pixel_),
                          ValueWeights(sample, sample.mask),
                          CornersOf<A, A>(sample, x_sums_, nowhere_), column);
      Vectorised<A>(channels, gradients);
      if (dots != nullptr) gradients.template StoreDots<kFull>(dots + i * kCorners);
    }
  }

  const BackwardPass<T, E>& pass_;
  const DeformConv2dProblem& problem_;
  const int64_t index_;
  const ChannelBlock block_;
  A* x_sums_ = nullptr;  // at the first channel of the block
  A* columns_;           // the gradients of the columns, [samples, channels]
  A* zeros_;             // [kPanel]
  E* no_pixel_;          // [channels]: zeros, outside the image
  A* nowhere_;           // [channels]
  int64_t scratch_bytes_;
};

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_DEFORM_CONV2D_BACKWARD_COLUMNS_H_
