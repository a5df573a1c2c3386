// SPDX-License-Identifier: MIT
// Gradients of deformable convolution.
//
// The pixels are visited in phases, each in three loops. The first locates the samples of the
// phase. The second takes the gradient of the columns for parts of the pixels and blocks of
// channels, and the gradient of the kernel for taps and blocks of channels. The third adds up what
// several items of the second made. No sum is added to by two threads, and none depends on their
// number.
#ifndef JAX_DCN_CPU_DEFORM_CONV2D_BACKWARD_H_
#define JAX_DCN_CPU_DEFORM_CONV2D_BACKWARD_H_

#include <cstdint>

#include "common/deform_conv2d/problem.h"
#include "cpu/deform_conv2d/backward_columns.h"
#include "cpu/deform_conv2d/backward_kernel.h"
#include "cpu/deform_conv2d/backward_pass.h"
#include "cpu/deform_conv2d/backward_strip.h"
#include "cpu/runtime/arrays.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/simd.h"

namespace jax_dcn::JAX_DCN_ISA {

// About the fewest items of the gradient of the kernel for each worker.
constexpr int64_t kItemsOfWorker = 4;

template <typename T, typename E>
class Backward {
 public:
  using A = typename Accumulator<T>::type;

  Backward(Executor& executor, const DeformConv2dProblem& problem,
           const DeformConv2dPrimals<T>& primals, const T* grad_y,
           const DeformConv2dCotangents<T>& grads)
      : executor_(executor),
        pass_(executor.workers(), problem, primals, grad_y, grads),
        parts_(pass_.parts) {}

  void Run() {
    Shared memory(pass_.Allocate(Arena()));
    pass_.Allocate(memory.arena());
    Begin();
    for (Range phase = {0, 0}; phase.end < parts_.count();) {
      phase = parts_.PhaseAfter(phase);
      pass_.Begin(phase);
      Visit();
    }
    if constexpr (!kSumsInPlace<T>) {
      ParallelForAll(executor_, 0, Rounded(pass_.grads.kernel, pass_.kernel_sums, KernelSize()),
                     Rounded(pass_.grads.bias, pass_.bias_sums, BiasSize()));
    }
  }

 private:
  int64_t KernelSize() const { return pass_.grads.kernel == nullptr ? 0 : pass_.KernelSize(); }
  int64_t BiasSize() const { return pass_.grads.bias == nullptr ? 0 : pass_.problem.features; }
  int64_t ImagesSize(int64_t images) const {
    return pass_.grads.x == nullptr ? 0 : images * pass_.ImageSize();
  }

  // The steps before the first phase.
  void Begin() {
    ParallelForAll(executor_, 0,
                   Cleared(pass_.x_sums, kSumsInPlace<T> ? ImagesSize(pass_.problem.batch) : 0),
                   Cleared(pass_.kernel_sums, KernelSize()), Cleared(pass_.bias_sums, BiasSize()),
                   pass_.kernel.Packing(pass_.want_columns_grad && !pass_.depthwise));
  }

  void Visit() {
    if constexpr (!kSumsInPlace<T>) BeginImages();
    const int64_t groups = pass_.problem.offset_groups, strips = pass_.PhaseStrips();
    ParallelForAll(
        executor_, BackwardStrip<T, E>::ScratchBytes(pass_),
        Items{pass_.want_samples ? strips * groups : 0,
              [&](int64_t item, char* scratch) {
                BackwardStrip<T, E>(pass_, item / groups).Locate(item % groups, scratch);
              }},
        Items{strips, [&](int64_t strip, char*) { BackwardStrip<T, E>(pass_, strip).Prepare(); }});
    for (Range wave = {0, 0}; wave.end < pass_.phase.size();) {
      wave = WaveAfter(wave);
      Shared sums(Allocate(wave, nullptr) * sizeof(A));
      Allocate(wave, sums.arena().template Take<A>(0));
      MakeGradients(wave);
      AddUp(wave);
    }
    if constexpr (!kSumsInPlace<T>) EndImages();
  }

  // A wave: the parts whose sums of the gradient of x are in memory together.
  Range WaveAfter(Range last) const {
    Range wave = {last.end, last.end + 1};
    while (wave.end < pass_.phase.size() &&
           Allocate({wave.begin, wave.end + 1}, nullptr) * sizeof(A) <= kPartSumsBytes) {
      ++wave.end;
    }
    return wave;
  }

  // Counts the numbers of the parts' own sums. A part has own sums if an earlier part of the wave
  // adds to the same images. With memory given, sets the destination of each part.
  int64_t Allocate(Range wave, A* memory) const {
    int64_t size = 0;
    for (int64_t part = wave.begin; part < wave.end; ++part) {
      // A pass without samples has no reaches.
      const Range reach = IsOwn(part, wave) ? ReachOf(part) : Range{0, 0};
      if (memory != nullptr) {
        pass_.part_sums[part] = IsOwn(part, wave) ? memory + size - reach.begin : pass_.x_sums;
      }
      size += reach.size();
    }
    return size;
  }

  bool IsOwn(int64_t part, Range wave) const {
    return pass_.grads.x != nullptr && part > wave.begin &&
           !parts_.BeginsImage(pass_.phase.begin + part);
  }

  Range StripsOf(int64_t part) const {
    return {part * parts_.strips_of_part(), (part + 1) * parts_.strips_of_part()};
  }

  Range ReachOf(int64_t part) const {
    const Range strips = StripsOf(part);
    Range reach = {INT64_MAX, 0};
    const Range* const end = pass_.ReachOf(strips.end, 0);
    for (const Range* part = pass_.ReachOf(strips.begin, 0); part < end; ++part) {
      reach.begin = Min(reach.begin, part->begin);
      reach.end = Max(reach.end, part->end);
    }
    return {Min(reach.begin, reach.end), reach.end};
  }

  void MakeGradients(Range wave) {
    const int64_t parts = wave.size();
    const Items columns = {pass_.want_columns_grad ? pass_.blocks.count() * parts : 0,
                           [&](int64_t item, char* scratch) {
                             const int64_t part = wave.begin + item % parts;
                             const Range cleared = IsOwn(part, wave) ? ReachOf(part) : Range{0, 0};
                             BackwardColumns<T, E>(pass_, item / parts, scratch)
                                 .Run(StripsOf(part), pass_.part_sums[part], cleared);
                           }};
    const bool first = wave.begin == 0 && pass_.grads.kernel != nullptr;
    const int64_t taps = pass_.problem.taps(), ranges = TapRanges();
    const Items kernel = {first ? pass_.blocks.count() * ranges : 0,
                          [&](int64_t item, char* scratch) {
                            const int64_t range = item % ranges;
                            BackwardKernel<T, E>(pass_, item / ranges, scratch)
                                .Run({taps * range / ranges, taps * (range + 1) / ranges});
                          }};
    const int64_t scratch_bytes =
        Max(BackwardColumns<T, E>::ScratchBytes(pass_), BackwardKernel<T, E>::ScratchBytes(pass_));
    if (ranges < parts) {  // items that take longer come first
      ParallelForAll(executor_, scratch_bytes, kernel, columns);
    } else {
      ParallelForAll(executor_, scratch_bytes, columns, kernel);
    }
  }

  // The parts of the taps that make items of their own, so that every worker has some items. No sum
  // depends on their number.
  int64_t TapRanges() const {
    const int64_t items = kItemsOfWorker * executor_.workers();
    return Min(pass_.problem.taps(), CeilDiv(items, pass_.blocks.count()));
  }

  void AddUp(Range wave) {
    Range reach = {INT64_MAX, 0};
    for (int64_t part = wave.begin; part < wave.end; ++part) {
      if (!IsOwn(part, wave)) continue;
      reach.begin = Min(reach.begin, ReachOf(part).begin);
      reach.end = Max(reach.end, ReachOf(part).end);
    }
    const bool last = wave.end == pass_.phase.size();
    const int64_t groups = pass_.problem.offset_groups;
    ParallelForAll(
        executor_, 0,
        Chunks(Max(0, reach.end - reach.begin),
               [&](int64_t begin, int64_t size) {
                 AddParts(wave, {reach.begin + begin, reach.begin + begin + size});
               }),
        Items{last && pass_.want_dots ? pass_.PhaseStrips() * groups : 0,
              [&](int64_t item, char*) {
                BackwardStrip<T, E>(pass_, item / groups).SumDots(item % groups);
              }},
        Chunks(last ? BiasSize() : 0, [&](int64_t begin, int64_t size) { SumBias(begin, size); }));
  }

  // Adds the own sums of the parts to the gradient of x, in the order of the parts.
  void AddParts(Range wave, Range range) const {
    for (int64_t part = wave.begin; part < wave.end; ++part) {
      if (!IsOwn(part, wave)) continue;
      const Range reach = ReachOf(part);
      const int64_t begin = Max(range.begin, reach.begin), end = Min(range.end, reach.end);
      if (begin < end) {
        AddTo(pass_.x_sums + begin, pass_.part_sums[part] + begin, end - begin);
      }
    }
  }

  void SumBias(int64_t begin, int64_t size) const {
    for (int64_t strip = 0; strip < pass_.PhaseStrips(); ++strip) {
      AddTo(pass_.bias_sums + begin, pass_.bias_parts + strip * pass_.problem.features + begin,
            size);
    }
  }

  // Images of a narrower type are kept aside while they are visited: an image may take phases.
  void BeginImages() {
    if (!parts_.BeginsImage(pass_.phase.begin)) return;
    const int64_t left = pass_.problem.batch - pass_.first_image;
    const int64_t images = Min(parts_.phase_images(), left);
    const auto cleared = Cleared(pass_.x_sums, ImagesSize(images));
    if constexpr (BackwardPass<T, E>::kReadInPlace) {
      ParallelForAll(executor_, 0, cleared);
    } else {
      const T* x = pass_.primals.x + pass_.first_image * pass_.ImageSize();
      ParallelForAll(executor_, 0, cleared,
                     Widened(pass_.wide_x, x, pass_.want_x ? images * pass_.ImageSize() : 0));
    }
  }

  void EndImages() const {
    const int64_t end = pass_.phase.end;
    if (pass_.grads.x == nullptr) return;
    if (end < parts_.count() && !parts_.BeginsImage(end)) return;
    const int64_t last = end == parts_.count() ? pass_.problem.batch : parts_.ImageOf(end);
    ParallelForAll(executor_, 0,
                   Rounded(pass_.grads.x + pass_.first_image * pass_.ImageSize(), pass_.x_sums,
                           ImagesSize(last - pass_.first_image)));
  }

  Executor& executor_;
  BackwardPass<T, E> pass_;
  const PixelParts& parts_;
};

template <typename T>
void DeformConv2dBackward(Executor& executor, const DeformConv2dProblem& problem,
                          const DeformConv2dPrimals<T>& primals, const T* grad_y,
                          const DeformConv2dCotangents<T>& grads) {
  using A = typename Accumulator<T>::type;
  if constexpr (kMayPair<T>) {
    if (MakesPairs(problem)) return Backward<T, T>(executor, problem, primals, grad_y, grads).Run();
  }
  Backward<T, A>(executor, problem, primals, grad_y, grads).Run();
}

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_DEFORM_CONV2D_BACKWARD_H_
