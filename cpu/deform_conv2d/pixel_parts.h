// SPDX-License-Identifier: MIT
// Divides the output pixels of a backward pass. The division depends on the problem alone, so that
// sums are the same for any number of threads.
#ifndef JAX_DCN_CPU_DEFORM_CONV2D_PIXEL_PARTS_H_
#define JAX_DCN_CPU_DEFORM_CONV2D_PIXEL_PARTS_H_

#include <cstdint>

#include "common/deform_conv2d/problem.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/simd.h"

namespace jax_dcn::JAX_DCN_ISA {

// A phase visits several parts together: about this many for each block of channels, if images are
// large enough.
constexpr int64_t kPartsOfBlocks = 32;
// The fewest output rows of a part. The samples of a part reach about a dozen rows beyond the part.
constexpr int64_t kPartRows = 7;
// kPhaseBytes bounds the memory that the parts of a phase share. kPartSumsBytes bounds the parts'
// own sums of the gradient of x, unless one part alone needs more. With kManyWorkers or more, a
// phase of whole images has twice the memory and twice the items: no sum depends on how many whole
// images a phase has. A build with little memory lets tests see small problems that are divided
// like large ones.
#if defined(JAX_DCN_LITTLE_MEMORY)
constexpr int64_t kPhaseBytes = 64 << 10, kPartSumsBytes = 8 << 10;
constexpr int64_t kManyWorkers = 3;
#else
constexpr int64_t kPhaseBytes = 12 << 20, kPartSumsBytes = 32 << 20;
constexpr int64_t kManyWorkers = 24;
#endif

// A phase is several parts: the parts of several images, or some parts of one image. A part is
// whole images, or some pixels of one image, in strips of equal size. A strip is the pixels that
// one thread multiplies at once.
class PixelParts {
 public:
  PixelParts(const DeformConv2dProblem& problem, int64_t workers, int64_t blocks,
             int64_t pixel_bytes, int64_t most_strip_pixels)
      : image_(problem.out_height * problem.out_width), batch_(problem.batch) {
    const int64_t image_bytes = Max(1, image_ * pixel_bytes);
    const int64_t phases = CeilDiv(batch_, Max(1, kPhaseBytes / image_bytes));
    const int64_t images = CeilDiv(batch_, Max(1, phases)), items = Max(1, images * blocks);
    const int64_t wanted = Min(CeilDiv(kPartsOfBlocks, items), problem.out_height / kPartRows);
    parts_of_image_ = Max(1, Min(Max(wanted, CeilDiv(image_bytes, kPhaseBytes)), image_));
    images_of_part_ = parts_of_image_ > 1 ? 1 : Max(1, Min(images, items / kPartsOfBlocks));
    const int64_t pixels = CeilDiv(images_of_part_ * image_, parts_of_image_);
    strips_of_part_ = Max(1, CeilDiv(pixels, most_strip_pixels));
    strip_pixels_ = CeilDiv(pixels, strips_of_part_);
    const int64_t fit = Max(1, kPhaseBytes / Max(1, pixels * pixel_bytes));
    phase_parts_ = image_bytes > kPhaseBytes ? Min(fit, parts_of_image_)
                                             : CeilDiv(images, images_of_part_) * parts_of_image_;
    if (!divide_images() && workers >= kManyWorkers) phase_parts_ = Min(2 * phase_parts_, count());
  }

  int64_t count() const { return CeilDiv(batch_, images_of_part_) * parts_of_image_; }
  int64_t strips_of_part() const { return strips_of_part_; }
  int64_t strip_pixels() const { return strip_pixels_; }  // at most
  int64_t phase_parts() const { return phase_parts_; }    // at most
  bool divide_images() const { return parts_of_image_ > 1; }
  int64_t phase_images() const { return CeilDiv(phase_parts_, parts_of_image_) * images_of_part_; }

  // The parts that are visited after `last`.
  Range PhaseAfter(Range last) const {
    const int64_t begin = last.end, end = Min(begin + phase_parts_, count());
    return {begin,
            phase_parts_ < parts_of_image_ ? Min(end, RoundUp(begin + 1, parts_of_image_)) : end};
  }

  // Whether no earlier part has pixels of the same image.
  bool BeginsImage(int64_t part) const { return part % parts_of_image_ == 0; }
  int64_t ImageOf(int64_t part) const { return part / parts_of_image_ * images_of_part_; }

  Range PixelsOf(int64_t part) const {
    const int64_t first = ImageOf(part), index = part % parts_of_image_;
    const int64_t size = (Min(first + images_of_part_, batch_) - first) * image_;
    return Share({first * image_, first * image_ + size}, index, parts_of_image_);
  }

  // Strips are numbered in order, `strips_of_part` to a part.
  Range StripAt(int64_t strip) const {
    return Share(PixelsOf(strip / strips_of_part_), strip % strips_of_part_, strips_of_part_);
  }

 private:
  static Range Share(Range whole, int64_t index, int64_t count) {
    return {whole.begin + whole.size() * index / count,
            whole.begin + whole.size() * (index + 1) / count};
  }

  int64_t image_, batch_, parts_of_image_, images_of_part_, strips_of_part_, strip_pixels_,
      phase_parts_;
};

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_DEFORM_CONV2D_PIXEL_PARTS_H_
