// SPDX-License-Identifier: MIT
// The state that the steps of a backward pass share: the problem, the division of the problem, and
// the memory of a call.
#ifndef JAX_DCN_CPU_DEFORM_CONV2D_BACKWARD_PASS_H_
#define JAX_DCN_CPU_DEFORM_CONV2D_BACKWARD_PASS_H_

#include <cstdint>
#include <type_traits>

#include "common/deform_conv2d/problem.h"
#include "cpu/deform_conv2d/channel_blocks.h"
#include "cpu/deform_conv2d/depthwise.h"
#include "cpu/deform_conv2d/pixel_parts.h"
#include "cpu/deform_conv2d/strips.h"
#include "cpu/deform_conv2d/transposed_kernel.h"
#include "cpu/runtime/parallel.h"
#include "cpu/sampling/samples.h"

namespace jax_dcn::JAX_DCN_ISA {

// The channels of a block fill two panels, and two lines of cache in each pixel that is read. Loops
// over the channels of a full block have a known number of steps.
constexpr int64_t kBackwardChannels = 32;

// The samples of one tap of a strip, without samples whose column is zero.
template <typename A>
struct TapSamples {
  int64_t count;
  const int32_t* rows;  // [count]: the pixel of the strip that each sample belongs to
  const MaskedSample<A>* samples;
};

// E is the type in which images and grad_y are read and columns are multiplied: T, or a wider type.
template <typename T, typename E>
struct BackwardPass {
  using A = typename Accumulator<T>::type;
  using Row = typename Packed<E>::Row;
  static constexpr bool kReadInPlace = std::is_same<T, E>::value;

  BackwardPass(int64_t workers, const DeformConv2dProblem& problem,
               const DeformConv2dPrimals<T>& primals, const T* grad_y,
               const DeformConv2dCotangents<T>& grads)
      : problem(problem),
        primals(primals),
        grads(grads),
        depthwise(IsDepthwise(problem)),
        blocks(problem, kBackwardChannels, kLanes<A>),
        want_dots(grads.offset != nullptr || grads.mask != nullptr),
        want_columns_grad(want_dots || grads.x != nullptr),
        want_x(want_dots || grads.kernel != nullptr),
        want_samples(want_columns_grad || grads.kernel != nullptr),
        want_panels(grads.kernel != nullptr && !depthwise),
        parts(problem, workers, blocks.count(), PixelBytes(),
              StripPixels(problem, problem.features * sizeof(A))),
        want_reaches(grads.x != nullptr && parts.divide_images()),
        kernel(problem, blocks, primals.kernel),
        given_grad_y(grad_y) {}

  int64_t ImageSize() const { return problem.image_pixels() * problem.channels; }
  int64_t KernelSize() const {
    return problem.taps() * problem.group_channels() * problem.features;
  }
  int64_t FeaturePanels() const { return CeilDiv(problem.group_features(), kPanel<A>); }

  // The strips of a phase are numbered from 0.
  int64_t PhaseStrips() const { return phase.size() * parts.strips_of_part(); }
  Range StripAt(int64_t strip) const {
    return parts.StripAt(phase.begin * parts.strips_of_part() + strip);
  }

  // The index of the list of a tap's samples.
  int64_t ListIndex(int64_t strip, int64_t group, int64_t tap) const {
    return (strip * problem.offset_groups + group) * problem.taps() + tap;
  }
  // Each sample of a list has a partner: whole pairs.
  int64_t ListSize() const { return RoundUp(parts.strip_pixels(), Packed<E>::kDepth); }
  TapSamples<A> SamplesOf(int64_t strip, int64_t group, int64_t tap) const {
    const int64_t list = ListIndex(strip, group, tap);
    return {counts[list], rows + list * ListSize(), samples + list * ListSize()};
  }

  Range* ReachOf(int64_t strip, int64_t group) const {
    return reaches + strip * problem.offset_groups + group;
  }

  A* DotsOf(int64_t block, int64_t strip, int64_t tap) const {
    const int64_t strips = parts.phase_parts() * parts.strips_of_part();
    return dots +
           ((block * strips + strip) * problem.taps() + tap) * parts.strip_pixels() * kCorners;
  }

  const E* GradYOf(int64_t strip) const {
    return grad_y + (StripAt(strip).begin - first_pixel) * problem.features;
  }

  // grad_y in panels. Each panel ends with a row of zeros: the partner of a pixel without a
  // partner.
  Row* PanelsOf(int64_t strip, int64_t feature_group) const {
    return panels + (strip * problem.geometry.feature_groups + feature_group) * FeaturePanels() *
                        kPanel<A> * (parts.strip_pixels() + kZeroRows);
  }
  static constexpr int64_t kZeroRows = Packed<E>::kDepth - 1;

  // Places the arrays in memory. Without memory, counts their bytes.
  int64_t Allocate(Arena arena) {
    const int64_t strips = parts.phase_parts() * parts.strips_of_part();
    const int64_t pixels = strips * parts.strip_pixels();
    const int64_t images_size = parts.phase_images() * ImageSize();
    AllocateLists(strips, arena);
    part_sums = arena.Take<A*>(parts.phase_parts());
    dots = arena.Take<A>(want_dots ? blocks.count() * pixels * problem.taps() * kCorners : 0);
    const int64_t panel_rows = strips * (parts.strip_pixels() + kZeroRows);
    panels = arena.Take<Row>(want_panels ? PanelsSize() * panel_rows : 0);
    bias_parts = arena.Take<A>(grads.bias != nullptr ? strips * problem.features : 0);
    if (want_columns_grad && !depthwise) kernel.Allocate(arena);
    if constexpr (kReadInPlace) {
      x = primals.x;
    } else {
      x = wide_x = arena.Take<E>(want_x ? images_size : 0);
      grad_y = wide_grad_y = arena.Take<E>(pixels * problem.features);
    }
    AllocateSums(images_size, arena);
    return arena.bytes();
  }

  void Begin(Range next) {
    phase = next;
    first_pixel = parts.PixelsOf(phase.begin).begin;
    if constexpr (!kSumsInPlace<T>) first_image = parts.ImageOf(phase.begin);
    if constexpr (kReadInPlace) {
      grad_y = given_grad_y + first_pixel * problem.features;
      x = primals.x + first_image * ImageSize();
    }
  }

  const DeformConv2dProblem& problem;
  const DeformConv2dPrimals<T>& primals;
  const DeformConv2dCotangents<T>& grads;
  const bool depthwise;
  const ChannelBlocks blocks;
  const bool want_dots, want_columns_grad, want_x, want_samples, want_panels;
  const PixelParts parts;
  const bool want_reaches;
  TransposedKernel<T, E> kernel;
  const T* const given_grad_y;

  // Arrays and ranges of the phase:
  Range phase = {0, 0};
  int64_t first_pixel = 0, first_image = 0;  // of x and x_sums
  int32_t *counts = nullptr, *rows = nullptr;
  MaskedSample<A>* samples = nullptr;  // [strips, G, K, ListSize()]; SamplesOf gives one list
  // [strips, G]: the elements of x between the first and the last that is read; begins at INT64_MAX
  // if none is read
  Range* reaches = nullptr;
  A** part_sums = nullptr;  // [parts]: the sums of each part for the gradient of x
  A* dots = nullptr;        // [blocks, strips, K, strip pixels, 4]
  Row* panels = nullptr;    // [strips, feature groups, panels, strip pixels, kPanel]
  A* bias_parts = nullptr;  // [strips, O]
  const E *x = nullptr, *grad_y = nullptr;
  E *wide_x = nullptr, *wide_grad_y = nullptr;
  A* x_sums = nullptr;
  // Arrays of the call:
  A* kernel_sums = nullptr;  // [K, C / groups, O]
  A* bias_sums = nullptr;    // [O]

 private:
  void AllocateLists(int64_t strips, Arena& arena) {
    const int64_t lists = want_samples ? strips * problem.offset_groups * problem.taps() : 0;
    counts = arena.Take<int32_t>(lists);
    rows = arena.Take<int32_t>(lists * ListSize());
    samples = arena.Take<MaskedSample<A>>(lists * ListSize());
    reaches = arena.Take<Range>(want_samples ? strips * problem.offset_groups : 0);
  }

  // The memory of the sums: the results, or memory of the call if the results have a narrower type.
  void AllocateSums(int64_t images_size, Arena& arena) {
    if constexpr (kSumsInPlace<T>) {
      x_sums = grads.x;
      kernel_sums = grads.kernel;
      bias_sums = grads.bias;
    } else {
      x_sums = arena.Take<A>(grads.x == nullptr ? 0 : images_size);
      kernel_sums = arena.Take<A>(grads.kernel == nullptr ? 0 : KernelSize());
      bias_sums = arena.Take<A>(grads.bias == nullptr ? 0 : problem.features);
    }
  }

  // The numbers that all panels hold for one pixel.
  int64_t PanelsSize() const {
    return problem.geometry.feature_groups * FeaturePanels() * kPanel<A>;
  }

  int64_t PixelBytes() const {
    const int64_t sample_bytes = sizeof(MaskedSample<A>) + sizeof(int32_t);
    int64_t numbers = problem.taps() * (want_dots ? blocks.count() * kCorners : 0);
    if (want_panels) numbers += PanelsSize();
    if (!kSumsInPlace<T>) {
      const int64_t image = Max(1, problem.out_height * problem.out_width);
      numbers += CeilDiv(ImageSize(), image);
      if (!kReadInPlace) numbers += problem.features + CeilDiv(ImageSize(), image);
    }
    return problem.taps() * problem.offset_groups * sample_bytes + numbers * sizeof(A);
  }
};

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_DEFORM_CONV2D_BACKWARD_PASS_H_
