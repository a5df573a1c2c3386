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

// The fewest positions that are placed at once, where the positions of neighbouring pixels are
// contiguous.
constexpr int64_t kPlacedTogether = 64;

// The positions of samples that follow each other: places in the grid, plus displacements.
template <typename A>
struct SamplePositions {
  const A h, w;                    // of the first sample in the grid
  const A *grid_h, *grid_w;        // of each sample in the grid, from the first sample
  const A *displacements, *masks;  // [.., 2] and [..], or null
  A *y, *x, *mask;

  template <typename V>
  JAX_DCN_INLINE void At(int64_t i) {
    const A* displacement = displacements + 2 * i;
    V first = Read<V>(displacement), second;
    if constexpr (sizeof(V) == sizeof(A)) {
      second = displacement[1];
    } else {
      const V next = Read<V>(displacement + sizeof(V) / sizeof(A));
      second = Odds<A>(first, next), first = Evens<A>(first, next);
    }
    Write(y + i, h + Read<V>(grid_h + i) + first);
    Write(x + i, w + Read<V>(grid_w + i) + second);
    Write(mask + i, masks == nullptr ? V{} + 1 : Read<V>(masks + i));
  }
};

// The samples [pixels, groups, K] of some output pixels and offset groups.
template <typename A>
class PixelSamples : public SampleArrays<A> {
 public:
  // With memory for the samples of `pixels` pixels and `groups` offset groups.
  PixelSamples(const DeformConv2dProblem& problem, int64_t pixels, int64_t groups, Arena& arena)
      : SampleArrays<A>(pixels * groups * problem.taps() + kLanes<A>, arena),
        problem_(problem),
        grid_h_(arena.Take<A>(kPlacedTogether + groups * problem.taps())),
        grid_w_(arena.Take<A>(kPlacedTogether + groups * problem.taps())),
        turns_(arena.Take<IndexOf<A>>(groups + kLanes<A>)) {}

  // Chooses the offset groups that are sampled next.
  void Choose(Range groups) {
    groups_ = groups;
    const int64_t size = groups.size() * problem_.taps();
    const bool in_order = groups.size() == problem_.offset_groups;
    pixels_together_ = in_order ? CeilDiv(kPlacedTogether, size) : 1;
    FillGrid();
    for (int64_t i = 0; i < groups.size() + kLanes<A>; ++i) turns_[i] = i % groups.size();
  }

  // Locates the samples of some pixels. The corners are offsets into an array of images that starts
  // with `first_image`.
  template <typename T>
  void Locate(const DeformConv2dPrimals<T>& primals, int64_t first_image, Range pixels) const {
    const int64_t strides[] = {problem_.width * problem_.channels, problem_.channels};
    Place(primals, pixels, [&](int64_t image, int64_t begin, int64_t end) {
      const int64_t first = (image - first_image) * problem_.image_pixels() * problem_.channels;
      SampleArrays<A>::Locate(problem_.map(), first, strides, begin, end);
    });
  }

  // Samples the only channel of each offset group. `images` starts with the first of these channels
  // of the image `first_image`.
  template <typename T>
  void SampleInTurn(const DeformConv2dPrimals<T>& primals, const A* images, int64_t first_image,
                    Range pixels, A* columns) const {
    const auto stride = static_cast<IndexOf<A>>(problem_.channels);
    const IndexOf<A> strides[] = {static_cast<IndexOf<A>>(problem_.width) * stride, stride};
    Place(primals, pixels, [&](int64_t image, int64_t begin, int64_t end) {
      const A* first = images + (image - first_image) * problem_.image_pixels() * problem_.channels;
      SampleArrays<A>::SampleInTurn(problem_.map(), first, strides, turns_, groups_.size(), begin,
                                    end, columns);
    });
  }

 private:
  void FillGrid() const {
    const ConvGeometry& geometry = problem_.geometry;
    A *h = grid_h_, *w = grid_w_;
    for (int64_t i = 0; i < pixels_together_ * groups_.size(); ++i) {
      const int64_t pixel_w = i / groups_.size() * geometry.strides[1];
      for (int64_t tap_h = 0; tap_h < problem_.kernel_height; ++tap_h) {
        for (int64_t tap_w = 0; tap_w < problem_.kernel_width; ++tap_w) {
          *h++ = tap_h * geometry.kernel_dilation[0];
          *w++ = tap_w * geometry.kernel_dilation[1] + pixel_w;
        }
      }
    }
  }

  // Writes the positions and masks of pixels. Calls `f(image, begin, end)` when all samples of an
  // image, from `begin` to `end`, have theirs.
  template <typename T, typename F>
  void Place(const DeformConv2dPrimals<T>& primals, Range pixels, const F& f) const {
    const int64_t image_pixels = problem_.out_height * problem_.out_width;
    for (int64_t begin = pixels.begin, sample = 0; begin < pixels.end;) {
      const int64_t image = begin / image_pixels;
      const int64_t end = Min(pixels.end, (image + 1) * image_pixels);
      const int64_t next = sample + (end - begin) * groups_.size() * problem_.taps();
      PlaceImage(primals, {begin, end}, sample);
      f(image, sample, next);
      begin = end, sample = next;
    }
  }

  // Writes the positions and masks of pixels of one image, from `sample` on.
  template <typename T>
  void PlaceImage(const DeformConv2dPrimals<T>& primals, Range pixels, int64_t sample) const {
    const int64_t step = problem_.geometry.strides[1], size = groups_.size() * problem_.taps();
    for (int64_t pixel = pixels.begin, end; pixel < pixels.end; pixel = end) {  // a row each
      OutputPixel at = OutputPixelAt(problem_, pixel);
      end = Min(pixels.end, pixel - pixel % problem_.out_width + problem_.out_width);
      for (int64_t count; pixel < end; pixel += count, at.w += count * step) {
        count = Min(pixels_together_, end - pixel);
        const int64_t index = problem_.SampleIndex(pixel, groups_.begin, 0);
        SamplePositions<A> positions = {static_cast<A>(at.h),
                                        static_cast<A>(at.w),
                                        grid_h_,
                                        grid_w_,
                                        primals.offset + 2 * index,
                                        primals.mask == nullptr ? nullptr : primals.mask + index,
                                        this->y + sample,
                                        this->x + sample,
                                        this->mask + sample};
        Vectorised<A>(count * size, positions);
        sample += count * size;
      }
    }
  }

  const DeformConv2dProblem& problem_;
  A *grid_h_, *grid_w_;  // [pixels_together_, groups, K]: places in the grid, from the first one
  IndexOf<A>* turns_;    // [groups + kLanes<A>]: 0, 1, .. groups - 1, 0, 1, ..
  Range groups_ = {0, 0};
  int64_t pixels_together_ = 1;
};

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_DEFORM_CONV2D_POSITIONS_H_
