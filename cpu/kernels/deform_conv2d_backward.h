// SPDX-License-Identifier: MIT
// Gradients of deformable convolution.
//
// Blocks of channels run in parallel, each over all pixels in order. A block owns its channels of
// the gradients of x and of the kernel, so that nothing is added to by two threads and sums do not
// depend on the number of threads. What the gradients of offset and mask need of a block are four
// dot products a sample, which a second loop sums over the blocks.
#ifndef JAX_DCN_CPU_KERNELS_DEFORM_CONV2D_BACKWARD_H_
#define JAX_DCN_CPU_KERNELS_DEFORM_CONV2D_BACKWARD_H_

#include <cstdint>

#include "common/deform_conv2d.h"
#include "cpu/kernels/channel_blocks.h"
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/parallel.h"
#include "cpu/kernels/samples.h"
#include "cpu/kernels/simd.h"
#include "cpu/kernels/strips.h"

namespace jax_dcn::JAX_DCN_ISA {

// Channels of a backward block: two panels, and two lines of cache in each pixel that is sampled.
constexpr int64_t kBackwardChannels = 32;
// Samples and dot products of as many pixels as fit in this are shared by the blocks.
constexpr int64_t kSharedBytes = 2 << 20;
// Numbers that one thread clears or rounds at a time.
constexpr int64_t kChunk = 1 << 16;

template <typename T>
class Backward {
 public:
  using A = typename Accumulator<T>::type;

  Backward(const DeformConv2dProblem& problem, const DeformConv2dPrimals<T>& primals,
           const T* grad_y, const DeformConv2dCotangents<T>& grads)
      : problem_(problem),
        primals_(primals),
        grad_y_(grad_y),
        grads_(grads),
        blocks_(problem, kBackwardChannels, kLanes<A>),
        want_dots_(grads.offset != nullptr || grads.mask != nullptr),
        want_columns_grad_(want_dots_ || grads.x != nullptr),
        strip_pixels_(StripPixels(problem, problem.features * sizeof(A))),
        shared_pixels_(SharedPixels(problem)) {}

  void Run(Executor& executor) {
    if (grads_.bias != nullptr) SumBias(executor);
    if (!want_columns_grad_ && grads_.kernel == nullptr) return;

    Shared memory(Allocate(Arena()));
    Allocate(memory.arena());
    if constexpr (kSumsInPlace<T>) {
      x_sums_ = grads_.x;
      kernel_sums_ = grads_.kernel;
      Clear(executor, x_sums_, problem_.batch * ImageSize());
    }
    Clear(executor, kernel_sums_, KernelSize());
    if (want_columns_grad_) PackKernel(executor);
    for (Range pixels = {0, 0}; pixels.end < problem_.pixels();) {
      pixels = After(pixels);
      if (!kSumsInPlace<T>) BeginImages(executor, pixels);
      Locate(executor, pixels);
      ParallelFor(executor, blocks_.count(), BlockScratch(nullptr).bytes,
                  [this, pixels](int64_t block, char* scratch) {
                    Block(block, pixels, BlockScratch(scratch));
                  });
      if (want_dots_) SumDots(executor, pixels);
      if (!kSumsInPlace<T>) EndImages(executor, pixels);
    }
    if (!kSumsInPlace<T>) Round(executor, grads_.kernel, kernel_sums_, KernelSize());
  }

 private:
  struct Scratch {
    A* columns;  // [strip pixels, channels]: their gradient, then in its place the columns
    A* right;    // panels of grad_y, [feature panels, strip pixels, kPanel] for each piece
    A* grad_y;   // [strip pixels, O], unless it is of the type of sums
    T* zeros;    // [channels]
    A* nowhere;  // [channels]
    int64_t bytes;
  };

  int64_t SharedPixels(const DeformConv2dProblem& problem) const {
    const int64_t bytes = problem.taps() * (problem.offset_groups * sizeof(BilinearSample<A>) +
                                            blocks_.count() * kCorners * sizeof(A));
    return Max(1, Min(1024, kSharedBytes / bytes) / strip_pixels_) * strip_pixels_;
  }

  // The pixels that are visited next. Where the sums of x are kept aside, these are whole images,
  // or a part of one.
  Range After(Range last) const {
    const int64_t begin = last.end, image = problem_.out_height * problem_.out_width;
    int64_t end = Min(begin + shared_pixels_, problem_.pixels());
    if (!kSumsInPlace<T>) {
      const int64_t whole = end / image * image;
      end = whole > begin ? whole : Min(end, RoundUp(begin + 1, image));
    }
    return {begin, end};
  }

  bool AtImage(int64_t pixel) const {
    return pixel % (problem_.out_height * problem_.out_width) == 0;
  }

  void BeginImages(Executor& executor, Range pixels) {
    if (grads_.x == nullptr || !AtImage(pixels.begin)) return;
    first_image_ = problem_.ImageOf(pixels.begin);
    Clear(executor, x_sums_, SharedImages() * ImageSize());
  }

  void EndImages(Executor& executor, Range pixels) const {
    if (grads_.x == nullptr || !AtImage(pixels.end)) return;
    const int64_t images = problem_.ImageOf(pixels.end) - first_image_;
    Round(executor, grads_.x + first_image_ * ImageSize(), x_sums_, images * ImageSize());
  }

  int64_t SharedImages() const {
    return Max(1, shared_pixels_ / (problem_.out_height * problem_.out_width));
  }

  int64_t ImageSize() const { return problem_.image_pixels() * problem_.channels; }

  int64_t KernelSize() const {
    return problem_.taps() * problem_.group_channels() * problem_.features;
  }

  int64_t PiecePanels(const Piece& piece) const {
    return CeilDiv(piece.channels.size(), kPanel<A>);
  }

  int64_t FeaturePanels() const { return CeilDiv(problem_.group_features(), kPanel<A>); }

  // Floats of one tap of a block in the packed kernel.
  int64_t PackedTapSize(const ChannelBlock& block) const {
    int64_t size = 0;
    block.ForEachPiece(problem_, [&](const Piece& piece) {
      size += PiecePanels(piece) * problem_.group_features() * kPanel<A>;
    });
    return size;
  }

  int64_t Allocate(Arena arena) {
    const int64_t taps = problem_.taps(), blocks = blocks_.count();
    samples_ = arena.Take<BilinearSample<A>>(shared_pixels_ * problem_.offset_groups * taps);
    dots_ = arena.Take<A>(want_dots_ ? blocks * shared_pixels_ * taps * kCorners : 0);
    packed_offsets_ = arena.Take<int64_t>(blocks + 1);
    int64_t packed = 0;
    for (int64_t i = 0; i < blocks; ++i) packed += taps * PackedTapSize(blocks_[i]);
    packed_kernel_ = arena.Take<A>(want_columns_grad_ ? packed : 0);
    if (!kSumsInPlace<T>) {
      x_sums_ = arena.Take<A>(grads_.x == nullptr ? 0 : SharedImages() * ImageSize());
      kernel_sums_ = arena.Take<A>(KernelSize());
    }
    return arena.bytes();
  }

  Scratch BlockScratch(char* memory) const {
    Arena arena(memory);
    int64_t most_pieces = 0;
    for (int64_t i = 0; i < blocks_.count(); ++i) {
      int64_t pieces = 0;
      blocks_[i].ForEachPiece(problem_, [&](const Piece&) { ++pieces; });
      most_pieces = Max(most_pieces, pieces);
    }
    Scratch scratch;
    scratch.columns = arena.Take<A>(strip_pixels_ * blocks_.most_channels());
    scratch.right = arena.Take<A>(most_pieces * FeaturePanels() * strip_pixels_ * kPanel<A>);
    scratch.grad_y = arena.Take<A>(kSumsInPlace<T> ? 0 : strip_pixels_ * problem_.features);
    scratch.zeros = arena.Take<T>(blocks_.most_channels());
    scratch.nowhere = arena.Take<A>(blocks_.most_channels());
    scratch.bytes = arena.bytes();
    return scratch;
  }

  static void Clear(Executor& executor, A* sums, int64_t size) {
    if (sums == nullptr) return;
    ParallelFor(executor, CeilDiv(size, kChunk), 0, [=](int64_t chunk, char*) {
      const int64_t begin = chunk * kChunk;
      __builtin_memset(sums + begin, 0, Min(kChunk, size - begin) * sizeof(A));
    });
  }

  static void Round(Executor& executor, T* result, const A* sums, int64_t size) {
    if (result == nullptr) return;
    ParallelFor(executor, CeilDiv(size, kChunk), 0, [=](int64_t chunk, char*) {
      const int64_t begin = chunk * kChunk;
      RoundInto(result + begin, sums + begin, Min(kChunk, size - begin));
    });
  }

  void SumBias(Executor& executor) const {
    constexpr int64_t kFeatures = 64, kPixels = 256;
    const int64_t features = problem_.features;
    ParallelFor(executor, CeilDiv(features, kFeatures), 0, [&](int64_t item, char*) {
      const Range range = {item * kFeatures, Min((item + 1) * kFeatures, features)};
      A total[kFeatures] = {};
      for (int64_t begin = 0; begin < problem_.pixels(); begin += kPixels) {
        // Sums of sums: rounding errors grow with the length of each, not of both.
        A sums[kFeatures] = {};
        for (int64_t p = begin; p < Min(begin + kPixels, problem_.pixels()); ++p) {
          const T* row = grad_y_ + p * features + range.begin;
          for (int64_t o = 0; o < range.size(); ++o) sums[o] += ToFloat(row[o]);
        }
        for (int64_t o = 0; o < range.size(); ++o) total[o] += sums[o];
      }
      for (int64_t o = 0; o < range.size(); ++o)
        grads_.bias[range.begin + o] = FromFloat<T>::Round(total[o]);
    });
  }

  // The kernel transposed, in panels: [block][tap][piece][channel panel][feature][kPanel].
  void PackKernel(Executor& executor) {
    const int64_t taps = problem_.taps();
    packed_offsets_[0] = 0;
    for (int64_t i = 0; i < blocks_.count(); ++i) {
      packed_offsets_[i + 1] = packed_offsets_[i] + taps * PackedTapSize(blocks_[i]);
    }
    ParallelFor(executor, blocks_.count() * taps, 0, [&](int64_t item, char*) {
      const int64_t tap = item % taps;
      A* panel = PackedTap(item / taps, tap);
      blocks_[item / taps].ForEachPiece(problem_, [&](const Piece& piece) {
        for (int64_t c = 0; c < piece.channels.size(); c += kPanel<A>) {
          const int64_t width = Min(kPanel<A>, piece.channels.size() - c);
          panel = PackTransposed(primals_.kernel + KernelIndex(piece, tap, c),
                                 problem_.group_features(), problem_.features, width, panel);
        }
      });
    });
  }

  A* PackedTap(int64_t block, int64_t tap) const {
    return packed_kernel_ + packed_offsets_[block] + tap * PackedTapSize(blocks_[block]);
  }

  // Of channel `c` of a piece and the first feature of its group.
  int64_t KernelIndex(const Piece& piece, int64_t tap, int64_t c) const {
    const int64_t group_channels = problem_.group_channels();
    const int64_t channel = piece.channels.begin + c - piece.feature_group * group_channels;
    return (tap * group_channels + channel) * problem_.features +
           piece.feature_group * problem_.group_features();
  }

  void Locate(Executor& executor, Range pixels) const {
    const int64_t groups = problem_.offset_groups, taps = problem_.taps();
    ParallelFor(executor, CeilDiv(pixels.size(), strip_pixels_), 0, [&](int64_t strip, char*) {
      const int64_t begin = pixels.begin + strip * strip_pixels_;
      BilinearSample<A>* samples = samples_ + (begin - pixels.begin) * groups * taps;
      for (int64_t p = begin; p < Min(begin + strip_pixels_, pixels.end); ++p) {
        for (int64_t group = 0; group < groups; ++group, samples += taps) {
          LocateTaps(problem_, primals_.offset, p, group, samples);
        }
      }
    });
  }

  void Block(int64_t index, Range pixels, const Scratch& scratch) const {
    const ChannelBlock block = blocks_[index];
    __builtin_memset(scratch.zeros, 0, block.channels.size() * sizeof(T));
    __builtin_memset(scratch.nowhere, 0, block.channels.size() * sizeof(A));
    // Strips of equal size: a short last one would waste its packing.
    const int64_t strips = CeilDiv(pixels.size(), strip_pixels_);
    const int64_t strip_pixels = RoundUp(CeilDiv(pixels.size(), strips), kTileRows);
    for (int64_t begin = pixels.begin; begin < pixels.end; begin += strip_pixels) {
      const Range strip = {begin, Min(begin + strip_pixels, pixels.end)};
      const A* grad_y = WideGradY(strip, scratch);
      if (grads_.kernel != nullptr) PackGradY(block, strip, scratch);
      for (int64_t tap = 0; tap < problem_.taps(); ++tap) {
        if (want_columns_grad_) MultiplyByKernel(index, block, strip, tap, grad_y, scratch);
        VisitSamples(index, block, pixels.begin, strip, tap, scratch);
        if (grads_.kernel != nullptr) AddToKernelGrad(block, strip, tap, scratch);
      }
    }
  }

  const A* WideGradY(Range strip, const Scratch& scratch) const {
    const T* grad_y = grad_y_ + strip.begin * problem_.features;
    if constexpr (kSumsInPlace<T>) {
      return grad_y;
    } else {
      Widen(scratch.grad_y, grad_y, strip.size() * problem_.features);
      return scratch.grad_y;
    }
  }

  void PackGradY(const ChannelBlock& block, Range strip, const Scratch& scratch) const {
    const int64_t features = problem_.features, group_features = problem_.group_features();
    A* panel = scratch.right;
    block.ForEachPiece(problem_, [&](const Piece& piece) {
      for (int64_t o = 0; o < group_features; o += kPanel<A>) {
        const T* rows = grad_y_ + strip.begin * features + piece.feature_group * group_features + o;
        panel = PackRows(rows, strip.size(), features, Min(kPanel<A>, group_features - o), panel);
      }
    });
  }

  // The gradient of one tap's columns: grad_y times the transposed kernel.
  void MultiplyByKernel(int64_t index, const ChannelBlock& block, Range strip, int64_t tap,
                        const A* grad_y, const Scratch& scratch) const {
    const int64_t channels = block.channels.size(), group_features = problem_.group_features();
    const A* panel = PackedTap(index, tap);
    __builtin_memset(scratch.columns, 0, strip.size() * channels * sizeof(A));
    block.ForEachPiece(problem_, [&](const Piece& piece) {
      const LeftMatrix<A> left = {grad_y + piece.feature_group * group_features, problem_.features,
                                  1, 0, group_features};
      for (int64_t c = 0; c < piece.channels.size(); c += kPanel<A>) {
        MultiplyPanel<A, false>(strip.size(), left, panel,
                                {scratch.columns + piece.channels.begin - block.channels.begin + c,
                                 channels, Min(kPanel<A>, piece.channels.size() - c)});
        panel += group_features * kPanel<A>;
      }
    });
  }

  // For each sample of one tap: its dot products, its part of the gradient of x, and its column.
  void VisitSamples(int64_t index, const ChannelBlock& block, int64_t first_pixel, Range strip,
                    int64_t tap, const Scratch& scratch) const {
    WithFlag(want_dots_, [&](auto dots) {
      WithFlag(grads_.x != nullptr, [&](auto sums) {
        WithFlag(grads_.kernel != nullptr, [&](auto column) {
          using Gradients = SampleGradients<dots.value, sums.value, column.value, T, A>;
          VisitSamples<Gradients>(index, block, first_pixel, strip, tap, scratch);
        });
      });
    });
  }

  template <typename Gradients>
  void VisitSamples(int64_t index, const ChannelBlock& block, int64_t first_pixel, Range strip,
                    int64_t tap, const Scratch& scratch) const {
    const int64_t channels = block.channels.size(), taps = problem_.taps();
    A* column = scratch.columns;
    for (int64_t pixel = strip.begin; pixel < strip.end; ++pixel, column += channels) {
      const int64_t local = pixel - first_pixel, image = problem_.ImageOf(pixel);
      const BilinearSample<A>& sample =
          samples_[(local * problem_.offset_groups + block.offset_group) * taps + tap];
      const T* x = primals_.x + image * ImageSize() + block.channels.begin;
      CornerSums<A> sums = {};
      if (grads_.x != nullptr) {
        A* image_sums = x_sums_ + (image - first_image_) * ImageSize() + block.channels.begin;
        sums = CornerSumsOf(sample, image_sums, problem_.channels, scratch.nowhere);
      }
      Gradients gradients = {
          CornersOf(sample, x, problem_.channels, scratch.zeros),
          ValueWeights(sample, MaskAt<T, A>(problem_, primals_, pixel, block.offset_group, tap)),
          sums, column};
      Vectorised<A>(channels, gradients);
      if (want_dots_) gradients.StoreDots(DotsAt(index, local, tap));
    }
  }

  void AddToKernelGrad(const ChannelBlock& block, Range strip, int64_t tap,
                       const Scratch& scratch) const {
    const int64_t features = problem_.features, group_features = problem_.group_features();
    const A* panel = scratch.right;
    block.ForEachPiece(problem_, [&](const Piece& piece) {
      const LeftMatrix<A> columns = {scratch.columns + piece.channels.begin - block.channels.begin,
                                     block.channels.size(), 1, 0, strip.size()};
      for (int64_t o = 0; o < group_features; o += kPanel<A>) {
        MultiplyPanel<A, true>(piece.channels.size(), columns, panel,
                               {kernel_sums_ + KernelIndex(piece, tap, 0) + o, features,
                                Min(kPanel<A>, group_features - o)});
        panel += strip.size() * kPanel<A>;
      }
    });
  }

  A* DotsAt(int64_t block, int64_t local_pixel, int64_t tap) const {
    return dots_ + ((block * shared_pixels_ + local_pixel) * problem_.taps() + tap) * kCorners;
  }

  void SumDots(Executor& executor, Range pixels) const {
    ParallelFor(executor, CeilDiv(pixels.size(), strip_pixels_), 0, [&](int64_t strip, char*) {
      const int64_t begin = pixels.begin + strip * strip_pixels_;
      for (int64_t p = begin; p < Min(begin + strip_pixels_, pixels.end); ++p) {
        for (int64_t group = 0; group < problem_.offset_groups; ++group) {
          for (int64_t tap = 0; tap < problem_.taps(); ++tap) {
            SumDotsOf(p, p - pixels.begin, group, tap);
          }
        }
      }
    });
  }

  void SumDotsOf(int64_t pixel, int64_t local, int64_t group, int64_t tap) const {
    A dots[kCorners] = {};
    for (int64_t b = group * blocks_.per_group(); b < (group + 1) * blocks_.per_group(); ++b) {
      const A* part = DotsAt(b, local, tap);
      for (int i = 0; i < kCorners; ++i) dots[i] += part[i];
    }
    const BilinearSample<A>& sample =
        samples_[(local * problem_.offset_groups + group) * problem_.taps() + tap];
    const A mask = MaskAt<T, A>(problem_, primals_, pixel, group, tap);
    const int64_t index = problem_.SampleIndex(pixel, group, tap);
    if (grads_.mask != nullptr) grads_.mask[index] = Combine(ValueWeights(sample, A(1)), dots);
    if (grads_.offset != nullptr) {
      grads_.offset[2 * index] = Combine(DerivativeWeights(sample, mask, A(0)), dots);
      grads_.offset[2 * index + 1] = Combine(DerivativeWeights(sample, A(0), mask), dots);
    }
  }

  const DeformConv2dProblem& problem_;
  const DeformConv2dPrimals<T>& primals_;
  const T* const grad_y_;
  const DeformConv2dCotangents<T>& grads_;
  const ChannelBlocks blocks_;
  const bool want_dots_, want_columns_grad_;
  const int64_t strip_pixels_, shared_pixels_;
  BilinearSample<A>* samples_ = nullptr;  // [shared pixels, G, K]
  A* dots_ = nullptr;                     // [blocks, shared pixels, K, 4]
  A* packed_kernel_ = nullptr;
  A* x_sums_ = nullptr;       // of the images from first_image_ on
  A* kernel_sums_ = nullptr;  // [K, C / groups, O]
  int64_t first_image_ = 0;
  int64_t* packed_offsets_ = nullptr;  // of each block in it
};

template <typename T>
void DeformConv2dBackward(Executor& executor, const DeformConv2dProblem& problem,
                          const DeformConv2dPrimals<T>& primals, const T* grad_y,
                          const DeformConv2dCotangents<T>& grads) {
  Backward<T>(problem, primals, grad_y, grads).Run(executor);
}

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_KERNELS_DEFORM_CONV2D_BACKWARD_H_
