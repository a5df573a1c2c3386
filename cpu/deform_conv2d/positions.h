// SPDX-License-Identifier: MIT
// The positions at which output pixels sample x.
#ifndef JAX_DCN_CPU_DEFORM_CONV2D_POSITIONS_H_
#define JAX_DCN_CPU_DEFORM_CONV2D_POSITIONS_H_

#include <cstdint>

#include "common/deform_conv2d/problem.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/simd.h"
#include "cpu/runtime/vector_blocks.h"
#include "cpu/sampling/samples.h"

namespace jax_dcn::JAX_DCN_ISA {

// The positions that the taps of an output pixel sample: places in the grid, plus displacements.
template <typename A>
struct TapPositions {
  const A h, w;                    // of the first tap
  const A *tap_h, *tap_w;          // [K]: of each tap, from the first tap
  const A *displacements, *masks;  // [K, 2] and [K], or null
  A *y, *x, *mask;

  template <typename V>
  JAX_DCN_INLINE void At(int64_t tap) {
    const A* displacement = displacements + 2 * tap;
    V first = Read<V>(displacement), second;
    if constexpr (sizeof(V) == sizeof(A)) {
      second = displacement[1];
    } else {
      const V next = Read<V>(displacement + sizeof(V) / sizeof(A));
      second = Odds<A>(first, next), first = Evens<A>(first, next);
    }
    Write(y + tap, h + Read<V>(tap_h + tap) + first);
    Write(x + tap, w + Read<V>(tap_w + tap) + second);
    Write(mask + tap, masks == nullptr ? V{} + 1 : Read<V>(masks + tap));
  }
};

// The samples [pixels, K] of some output pixels.
template <typename A>
class PixelSamples : public SampleArrays<A> {
 public:
  PixelSamples(const DeformConv2dProblem& problem, int64_t pixels, Arena& arena)
      : SampleArrays<A>(pixels * problem.taps() + kLanes<A>, arena),
        problem_(problem),
        tap_h_(arena.Take<A>(problem.taps())),
        tap_w_(arena.Take<A>(problem.taps())) {}

  // Locates the samples of an offset group. The corners are offsets into an array of images that
  // starts with `first_image`.
  template <typename T>
  void Locate(const DeformConv2dPrimals<T>& primals, int64_t first_image, Range pixels,
              int64_t group) const {
    FillTaps();
    const int64_t strides[] = {problem_.width * problem_.channels, problem_.channels};
    const int64_t image_pixels = problem_.out_height * problem_.out_width;
    for (int64_t begin = pixels.begin, sample = 0; begin < pixels.end;) {
      const int64_t image = begin / image_pixels;
      const int64_t end = Min(pixels.end, (image + 1) * image_pixels);
      Place(primals, {begin, end}, group, sample);
      const int64_t next = sample + (end - begin) * problem_.taps();
      const int64_t first = (image - first_image) * problem_.image_pixels() * problem_.channels;
      SampleArrays<A>::Locate(problem_.map(), first, strides, sample, next);
      begin = end, sample = next;
    }
  }

 private:
  void FillTaps() const {
    const int64_t* dilation = problem_.geometry.kernel_dilation;
    for (int64_t h = 0, tap = 0; h < problem_.kernel_height; ++h) {
      for (int64_t w = 0; w < problem_.kernel_width; ++w, ++tap) {
        tap_h_[tap] = h * dilation[0], tap_w_[tap] = w * dilation[1];
      }
    }
  }

  // Writes the positions and masks of pixels of one image, from `sample` on.
  template <typename T>
  void Place(const DeformConv2dPrimals<T>& primals, Range pixels, int64_t group,
             int64_t sample) const {
    const int64_t taps = problem_.taps(), step = problem_.geometry.strides[1];
    for (int64_t pixel = pixels.begin, end; pixel < pixels.end; pixel = end) {  // a row each
      OutputPixel at = OutputPixelAt(problem_, pixel);
      end = Min(pixels.end, pixel - pixel % problem_.out_width + problem_.out_width);
      for (; pixel < end; ++pixel, at.w += step, sample += taps) {
        const int64_t index = problem_.SampleIndex(pixel, group, 0);
        TapPositions<A> positions = {static_cast<A>(at.h),
                                     static_cast<A>(at.w),
                                     tap_h_,
                                     tap_w_,
                                     primals.offset + 2 * index,
                                     primals.mask == nullptr ? nullptr : primals.mask + index,
                                     this->y + sample,
                                     this->x + sample,
                                     this->mask + sample};
        Vectorised<A>(taps, positions);
      }
    }
  }

  const DeformConv2dProblem& problem_;
  A *tap_h_, *tap_w_;  // [K]: where each tap is, from the first one
};

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_DEFORM_CONV2D_POSITIONS_H_
