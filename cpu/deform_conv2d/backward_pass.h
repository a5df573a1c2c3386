// SPDX-License-Identifier: MIT
// What the steps of a backward pass share: the problem, how it is divided, and the memory of a
// call.
#ifndef JAX_DCN_CPU_DEFORM_CONV2D_BACKWARD_PASS_H_
#define JAX_DCN_CPU_DEFORM_CONV2D_BACKWARD_PASS_H_

#include <cstdint>

#include "common/deform_conv2d/problem.h"
#include "cpu/deform_conv2d/channel_blocks.h"
#include "cpu/deform_conv2d/depthwise.h"
#include "cpu/deform_conv2d/strips.h"
#include "cpu/deform_conv2d/transposed_kernel.h"
#include "cpu/runtime/parallel.h"
#include "cpu/sampling/samples.h"

namespace jax_dcn::JAX_DCN_ISA {

// Channels of a backward block: two panels, and two lines of cache in each pixel that is sampled.
constexpr int64_t kBackwardChannels = 32;
// The blocks share samples and dot products of so many pixels, if they fit in so much.
constexpr int64_t kSharedPixels = 2048, kSharedBytes = 3 << 19;

template <typename T>
struct BackwardPass {
  using A = typename Accumulator<T>::type;

  BackwardPass(const DeformConv2dProblem& problem, const DeformConv2dPrimals<T>& primals,
               const T* grad_y, const DeformConv2dCotangents<T>& grads)
      : problem(problem),
        primals(primals),
        grad_y(grad_y),
        grads(grads),
        blocks(problem, kBackwardChannels, kLanes<A>),
        want_dots(grads.offset != nullptr || grads.mask != nullptr),
        want_columns_grad(want_dots || grads.x != nullptr),
        want_x(want_dots || grads.kernel != nullptr),
        strip_pixels(StripPixels(problem, problem.features * sizeof(A))),
        shared_pixels(SharedPixels()),
        kernel(problem, blocks, primals.kernel) {}

  int64_t ImageSize() const { return problem.image_pixels() * problem.channels; }
  int64_t OutputPixels() const { return problem.out_height * problem.out_width; }
  int64_t SharedImages() const { return Max(1, shared_pixels / OutputPixels()); }

  int64_t KernelSize() const {
    return problem.taps() * problem.group_channels() * problem.features;
  }

  // `local_pixel` counts from the first of those that are visited together.
  MaskedSample<A>* SampleAt(int64_t local_pixel, int64_t group, int64_t tap) const {
    return samples + (local_pixel * problem.offset_groups + group) * problem.taps() + tap;
  }

  A* DotsAt(int64_t block, int64_t local_pixel, int64_t tap) const {
    return dots + ((block * shared_pixels + local_pixel) * problem.taps() + tap) * kCorners;
  }

  // Where the sums are kept: the results themselves, or for narrower types memory of the call.
  int64_t Allocate(Arena arena) {
    const int64_t taps = problem.taps();
    samples = arena.Take<MaskedSample<A>>(shared_pixels * problem.offset_groups * taps);
    dots = arena.Take<A>(want_dots ? blocks.count() * shared_pixels * taps * kCorners : 0);
    if (want_columns_grad && !IsDepthwise(problem)) kernel.Allocate(arena);
    if constexpr (kSumsInPlace<T>) {
      x = primals.x;
      x_sums = grads.x;
      kernel_sums = grads.kernel;
    } else {
      x = wide_x = arena.Take<A>(want_x ? SharedImages() * ImageSize() : 0);
      x_sums = arena.Take<A>(grads.x == nullptr ? 0 : SharedImages() * ImageSize());
      kernel_sums = arena.Take<A>(KernelSize());
    }
    return arena.bytes();
  }

  const DeformConv2dProblem& problem;
  const DeformConv2dPrimals<T>& primals;
  const T* const grad_y;
  const DeformConv2dCotangents<T>& grads;
  const ChannelBlocks blocks;
  const bool want_dots, want_columns_grad, want_x;
  const int64_t strip_pixels, shared_pixels;
  TransposedKernel<T> kernel;
  MaskedSample<A>* samples = nullptr;  // [shared pixels, G, K]
  A* dots = nullptr;                   // [blocks, shared pixels, K, 4]
  const A* x = nullptr;                // the images from first_image on, and their gradient
  A *wide_x = nullptr, *x_sums = nullptr;
  A* kernel_sums = nullptr;  // [K, C / groups, O]
  int64_t first_image = 0;

 private:
  int64_t SharedPixels() const {
    const int64_t bytes = problem.taps() * (problem.offset_groups * sizeof(MaskedSample<A>) +
                                            blocks.count() * kCorners * sizeof(A));
    return Max(1, Min(kSharedPixels, kSharedBytes / bytes) / strip_pixels) * strip_pixels;
  }
};

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_DEFORM_CONV2D_BACKWARD_PASS_H_
