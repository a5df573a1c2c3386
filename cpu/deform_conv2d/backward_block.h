// SPDX-License-Identifier: MIT
// What one thread does in a backward pass: a block of channels, a strip of pixels after the other.
#ifndef JAX_DCN_CPU_DEFORM_CONV2D_BACKWARD_BLOCK_H_
#define JAX_DCN_CPU_DEFORM_CONV2D_BACKWARD_BLOCK_H_

#include <cstdint>

#include "cpu/deform_conv2d/backward_pass.h"
#include "cpu/deform_conv2d/depthwise.h"
#include "cpu/runtime/gemm.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/simd.h"
#include "cpu/sampling/samples.h"

namespace jax_dcn::JAX_DCN_ISA {

template <typename T>
class BackwardBlock {
 public:
  using A = typename Accumulator<T>::type;

  static int64_t ScratchBytes(const BackwardPass<T>& pass) {
    return BackwardBlock(pass, 0, nullptr).scratch_bytes_;
  }

  BackwardBlock(const BackwardPass<T>& pass, int64_t index, char* scratch)
      : pass_(pass),
        problem_(pass.problem),
        index_(index),
        block_(pass.blocks[index]),
        depthwise_(IsDepthwise(pass.problem)) {
    Arena arena(scratch);
    const int64_t channels = pass.blocks.most_channels(), pixels = pass.strip_pixels;
    columns_ = arena.Take<A>(pixels * channels);
    rows_ = arena.Take<int32_t>(pixels);
    right_ = arena.Take<A>(depthwise_ ? 0 : MostPieces() * FeaturePanels() * pixels * kPanel<A>);
    wide_ = arena.Take<A>(kSumsInPlace<T> ? 0 : pixels * problem_.features);
    zeros_ = arena.Take<A>(Max(channels, kPanel<A>));
    nowhere_ = arena.Take<A>(channels);
    scratch_bytes_ = arena.bytes();
  }

  void Run(Range pixels) {
    __builtin_memset(zeros_, 0, Max(block_.channels.size(), kPanel<A>) * sizeof(A));
    __builtin_memset(nowhere_, 0, block_.channels.size() * sizeof(A));
    // Strips of equal size: a short last one would waste its packing.
    const int64_t most = CeilDiv(pixels.size(), pass_.strip_pixels);
    const int64_t strip_pixels = RoundUp(CeilDiv(pixels.size(), most), kTileRows);
    const int64_t strips = CeilDiv(pixels.size(), strip_pixels);
    // Neighbouring blocks add to neighbouring lines of cache. Processors fetch the next line too,
    // and would take them from each other all the time, so every other block starts halfway.
    const int64_t first = index_ % 2 * (strips / 2);
    for (int64_t i = 0; i < strips; ++i) {
      const int64_t begin = pixels.begin + (first + i) % strips * strip_pixels;
      const Range strip = {begin, Min(begin + strip_pixels, pixels.end)};
      ReadGradY(strip);
      for (int64_t tap = 0; tap < problem_.taps(); ++tap) {
        ListRows(strip.begin - pixels.begin, strip.size(), tap);
        if (pass_.want_columns_grad) MultiplyByKernel(tap);
        VisitSamples(strip.begin - pixels.begin, tap);
        if (pass_.grads.kernel != nullptr) AddToKernelGrad(strip, tap);
      }
    }
  }

 private:
  int64_t FeaturePanels() const { return CeilDiv(problem_.group_features(), kPanel<A>); }

  int64_t MostPieces() const {
    int64_t most = 0;
    for (int64_t i = 0; i < pass_.blocks.count(); ++i) {
      int64_t pieces = 0;
      pass_.blocks[i].ForEachPiece(problem_, [&](const Piece&) { ++pieces; });
      most = Max(most, pieces);
    }
    return most;
  }

  void ReadGradY(Range strip) {
    const int64_t features = problem_.features, group_features = problem_.group_features();
    const T* grad_y = pass_.grad_y + strip.begin * features;
    if constexpr (kSumsInPlace<T>) {
      grad_y_ = grad_y;
    } else {
      Widen(wide_, grad_y, strip.size() * features);
      grad_y_ = wide_;
    }
    if (pass_.grads.kernel == nullptr || depthwise_) return;
    A* panel = right_;
    block_.ForEachPiece(problem_, [&](const Piece& piece) {
      for (int64_t o = 0; o < group_features; o += kPanel<A>) {
        const A* rows = grad_y_ + piece.feature_group * group_features + o;
        panel = PackRows(rows, strip.size(), features, Min(kPanel<A>, group_features - o), panel);
      }
    });
  }

  // The columns of a tap are of those pixels whose sample lies inside the image. `local` is the
  // first pixel of the strip, counted from the first that are visited together.
  void ListRows(int64_t local, int64_t pixels, int64_t tap) {
    row_count_ = 0;
    for (int64_t i = 0; i < pixels; ++i) {
      rows_[row_count_] = static_cast<int32_t>(i);
      row_count_ += !IsZero(*pass_.SampleAt(local + i, block_.offset_groups.begin, tap));
    }
  }

  // The gradient of one tap's columns: grad_y times the transposed kernel.
  void MultiplyByKernel(int64_t tap) const {
    const int64_t channels = block_.channels.size(), group_features = problem_.group_features();
    if (depthwise_) return MultiplyDepthwise(tap);
    const A* panel = pass_.kernel.Tap(index_, tap);
    block_.ForEachPiece(problem_, [&](const Piece& piece) {
      const LeftMatrix<A> left = {grad_y_ + piece.feature_group * group_features, problem_.features,
                                  group_features, rows_};
      A* columns = columns_ + piece.channels.begin - block_.channels.begin;
      for (int64_t c = 0; c < piece.channels.size(); c += kPanel<A>) {
        MultiplyPanel<A, false>(row_count_, left, panel, {zeros_, 0},
                                {columns + c, channels, Min(kPanel<A>, piece.channels.size() - c)});
        panel += group_features * kPanel<A>;
      }
    });
  }

  void MultiplyDepthwise(int64_t tap) const {
    const int64_t channels = block_.channels.size(), features = problem_.features;
    const A* grad_y = grad_y_ + block_.channels.begin;
    const T* kernel = pass_.primals.kernel + tap * features + block_.channels.begin;
    __builtin_memset(columns_, 0, row_count_ * channels * sizeof(A));
    for (int64_t i = 0; i < row_count_; ++i) {
      DepthwiseProduct<T, A> product = {grad_y + rows_[i] * features, 0, kernel, 0, 1,
                                        columns_ + i * channels};
      Vectorised<A>(channels, product);
    }
  }

  // For each sample of one tap: its dot products, its part of the gradient of x, and its column.
  void VisitSamples(int64_t local, int64_t tap) const {
    WithFlag(pass_.want_dots, [&](auto dots) {
      WithFlag(pass_.grads.x != nullptr, [&](auto sums) {
        WithFlag(pass_.grads.kernel != nullptr, [&](auto column) {
          using Gradients = SampleGradients<dots.value, sums.value, column.value, A>;
          VisitSamples<Gradients>(local, tap);
        });
      });
    });
  }

  template <typename Gradients>
  __attribute__((noinline)) void VisitSamples(int64_t local, int64_t tap) const {
    const int64_t channels = block_.channels.size(), group = block_.offset_groups.begin;
    const A* x = pass_.want_x ? pass_.x + block_.channels.begin : nullptr;
    A* x_sums = pass_.grads.x != nullptr ? pass_.x_sums + block_.channels.begin : nullptr;
    A* column = columns_;
    for (int64_t i = 0; i < row_count_; ++i, column += channels) {
      const int64_t pixel = local + rows_[i];
      const MaskedSample<A>& sample = *pass_.SampleAt(pixel, group, tap);
      Gradients gradients(CornersOf<A, const A>(sample, x, zeros_),
                          ValueWeights(sample, sample.mask),
                          CornersOf<A, A>(sample, x_sums, nowhere_), column);
      Vectorised<A>(channels, gradients);
      if (pass_.want_dots) gradients.StoreDots(pass_.DotsAt(index_, pixel, tap));
    }
  }

  void AddToKernelGrad(Range strip, int64_t tap) const {
    const int64_t channels = block_.channels.size();
    const int64_t features = problem_.features, group_features = problem_.group_features();
    if (depthwise_) return AddDepthwiseKernelGrad(tap);
    const A* panel = right_;
    block_.ForEachPiece(problem_, [&](const Piece& piece) {
      const LeftMatrix<A> columns = {columns_ + piece.channels.begin - block_.channels.begin,
                                     channels, row_count_, rows_};
      A* sums = pass_.kernel_sums + KernelIndex(problem_, piece, tap, 0);
      for (int64_t o = 0; o < group_features; o += kPanel<A>) {
        MultiplyPanel<A, true>(piece.channels.size(), columns, panel, {sums + o, features},
                               {sums + o, features, Min(kPanel<A>, group_features - o)});
        panel += strip.size() * kPanel<A>;
      }
    });
  }

  void AddDepthwiseKernelGrad(int64_t tap) const {
    const int64_t channels = block_.channels.size(), features = problem_.features;
    A* sums = pass_.kernel_sums + tap * features + block_.channels.begin;
    for (int64_t i = 0; i < row_count_; ++i) {
      const A* grad_y = grad_y_ + rows_[i] * features + block_.channels.begin;
      DepthwiseProduct<A, A> product = {columns_ + i * channels, 0, grad_y, 0, 1, sums};
      Vectorised<A>(channels, product);
    }
  }

  const BackwardPass<T>& pass_;
  const DeformConv2dProblem& problem_;
  const int64_t index_;
  const ChannelBlock block_;
  const bool depthwise_;
  const A* grad_y_ = nullptr;  // [strip pixels, O]
  A* columns_;                 // [rows, channels]: their gradient, in its place the columns
  int32_t* rows_;              // pixels of the strip that the columns are of
  int64_t row_count_ = 0;
  A* right_;    // panels of grad_y, [feature panels, strip pixels, kPanel] for each piece
  A* wide_;     // [strip pixels, O], where grad_y is narrower
  A* zeros_;    // [channels], at least kPanel
  A* nowhere_;  // [channels]
  int64_t scratch_bytes_;
};

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_DEFORM_CONV2D_BACKWARD_BLOCK_H_
