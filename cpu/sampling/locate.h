// SPDX-License-Identifier: MIT
// Where samples lie, many at a time: common/sampling/bilinear.h's SampleAt in vectors.
#ifndef JAX_DCN_CPU_SAMPLING_LOCATE_H_
#define JAX_DCN_CPU_SAMPLING_LOCATE_H_

#include <cstdint>
#include <limits>

#include "common/deform_conv2d/problem.h"
#include "cpu/sampling/samples.h"
#include "cpu/runtime/simd.h"

namespace jax_dcn::JAX_DCN_ISA {

// The integer that a vector has of each number in a comparison: all bits set, or none.
template <typename A>
struct FlagOf {
  using type = int32_t;
};
template <>
struct FlagOf<double> {
  using type = int64_t;
};

template <typename A>
JAX_DCN_INLINE Vector<A> Floor(Vector<A> v) {
  typedef typename FlagOf<A>::type Whole __attribute__((vector_size(kVectorBytes)));
  constexpr A kWhole = A(int64_t{1} << (std::numeric_limits<A>::digits - 1));  // all larger are
  const Vector<A> towards_zero =
      __builtin_convertvector(__builtin_convertvector(v, Whole), Vector<A>);
  const Vector<A> floor = v < towards_zero ? towards_zero - 1 : towards_zero;
  return (v > -kWhole) & (v < kWhole) ? floor : v;
}

// Some samples.
template <typename A>
struct LocatedSamples {
  static constexpr int64_t kMost = 128;
  using Flag = typename FlagOf<A>::type;
  // Where they are, and then the fractions of a pixel; and the corner above and before.
  alignas(64) A y[kMost], x[kMost], top[kMost], left[kMost];
  // Whether the rows and the columns of corners are outside.
  alignas(64) Flag outside_top[kMost], outside_bottom[kMost], outside_left[kMost],
      outside_right[kMost];
  // Whether the row or the column after the last stands for the last.
  alignas(64) Flag last_row[kMost], last_column[kMost];

  void Locate(const DeformConv2dProblem& problem, int64_t count) {
    for (int64_t i = 0; i < count; i += kLanes<A>) LocateVector(problem, i);
  }

  JAX_DCN_INLINE void LocateVector(const DeformConv2dProblem& problem, int64_t i) {
    const A height = static_cast<A>(problem.height), width = static_cast<A>(problem.width);
    const bool legacy = problem.geometry.legacy_boundary;
    const Vector<A> h = Load(y + i), w = Load(x + i), zero = {};
    const auto within = (h < height) & (w < width);
    const auto inside = within & (legacy ? (h >= 0) & (w >= 0) : (h > -1) & (w > -1));
    const Vector<A> t = Floor<A>(inside ? h : zero), l = Floor<A>(inside ? w : zero);
    const auto below = t + 1 < height, after = l + 1 < width;
    const Vector<A> undefined = (h != h) | (w != w) ? h + w : zero;
    Store(y + i, inside ? h - t : undefined);
    Store(x + i, inside ? w - l : undefined);
    Store(top + i, t);
    Store(left + i, l);
    StoreFlags(outside_top + i, ~inside | (t < 0));
    StoreFlags(outside_left + i, ~inside | (l < 0));
    StoreFlags(outside_bottom + i, legacy ? ~inside : ~(inside & below));
    StoreFlags(outside_right + i, legacy ? ~inside : ~(inside & after));
    StoreFlags(last_row + i, legacy ? ~below : below ^ below);
    StoreFlags(last_column + i, legacy ? ~after : after ^ after);
  }

  template <typename V>
  static JAX_DCN_INLINE void StoreFlags(Flag* flags, V vector) {
    __builtin_memcpy(flags, &vector, sizeof(vector));
  }

  // One of them, in an image that starts at pixel `image`.
  JAX_DCN_INLINE MaskedSample<A> Sample(const DeformConv2dProblem& problem, int64_t image,
                                        int64_t i, A mask) const {
    static_assert(kOutside == -1, "outside is all bits set");
    const int64_t row = static_cast<int64_t>(top[i]), column = static_cast<int64_t>(left[i]);
    const int64_t first = (image + row * problem.width + column) * problem.channels;
    const int64_t down = problem.width * problem.channels & ~int64_t{last_row[i]};
    const int64_t right = problem.channels & ~int64_t{last_column[i]};
    return {{{first | outside_top[i] | outside_left[i],
              (first + right) | outside_top[i] | outside_right[i],
              (first + down) | outside_bottom[i] | outside_left[i],
              (first + down + right) | outside_bottom[i] | outside_right[i]},
             y[i],
             x[i]},
            mask};
  }
};

// Goes through the taps of output positions.
class TapCursor {
 public:
  TapCursor(const DeformConv2dProblem& problem, int64_t first_image, int64_t pixel, int64_t group)
      : problem_(problem), first_image_(first_image), pixel_(pixel), group_(group) {
    Begin();
  }

  int64_t h() const { return h_; }
  int64_t w() const { return w_; }
  int64_t index() const { return index_; }  // in the mask
  int64_t image() const { return image_; }  // its first pixel

  JAX_DCN_INLINE void Next() {
    ++index_;
    w_ += problem_.geometry.kernel_dilation[1];
    if (++tap_x_ < problem_.kernel_width) return;
    tap_x_ = 0, w_ = output_.w;
    h_ += problem_.geometry.kernel_dilation[0];
    if (++tap_y_ == problem_.kernel_height) ++pixel_, Begin();
  }

 private:
  void Begin() {
    output_ = OutputPixelAt(problem_, pixel_);
    h_ = output_.h, w_ = output_.w, tap_y_ = tap_x_ = 0;
    index_ = problem_.SampleIndex(pixel_, group_, 0);
    image_ = (output_.image - first_image_) * problem_.image_pixels();
  }

  const DeformConv2dProblem& problem_;
  const int64_t first_image_;
  int64_t pixel_, group_, tap_y_, tap_x_, h_, w_, index_, image_;
  OutputPixel output_;
};

// The samples [pixels, K] of an offset group, in images of which `first_image` is the first;
// `stride` lies between those of one pixel and of the next.
template <typename T, typename A>
void LocateSamples(const DeformConv2dProblem& problem, const DeformConv2dPrimals<T>& primals,
                   int64_t first_image, int64_t pixel, int64_t pixels, int64_t group,
                   MaskedSample<A>* samples, int64_t stride) {
  LocatedSamples<A> located;
  TapCursor read(problem, first_image, pixel, group), written = read;
  const int64_t total = pixels * problem.taps();
  for (int64_t begin = 0, tap = 0; begin < total; begin += located.kMost) {
    const int64_t count = Min(located.kMost, total - begin);
    for (int64_t i = 0; i < count; ++i, read.Next()) {
      const A* displacement = primals.offset + 2 * read.index();
      located.y[i] = static_cast<A>(read.h()) + displacement[0];
      located.x[i] = static_cast<A>(read.w()) + displacement[1];
    }
    located.Locate(problem, count);
    for (int64_t i = 0; i < count; ++i, written.Next()) {
      const A mask = primals.mask == nullptr ? A(1) : primals.mask[written.index()];
      samples[tap] = located.Sample(problem, written.image(), i, mask);
      if (++tap == problem.taps()) tap = 0, samples += stride;
    }
  }
}

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_SAMPLING_LOCATE_H_
