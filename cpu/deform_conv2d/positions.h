// SPDX-License-Identifier: MIT
// The positions at which output pixels sample x.
#ifndef JAX_DCN_CPU_DEFORM_CONV2D_POSITIONS_H_
#define JAX_DCN_CPU_DEFORM_CONV2D_POSITIONS_H_

#include <cstdint>

#include "common/deform_conv2d/problem.h"
#include "cpu/runtime/simd.h"
#include "cpu/sampling/locate.h"
#include "cpu/sampling/samples.h"

namespace jax_dcn::JAX_DCN_ISA {

// Visits the taps of output pixels in order: for each pixel, the taps of one offset group.
class TapCursor {
 public:
  TapCursor(const DeformConv2dProblem& problem, int64_t first_image, int64_t pixel, int64_t group)
      : problem_(problem), first_image_(first_image), index_(problem.SampleIndex(pixel, group, 0)) {
    Begin(pixel);
  }

  int64_t h() const { return h_; }
  int64_t w() const { return w_; }
  int64_t index() const { return index_; }  // of the tap in the mask
  int64_t image() const { return image_; }  // first pixel of the image, counted from first_image

  JAX_DCN_INLINE void Next() {
    ++index_;
    w_ += problem_.geometry.kernel_dilation[1];
    if (++tap_x_ < problem_.kernel_width) return;
    tap_x_ = 0, w_ = output_.w;
    h_ += problem_.geometry.kernel_dilation[0];
    if (++tap_y_ == problem_.kernel_height) NextPixel();
  }

 private:
  // The next tap. A division would take as long as all other work for a kernel of one tap.
  JAX_DCN_INLINE void NextPixel() {
    index_ += (problem_.offset_groups - 1) * problem_.taps();
    output_.w += problem_.geometry.strides[1];
    if (++out_x_ == problem_.out_width) Begin(pixel_ + problem_.out_width);
    h_ = output_.h, w_ = output_.w, tap_y_ = 0;
  }

  // Moves to the first tap of an output pixel. `pixel_` is the first pixel of the same output row.
  void Begin(int64_t pixel) {
    out_x_ = pixel % problem_.out_width, pixel_ = pixel - out_x_;
    output_ = OutputPixelAt(problem_, pixel);
    h_ = output_.h, w_ = output_.w, tap_y_ = tap_x_ = 0;
    image_ = (output_.image - first_image_) * problem_.image_pixels();
  }

  const DeformConv2dProblem& problem_;
  const int64_t first_image_;
  int64_t index_, pixel_, out_x_, tap_y_, tap_x_, h_, w_, image_;
  OutputPixel output_;
};

// Locates the samples [pixels, K] of an offset group. The corners are offsets into an array of
// images that starts with `first_image`; `stride` is the distance in `samples` from one pixel to
// the next.
template <typename T, typename A>
void LocateSamples(const DeformConv2dProblem& problem, const DeformConv2dPrimals<T>& primals,
                   int64_t first_image, int64_t pixel, int64_t pixels, int64_t group,
                   MaskedSample<A>* samples, int64_t stride) {
  LocatedSamples<2, A> located;
  const SampledMap<2> map = problem.map();
  const int64_t strides[] = {problem.width * problem.channels, problem.channels};
  TapCursor read(problem, first_image, pixel, group), written = read;
  const int64_t total = pixels * problem.taps();
  for (int64_t begin = 0, tap = 0; begin < total; begin += located.kMost) {
    const int64_t count = Min(located.kMost, total - begin);
    for (int64_t i = 0; i < count; ++i, read.Next()) {
      const A* displacement = primals.offset + 2 * read.index();
      located.position(0, i) = static_cast<A>(read.h()) + displacement[0];
      located.position(1, i) = static_cast<A>(read.w()) + displacement[1];
    }
    located.Locate(map, count);
    for (int64_t i = 0; i < count; ++i, written.Next()) {
      const A mask = primals.mask == nullptr ? A(1) : primals.mask[written.index()];
      const auto at = located[i];
      MaskedSample<A> sample = {{{}, at.fraction[0], at.fraction[1]}, mask};
      SetCorners(at, written.image() * problem.channels, strides, sample.corner);
      samples[tap] = sample;
      if (++tap == problem.taps()) tap = 0, samples += stride;
    }
  }
}

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_DEFORM_CONV2D_POSITIONS_H_
