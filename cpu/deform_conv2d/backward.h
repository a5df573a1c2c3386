// SPDX-License-Identifier: MIT
// Gradients of deformable convolution.
//
// Blocks of channels run in parallel, each over all pixels in order. A block owns its channels of
// the gradients of x and of the kernel, so that nothing is added to by two threads and sums do not
// depend on the number of threads. What the gradients of offset and mask need of a block are four
// dot products a sample, which a second loop sums over the blocks.
#ifndef JAX_DCN_CPU_DEFORM_CONV2D_BACKWARD_H_
#define JAX_DCN_CPU_DEFORM_CONV2D_BACKWARD_H_

#include <cstdint>

#include "common/deform_conv2d/problem.h"
#include "cpu/deform_conv2d/backward_block.h"
#include "cpu/deform_conv2d/backward_pass.h"
#include "cpu/deform_conv2d/positions.h"
#include "cpu/runtime/arrays.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/simd.h"
#include "cpu/sampling/samples.h"

namespace jax_dcn::JAX_DCN_ISA {

template <typename T>
class Backward {
 public:
  using A = typename Accumulator<T>::type;

  Backward(const DeformConv2dProblem& problem, const DeformConv2dPrimals<T>& primals,
           const T* grad_y, const DeformConv2dCotangents<T>& grads)
      : pass_(problem, primals, grad_y, grads) {}

  void Run(Executor& executor) {
    const DeformConv2dCotangents<T>& grads = pass_.grads;
    if (grads.bias != nullptr) SumBias(executor);
    if (!pass_.want_columns_grad && grads.kernel == nullptr) return;

    Shared memory(pass_.Allocate(Arena()));
    pass_.Allocate(memory.arena());
    if (kSumsInPlace<T> && grads.x != nullptr) {
      ParallelClear(executor, pass_.x_sums, pass_.problem.batch * pass_.ImageSize());
    }
    if (grads.kernel != nullptr) ParallelClear(executor, pass_.kernel_sums, pass_.KernelSize());
    if (pass_.want_columns_grad && !IsDepthwise(pass_.problem)) pass_.kernel.Pack(executor);
    for (Range pixels = {0, 0}; pixels.end < pass_.problem.pixels();) {
      pixels = After(pixels);
      Visit(executor, pixels);
    }
    if constexpr (!kSumsInPlace<T>) {
      if (grads.kernel == nullptr) return;
      ParallelRound(executor, grads.kernel, pass_.kernel_sums, pass_.KernelSize());
    }
  }

 private:
  // The pixels that are visited next. Where the images are kept aside, these are whole images, or a
  // part of one.
  Range After(Range last) const {
    const int64_t begin = last.end, image = pass_.OutputPixels();
    int64_t end = Min(begin + pass_.shared_pixels, pass_.problem.pixels());
    if (!kSumsInPlace<T>) {
      const int64_t whole = end / image * image;
      end = whole > begin ? whole : Min(end, RoundUp(begin + 1, image));
    }
    return {begin, end};
  }

  void Visit(Executor& executor, Range pixels) {
    if constexpr (!kSumsInPlace<T>) {
      if (pixels.begin % pass_.OutputPixels() == 0) BeginImages(executor, pixels);
    }
    Locate(executor, pixels);
    ParallelFor(executor, pass_.blocks.count(), BackwardBlock<T>::ScratchBytes(pass_),
                [this, pixels](int64_t block, char* scratch) {
                  BackwardBlock<T>(pass_, block, scratch).Run(pixels);
                });
    if (pass_.want_dots) SumDots(executor, pixels);
    if constexpr (!kSumsInPlace<T>) {
      if (pixels.end % pass_.OutputPixels() == 0) EndImages(executor, pixels);
    }
  }

  void BeginImages(Executor& executor, Range pixels) {
    pass_.first_image = pass_.problem.ImageOf(pixels.begin);
    const int64_t left = pass_.problem.batch - pass_.first_image;
    const int64_t size = Min(pass_.SharedImages(), left) * pass_.ImageSize();
    if (pass_.grads.x != nullptr) ParallelClear(executor, pass_.x_sums, size);
    if (!pass_.want_x) return;
    const T* x = pass_.primals.x + pass_.first_image * pass_.ImageSize();
    ParallelWiden(executor, pass_.wide_x, x, size);
  }

  void EndImages(Executor& executor, Range pixels) const {
    if (pass_.grads.x == nullptr) return;
    const int64_t images = pass_.problem.ImageOf(pixels.end) - pass_.first_image;
    T* grad_x = pass_.grads.x + pass_.first_image * pass_.ImageSize();
    ParallelRound(executor, grad_x, pass_.x_sums, images * pass_.ImageSize());
  }

  void SumBias(Executor& executor) const {
    constexpr int64_t kFeatures = 64, kPixels = 256;
    const int64_t features = pass_.problem.features;
    ParallelFor(executor, CeilDiv(features, kFeatures), 0, [&](int64_t item, char*) {
      const Range range = {item * kFeatures, Min((item + 1) * kFeatures, features)};
      A total[kFeatures] = {};
      for (int64_t begin = 0; begin < pass_.problem.pixels(); begin += kPixels) {
        // Sums of sums: rounding errors grow with the length of each, not of both.
        A sums[kFeatures] = {};
        for (int64_t p = begin; p < Min(begin + kPixels, pass_.problem.pixels()); ++p) {
          const T* row = pass_.grad_y + p * features + range.begin;
          for (int64_t o = 0; o < range.size(); ++o) sums[o] += ToFloat(row[o]);
        }
        for (int64_t o = 0; o < range.size(); ++o) total[o] += sums[o];
      }
      for (int64_t o = 0; o < range.size(); ++o)
        pass_.grads.bias[range.begin + o] = FromFloat<T>::Round(total[o]);
    });
  }

  // Calls `f(first, number)` for parts of some pixels.
  template <typename F>
  void ForEachStrip(Executor& executor, Range pixels, const F& f) const {
    const int64_t strip = pass_.strip_pixels;
    ParallelFor(executor, CeilDiv(pixels.size(), strip), 0, [&](int64_t item, char*) {
      const int64_t begin = pixels.begin + item * strip;
      f(begin, Min(strip, pixels.end - begin));
    });
  }

  void Locate(Executor& executor, Range pixels) const {
    const DeformConv2dProblem& problem = pass_.problem;
    ForEachStrip(executor, pixels, [&](int64_t begin, int64_t size) {
      for (int64_t group = 0; group < problem.offset_groups; ++group) {
        LocateSamples(problem, pass_.primals, pass_.first_image, begin, size, group,
                      pass_.SampleAt(begin - pixels.begin, group, 0),
                      problem.offset_groups * problem.taps());
      }
    });
  }

  void SumDots(Executor& executor, Range pixels) const {
    ForEachStrip(executor, pixels, [&](int64_t begin, int64_t size) {
      for (int64_t pixel = begin; pixel < begin + size; ++pixel) {
        for (int64_t group = 0; group < pass_.problem.offset_groups; ++group) {
          for (int64_t tap = 0; tap < pass_.problem.taps(); ++tap) {
            SumDotsOf(pixel, pixel - pixels.begin, group, tap);
          }
        }
      }
    });
  }

  void SumDotsOf(int64_t pixel, int64_t local, int64_t group, int64_t tap) const {
    const MaskedSample<A>& sample = *pass_.SampleAt(local, group, tap);
    const int64_t first = group * pass_.blocks.per_group();
    const int64_t blocks = IsZero(sample) ? 0 : pass_.blocks.per_group();  // that visited it
    A dots[kCorners] = {};
    for (int64_t block = first; block < first + blocks; ++block) {
      const A* part = pass_.DotsAt(block, local, tap);
      for (int i = 0; i < kCorners; ++i) dots[i] += part[i];
    }
    const DeformConv2dCotangents<T>& grads = pass_.grads;
    const int64_t index = pass_.problem.SampleIndex(pixel, group, tap);
    if (grads.mask != nullptr) grads.mask[index] = Combine(ValueWeights(sample, A(1)), dots);
    if (grads.offset != nullptr) {
      grads.offset[2 * index] = Combine(DerivativeWeights(sample, sample.mask, A(0)), dots);
      grads.offset[2 * index + 1] = Combine(DerivativeWeights(sample, A(0), sample.mask), dots);
    }
  }

  BackwardPass<T> pass_;
};

template <typename T>
void DeformConv2dBackward(Executor& executor, const DeformConv2dProblem& problem,
                          const DeformConv2dPrimals<T>& primals, const T* grad_y,
                          const DeformConv2dCotangents<T>& grads) {
  Backward<T>(problem, primals, grad_y, grads).Run(executor);
}

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_DEFORM_CONV2D_BACKWARD_H_
