// SPDX-License-Identifier: MIT
// The steps of a backward pass that run once for a strip of pixels, before and after the products.
#ifndef JAX_DCN_CPU_DEFORM_CONV2D_BACKWARD_STRIP_H_
#define JAX_DCN_CPU_DEFORM_CONV2D_BACKWARD_STRIP_H_

#include <cstdint>

#include "cpu/deform_conv2d/backward_pass.h"
#include "cpu/deform_conv2d/positions.h"
#include "cpu/runtime/arrays.h"
#include "cpu/runtime/gemm.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/simd.h"
#include "cpu/sampling/samples.h"

namespace jax_dcn::JAX_DCN_ISA {

template <typename T, typename E>
class BackwardStrip {
 public:
  using A = typename Accumulator<T>::type;

  static int64_t ScratchBytes(const BackwardPass<T, E>& pass) {
    Arena arena;
    PixelSamples<A>(pass.problem, pass.parts.strip_pixels(), 1, arena);
    return arena.bytes();
  }

  BackwardStrip(const BackwardPass<T, E>& pass, int64_t strip)
      : pass_(pass), problem_(pass.problem), strip_(strip), pixels_(pass.StripAt(strip)) {}

  // Makes the panels and the gradient of the bias from grad_y.
  void Prepare() const {
    const int64_t features = problem_.features;
    if constexpr (!BackwardPass<T, E>::kReadInPlace) {
      E* wide = pass_.wide_grad_y + (pixels_.begin - pass_.first_pixel) * features;
      Widen(wide, pass_.given_grad_y + pixels_.begin * features, pixels_.size() * features);
    }
    if (pass_.grads.bias != nullptr) SumBias();
    if (pass_.want_panels) PackGradY();
  }

  // Lists the samples of an offset group.
  void Locate(int64_t group, char* scratch) const {
    Arena arena(scratch);
    PixelSamples<A> samples(problem_, pixels_.size(), 1, arena);
    samples.Choose({group, group + 1});
    samples.Locate(pass_.primals, pass_.first_image, pixels_);
    for (int64_t tap = 0; tap < problem_.taps(); ++tap) List(samples, group, tap);
    if (!pass_.want_reaches) return;
    *pass_.ReachOf(strip_, group) =
        samples.Reach(pixels_.size() * problem_.taps(), problem_.channels);
  }

  // Makes the gradients of offset and mask from the dot products of the blocks of an offset group.
  void SumDots(int64_t group) const {
    const DeformConv2dCotangents<T>& grads = pass_.grads;
    for (int64_t pixel = pixels_.begin; pixel < pixels_.end; ++pixel) {
      const int64_t first = problem_.SampleIndex(pixel, group, 0);
      const int64_t size = problem_.taps() * sizeof(A);
      if (grads.mask != nullptr) __builtin_memset(grads.mask + first, 0, size);
      if (grads.offset != nullptr) __builtin_memset(grads.offset + 2 * first, 0, 2 * size);
    }
    for (int64_t tap = 0; tap < problem_.taps(); ++tap) SumDots(group, tap);
  }

 private:
  void SumBias() const {
    const int64_t features = problem_.features;
    A* sums = pass_.bias_parts + strip_ * features;
    const E* row = pass_.GradYOf(strip_);
    __builtin_memset(sums, 0, features * sizeof(A));
    for (int64_t i = 0; i < pixels_.size(); ++i, row += features) AddTo(sums, row, features);
  }

  void PackGradY() const {
    const int64_t group_features = problem_.group_features();
    const E* grad_y = pass_.GradYOf(strip_);
    for (int64_t g = 0; g < problem_.geometry.feature_groups; ++g, grad_y += group_features) {
      auto* panel = pass_.PanelsOf(strip_, g);
      for (int64_t o = 0; o < group_features; o += kPanel<A>) {
        panel = PackRows(grad_y + o, pixels_.size(), problem_.features,
                         Min(kPanel<A>, group_features - o), panel);
        for (int64_t i = 0; i < pass_.kZeroRows * kPanel<A>; ++i) *panel++ = {};
      }
    }
  }

  // Lists the samples of a tap: one for each pixel, without samples whose column is zero.
  void List(const PixelSamples<A>& samples, int64_t group, int64_t tap) const {
    const int64_t list = pass_.ListIndex(strip_, group, tap);
    const int64_t first = list * pass_.ListSize();
    int64_t count = 0;
    for (int64_t i = 0; i < pixels_.size(); ++i) {
      MaskedSample<A>& sample = pass_.samples[first + count];
      samples.CopyTo(sample, i * problem_.taps() + tap);
      pass_.rows[first + count] = static_cast<int32_t>(i);
      count += !HasZeroColumn(sample);
    }
    pass_.counts[list] = static_cast<int32_t>(count);
    if (count < pass_.ListSize()) {  // the partner of the last sample of an odd number
      pass_.rows[first + count] = static_cast<int32_t>(pixels_.size());
    }
  }

  void SumDots(int64_t group, int64_t tap) const {
    const TapSamples<A> list = pass_.SamplesOf(strip_, group, tap);
    const int64_t first = group * pass_.blocks.per_group();
    for (int64_t i = 0; i < list.count; ++i) {
      A dots[kCorners] = {};
      for (int64_t block = first; block < first + pass_.blocks.per_group(); ++block) {
        const A* part = pass_.DotsOf(block, strip_, tap) + i * kCorners;
        for (int corner = 0; corner < kCorners; ++corner) dots[corner] += part[corner];
      }
      Combined(list.samples[i], dots,
               problem_.SampleIndex(pixels_.begin + list.rows[i], group, tap));
    }
  }

  void Combined(const MaskedSample<A>& sample, const A* dots, int64_t index) const {
    const DeformConv2dCotangents<T>& grads = pass_.grads;
    if (grads.mask != nullptr) grads.mask[index] = Combine(ValueWeights(sample, A(1)), dots);
    if (grads.offset != nullptr) {
      grads.offset[2 * index] = Combine(DerivativeWeights(sample, sample.mask, A(0)), dots);
      grads.offset[2 * index + 1] = Combine(DerivativeWeights(sample, A(0), sample.mask), dots);
    }
  }

  const BackwardPass<T, E>& pass_;
  const DeformConv2dProblem& problem_;
  const int64_t strip_;
  const Range pixels_;
};

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_DEFORM_CONV2D_BACKWARD_STRIP_H_
