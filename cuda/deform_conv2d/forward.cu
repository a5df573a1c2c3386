// SPDX-License-Identifier: MIT
// Fused forward pass: samples go straight into shared memory, and from there through the tensor
// cores. Columns never exist in device memory.

#include "cuda/deform_conv2d/fused.h"
#include "cuda/deform_conv2d/locate.cuh"
#include "cuda/runtime/launch.cuh"
#include "cuda/runtime/matrix.cuh"
#include "cuda/runtime/pipeline.cuh"
#include "cuda/runtime/vector.cuh"
#include "cuda/sampling/sample.cuh"

namespace jax_dcn {
namespace {

// A block computes kPixels x kFeatures of y, as a sum of products over steps: one tap of kChannels
// channels each. None of these sizes has been measured yet.
//
// Registers and shared memory of one block leave room for a second one on a multiprocessor with 164
// KB or more of shared memory, so that one block samples while the other multiplies.
template <typename T, int kTileFeatures>
struct ForwardTile {
  static constexpr int kPixels = 64;
  static constexpr int kFeatures = kTileFeatures;
  static constexpr int kThreads = BlockProduct<kPixels, kFeatures>::kThreads;
  static constexpr int kVectors = SwizzledMatrix<T>::kRowVectors;  // of channels, in a step
  static constexpr int kChannels = kVectors * kVector<T>;
  static constexpr int kTaps = 9;  // located at a time

  static constexpr int kKernelStride = kFeatures + 8;
  static constexpr int kYStride = kFeatures + 8;
  static constexpr int kColumns = kPixels * kChannels;        // elements of a step
  static constexpr int kKernel = kChannels * kKernelStride;   // elements of a step
  static constexpr int kRowVectors = kFeatures / kVector<T>;  // of a row of the kernel, or of y
  static constexpr int kRowsAtOnce = kThreads / kRowVectors;  // rows that the threads copy
  static constexpr int kCopies = kChannels / kRowsAtOnce;     // of a thread, in a step
  static constexpr int kPipelineBytes = (kBuffers * kColumns + kStages * kKernel) * sizeof(T);
  static constexpr int kSharedBytes = kPipelineBytes + kPixels * kTaps * sizeof(Sample<float>);

  using Product = BlockProduct<kPixels, kFeatures>;

  static_assert(kPixels * kVectors == kThreads, "one vector of a step for each thread");
  static_assert(kChannels % kRowsAtOnce == 0, "all threads copy equally often");
  static_assert(kPixels * kYStride * sizeof(T) <= kSharedBytes, "y takes the place of the rest");
  static_assert(kSharedBytes <= kMostSharedBytes, "every GPU can hold a block");
};

// The sum's terms in order: taps are innermost, so that the pixels that neighbouring taps share are
// still in the cache, but no more taps than can be located at a time.
template <typename Tile>
class TapSteps {
 public:
  __device__ __forceinline__ explicit TapSteps(const DeformConv2dSizes& sizes)
      : taps_(sizes.taps), channels_(sizes.group_channels), end_(min(Tile::kTaps, sizes.taps)) {}

  __device__ __forceinline__ bool done() const { return tap_ >= taps_; }
  __device__ __forceinline__ int tap() const { return tap_; }
  __device__ __forceinline__ int first_tap() const { return first_tap_; }
  __device__ __forceinline__ int located_taps() const { return end_ - first_tap_; }
  __device__ __forceinline__ int channel() const { return channel_; }

  __device__ __forceinline__ void Advance() {
    if (++tap_ < end_) return;
    channel_ += Tile::kChannels;
    if (channel_ == channels_) {
      channel_ = 0;
      first_tap_ = end_;
      end_ = min(end_ + Tile::kTaps, taps_);
    }
    tap_ = first_tap_;
  }

 private:
  const int taps_, channels_;
  int first_tap_ = 0, end_, tap_ = 0, channel_ = 0;
};

// One block's part of y, and how its threads work on it.
template <typename T, typename Tile>
class ForwardBlock {
 public:
  using Steps = TapSteps<Tile>;

  __device__ __forceinline__ ForwardBlock(const DeformConv2dSizes& sizes,
                                          const DeformConv2dPrimals<T>& primals)
      : sizes_(sizes), primals_(primals) {
    const int tiles = (sizes.group_features + Tile::kFeatures - 1) / Tile::kFeatures;  // of a group
    const int all_tiles = tiles * sizes.feature_groups;
    const int pixel_tile = blockIdx.x / all_tiles, tile = blockIdx.x % all_tiles;
    const int group = tile / tiles, first_of_group = tile % tiles * Tile::kFeatures;
    first_pixel_ = pixel_tile * Tile::kPixels;
    first_channel_ = group * sizes.group_channels;
    first_feature_ = group * sizes.group_features + first_of_group;
    features_ = min(sizes.group_features - first_of_group, Tile::kFeatures);
    channels_ = primals.x + first_channel_ + Vector() * kVector<T>;
    kernel_ = primals.kernel + CopyRow() * sizes.features + first_feature_ + CopyFeature();
    column_ = Kept(SwizzledMatrix<T>::OffsetOf(Row(), Vector() * kVector<T>));
    copy_ = Kept(CopyRow() * Tile::kKernelStride + CopyFeature());
    sample_ = Kept(Row() * Tile::kTaps);
  }

  __device__ __forceinline__ Steps AllSteps() const { return Steps(sizes_); }

  // Locates the samples of the step's taps, unless they are in shared memory already.
  __device__ __forceinline__ void Locate(const Steps& step) {
    const int group = sizes_.by_offset_group_channels.Quotient(first_channel_ + step.channel());
    if (group == located_group_ && step.first_tap() == located_tap_) return;
    located_group_ = group;
    located_tap_ = step.first_tap();
    int i = threadIdx.x;
    do {
      const int pixel = first_pixel_ + i / Tile::kTaps, tap = i % Tile::kTaps;
      const bool exists = pixel < sizes_.pixels() && tap < step.located_taps();
      Samples()[i] = exists ? LocateSample(sizes_, primals_, pixel, group, located_tap_ + tap)
                            : NoSample<float>();
      i += Tile::kThreads;
    } while (i < Tile::kPixels * Tile::kTaps);
    __syncthreads();
  }

  __device__ __forceinline__ CornerChannels<T> Read(const Steps& step) const {
    return LoadCorners<kVector<T>>(InShared<SampleCorners>(SampleOfThread(step)),
                                   channels_ + step.channel(), sizes_.pixel_bytes);
  }

  // Writes the thread's part of the step's columns.
  __device__ __forceinline__ void Write(const Steps& step, const CornerChannels<T>& corners,
                                        int buffer) const {
    StoreShared(Columns(buffer).At(column_),
                PackFactor(Interpolate(InShared(SampleOfThread(step)), corners)));
  }

  // Starts to copy the step's part of the kernel.
  __device__ __forceinline__ void Copy(const Steps& step, int stage) const {
    const int row = step.tap() * sizes_.group_channels + step.channel();
    const T* const kernel = RowsAfter(kernel_, row, sizes_.features_bytes);
    T* const shared = Kernel(stage).data + copy_;
#pragma unroll
    for (int i = 0; i < Tile::kCopies; ++i) {
      const int row = i * Tile::kRowsAtOnce;
      CopyAsync(shared + row * Tile::kKernelStride, RowsAfter(kernel, row, sizes_.features_bytes),
                CopyFeature() < features_);
    }
  }

  __device__ __forceinline__ void Multiply(typename Tile::Product& product, int buffer,
                                           int stage) const {
    const SwizzledMatrix<T> columns = Columns(buffer);
    const SharedMatrix<T> kernel = Kernel(stage);
#pragma unroll
    for (int depth = 0; depth < Tile::kChannels; depth += kFragmentDepth<T>) {
      product.template Add<T>(
          [&](uint32_t (&a)[4], int row) { LoadRows(a, columns, row, depth); },
          [&](uint32_t (&b)[4], int column) { LoadColumns(b, kernel, depth, column); });
    }
  }

  // Adds the bias and writes y, through shared memory, which no thread uses any more.
  __device__ __forceinline__ void Store(const typename Tile::Product& product, const T* bias,
                                        T* y) const {
    const SharedMatrix<T> tile = {SharedMemory<T>(), Tile::kYStride};
    product.ForEachPair([&](int row, int column, float first, float second) {
      if (column >= features_) return;
      const T* const two = bias + first_feature_ + column;
      StoreSharedPair(tile.At(row, column), first + ToFloat(two[0]), second + ToFloat(two[1]));
    });
    __syncthreads();
    if (CopyFeature() >= features_) return;
    for (int row = CopyRow(); row < Tile::kPixels; row += Tile::kRowsAtOnce) {
      const int pixel = first_pixel_ + row;
      if (pixel >= sizes_.pixels()) return;
      StoreGlobal(y + int64_t{pixel} * sizes_.features + first_feature_ + CopyFeature(),
                  LoadShared(tile.At(row, CopyFeature())));
    }
  }

 private:
  // The thread's row and vector of each step's columns.
  static __device__ __forceinline__ int Row() { return threadIdx.x / Tile::kVectors; }
  static __device__ __forceinline__ int Vector() { return threadIdx.x % Tile::kVectors; }
  // The first row, and the feature, that the thread copies of the kernel, or of y.
  static __device__ __forceinline__ int CopyRow() { return threadIdx.x / Tile::kRowVectors; }
  static __device__ __forceinline__ int CopyFeature() {
    return threadIdx.x % Tile::kRowVectors * kVector<T>;
  }

  static __device__ __forceinline__ SwizzledMatrix<T> Columns(int buffer) {
    return {SharedMemory<T>() + buffer * Tile::kColumns};
  }
  static __device__ __forceinline__ SharedMatrix<T> Kernel(int stage) {
    return {SharedMemory<T>() + kBuffers * Tile::kColumns + stage * Tile::kKernel,
            Tile::kKernelStride};
  }
  static __device__ __forceinline__ Sample<float>* Samples() {
    return reinterpret_cast<Sample<float>*>(SharedMemory<unsigned char>() + Tile::kPipelineBytes);
  }
  __device__ __forceinline__ const Sample<float>& SampleOfThread(const Steps& step) const {
    return Samples()[sample_ + step.tap() - step.first_tap()];
  }

  const DeformConv2dSizes& sizes_;
  const DeformConv2dPrimals<T>& primals_;
  int first_pixel_, first_channel_, first_feature_, features_;
  const T* channels_;           // of the thread, in the first step, at the first pixel
  const T* kernel_;             // the first elements that the thread copies, in the first step
  int column_, copy_, sample_;  // where the thread writes columns and copies, and reads samples
  int located_group_ = -1, located_tap_ = -1;
};

template <typename T, typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, ResidentBlocks(Tile::kSharedBytes))
    DeformConv2dForwardKernel(const DeformConv2dPrimals<T> primals,
                              const T* bias,  // [O]
                              T* y,           // [N, H_out, W_out, O]
                              const DeformConv2dSizes sizes) {
  ForwardBlock<T, Tile> block(sizes, primals);
  typename Tile::Product product;
  product.Clear();

  SumProducts(block, product);
  block.Store(product, bias, y);
}

template <typename T, typename Tile>
int64_t BlocksOf(const DeformConv2dProblem& problem) {
  const int64_t pixels = (problem.pixels() + Tile::kPixels - 1) / Tile::kPixels;
  const int64_t features = (problem.group_features() + Tile::kFeatures - 1) / Tile::kFeatures;
  return pixels * features * problem.geometry.feature_groups;
}

template <typename T, typename Tile>
cudaError_t LaunchTiles(const DeformConv2dProblem& problem, const DeformConv2dPrimals<T>& primals,
                        const T* bias, T* y, cudaStream_t stream) {
  const unsigned blocks = static_cast<unsigned>(BlocksOf<T, Tile>(problem));
  const LaunchShape shape = {blocks, Tile::kThreads, Tile::kSharedBytes};
  return Launch(DeformConv2dForwardKernel<T, Tile>, shape, stream, primals, bias, y,
                DeformConv2dSizes(problem, sizeof(T)));
}

}  // namespace

template <typename T>
cudaError_t LaunchDeformConv2dForward(const DeformConv2dProblem& problem,
                                      const DeformConv2dPrimals<T>& primals, const T* bias, T* y,
                                      cudaStream_t stream) {
  if (problem.pixels() == 0) return cudaSuccess;
  // Wide tiles sample less often. Narrow tiles are faster where each has a multiprocessor to
  // itself.
  int device, processors;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  using Narrow = ForwardTile<T, 128>;
  const bool wide = problem.group_features() > 128 && BlocksOf<T, Narrow>(problem) > processors;
  return wide ? LaunchTiles<T, ForwardTile<T, 256>>(problem, primals, bias, y, stream)
              : LaunchTiles<T, Narrow>(problem, primals, bias, y, stream);
}

#define JAX_DCN_INSTANTIATE(T)                    \
  template cudaError_t LaunchDeformConv2dForward( \
      const DeformConv2dProblem&, const DeformConv2dPrimals<T>&, const T*, T*, cudaStream_t);
JAX_DCN_INSTANTIATE(float)
JAX_DCN_INSTANTIATE(BFloat16)
JAX_DCN_INSTANTIATE(Float16)

}  // namespace jax_dcn
