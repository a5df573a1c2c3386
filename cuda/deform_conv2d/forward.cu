// SPDX-License-Identifier: MIT
// Fused forward pass: samples go straight into shared memory, and from there through the tensor
// cores. Columns never exist in device memory.

#include "cuda/deform_conv2d/fused.h"
#include "cuda/runtime/launch.cuh"
#include "cuda/runtime/matrix.cuh"
#include "cuda/runtime/packed.cuh"
#include "cuda/runtime/pipeline.cuh"
#include "cuda/sampling/sample.cuh"

namespace jax_dcn {
namespace {

// A block computes kPixels x kFeatures of y, as a sum of products over steps: one tap of kChannels
// channels each.
//
// None of these numbers has been measured yet. They let two blocks share a multiprocessor of 164 KB
// or more of shared memory, so that one samples while the other multiplies, and one fit into 99 KB.
template <typename T, int kTileFeatures>
struct ForwardTile {
  static constexpr int kPixels = 64;
  static constexpr int kFeatures = kTileFeatures;
  static constexpr int kThreads = BlockProduct<kPixels, kFeatures>::kThreads;
  static constexpr int kVectors = 4;  // of 16 bytes of channels, in a step: one for each thread
  static constexpr int kChannels = kVectors * Packed<T>::kSize;
  static constexpr int kTaps = 9;  // located at a time

  static constexpr int kColumnStride = kChannels + Packed<T>::kSize;
  static constexpr int kKernelStride = kFeatures + 8;
  static constexpr int kYStride = kFeatures + 8;
  static constexpr int kColumns = kPixels * kColumnStride;             // elements of a step
  static constexpr int kKernel = kChannels * kKernelStride;            // elements of a step
  static constexpr int kKernelVectors = kFeatures / Packed<T>::kSize;  // in a row
  static constexpr int kPipelineBytes = (kBuffers * kColumns + kStages * kKernel) * sizeof(T);
  static constexpr int kSharedBytes = kPipelineBytes + kPixels * kTaps * sizeof(Sample);

  using Product = BlockProduct<kPixels, kFeatures>;

  static_assert(kPixels * kVectors == kThreads, "one vector of a step for each thread");
  static_assert(kPixels * kYStride * sizeof(T) <= kSharedBytes, "y takes the place of the rest");
  static_assert(kSharedBytes <= 99 << 10, "what every GPU since sm_80 has");
};

// The sum's terms in order: taps are innermost, so that the pixels that neighbouring taps share are
// still in the cache, but no more of them than can be located at a time.
class Steps {
 public:
  __device__ Steps(int taps, int channels, int taps_at_a_time, int channels_at_a_time)
      : taps_(taps),
        channels_(channels),
        taps_at_a_time_(taps_at_a_time),
        channels_at_a_time_(channels_at_a_time) {}

  __device__ __forceinline__ bool done() const { return tap_ >= taps_; }
  __device__ __forceinline__ int tap() const { return tap_; }
  __device__ __forceinline__ int first_tap() const { return first_tap_; }
  __device__ __forceinline__ int channel() const { return channel_; }

  __device__ __forceinline__ void Advance() {
    const int end = min(first_tap_ + taps_at_a_time_, taps_);
    if (++tap_ < end) return;
    channel_ += channels_at_a_time_;
    if (channel_ == channels_) {
      channel_ = 0;
      first_tap_ = end;
    }
    tap_ = first_tap_;
  }

 private:
  const int taps_, channels_, taps_at_a_time_, channels_at_a_time_;
  int first_tap_ = 0, tap_ = 0, channel_ = 0;
};

// One block's part of y, and how its threads work on it.
template <typename T, typename Tile>
class ForwardBlock {
 public:
  __device__ ForwardBlock(const DeformConv2dProblem& problem, const DeformConv2dPrimals<T>& primals)
      : problem_(problem), primals_(primals) {
    const int group_features = static_cast<int>(problem.group_features());
    const int tiles = (group_features + Tile::kFeatures - 1) / Tile::kFeatures;  // in a group
    const int all_tiles = tiles * static_cast<int>(problem.geometry.feature_groups);
    const int tile = blockIdx.x % all_tiles;
    first_pixel_ = int64_t{Tile::kPixels} * (blockIdx.x / all_tiles);
    group_ = tile / tiles;
    const int first_of_group = tile % tiles * Tile::kFeatures;
    first_feature_ = group_ * group_features + first_of_group;
    features_ = min(group_features - first_of_group, Tile::kFeatures);

    const int64_t pixel = min(first_pixel_ + Row(), problem.pixels() - 1);
    channels_ = primals.x + problem.ImageOf(pixel) * problem.image_pixels() * problem.channels +
                group_ * problem.group_channels() + Vector() * Packed<T>::kSize;
  }

  __device__ Steps AllSteps() const {
    return Steps(static_cast<int>(problem_.taps()), static_cast<int>(problem_.group_channels()),
                 Tile::kTaps, Tile::kChannels);
  }

  // Locates the samples of the step's taps, unless they are those in shared memory already.
  __device__ __forceinline__ void Locate(const Steps& step) {
    const int channel = group_ * static_cast<int>(problem_.group_channels()) + step.channel();
    const int offset_group = channel / static_cast<int>(problem_.offset_group_channels());
    if (offset_group == located_group_ && step.first_tap() == located_tap_) return;
    located_group_ = offset_group;
    located_tap_ = step.first_tap();
    const int taps = min(Tile::kTaps, static_cast<int>(problem_.taps()) - located_tap_);
    for (int i = threadIdx.x; i < Tile::kPixels * taps; i += Tile::kThreads) {
      const int row = i / taps, tap = i - row * taps;
      const int64_t pixel = first_pixel_ + row;
      Samples()[row * Tile::kTaps + tap] =
          pixel < problem_.pixels()
              ? LocateSample(problem_, primals_, pixel, offset_group, located_tap_ + tap)
              : NoSample();
    }
    __syncthreads();
  }

  __device__ __forceinline__ CornerChannels<T> Read(const Steps& step) const {
    return LoadCorners(SampleOfThread(step), channels_ + step.channel());
  }

  // Writes the thread's part of the step's columns.
  __device__ __forceinline__ void Write(const Steps& step, const CornerChannels<T>& corners,
                                        int buffer) const {
    StoreShared(Columns(buffer).At(Row(), Vector() * Packed<T>::kSize),
                RoundToFactor<T>(Interpolate(SampleOfThread(step), corners)));
  }

  // Starts to copy the step's part of the kernel.
  __device__ __forceinline__ void Copy(const Steps& step, int stage) const {
    const int64_t first_row = step.tap() * problem_.group_channels() + step.channel();
    const T* const kernel = primals_.kernel + first_row * problem_.features + first_feature_;
    const SharedMatrix<T> shared = Kernel(stage);
#pragma unroll
    for (int i = threadIdx.x; i < Tile::kChannels * Tile::kKernelVectors; i += Tile::kThreads) {
      const int row = i / Tile::kKernelVectors;
      const int feature = i % Tile::kKernelVectors * Packed<T>::kSize;
      CopyAsync(shared.At(row, feature), kernel + row * problem_.features + feature,
                feature < features_);
    }
  }

  __device__ __forceinline__ void Multiply(typename Tile::Product& product, int buffer,
                                           int stage) const {
    const SharedMatrix<T> columns = Columns(buffer), kernel = Kernel(stage);
#pragma unroll
    for (int depth = 0; depth < Tile::kChannels; depth += kFragmentDepth<T>) {
      product.template Add<T>(
          [&](uint32_t (&a)[4], int row) { LoadRows(a, columns, row, depth); },
          [&](uint32_t (&b)[4], int column) { LoadColumns(b, kernel, depth, column); });
    }
  }

  // Adds the bias and writes y, through shared memory: all threads have done with it.
  __device__ __forceinline__ void Store(const typename Tile::Product& product, const T* bias,
                                        T* y) const {
    const SharedMatrix<T> tile = {SharedMemory<T>(), Tile::kYStride};
    product.ForEachPair([&](int row, int column, float first, float second) {
      if (column >= features_) return;
      const T* const two = bias + first_feature_ + column;
      StorePair(tile.At(row, column), first + ToFloat(two[0]), second + ToFloat(two[1]));
    });
    __syncthreads();
    for (int i = threadIdx.x; i < Tile::kPixels * Tile::kKernelVectors; i += Tile::kThreads) {
      const int row = i / Tile::kKernelVectors;
      const int feature = i % Tile::kKernelVectors * Packed<T>::kSize;
      const int64_t pixel = first_pixel_ + row;
      if (pixel >= problem_.pixels() || feature >= features_) continue;
      StoreGlobal(y + pixel * problem_.features + first_feature_ + feature,
                  LoadShared<T>(tile.At(row, feature)));
    }
  }

 private:
  // The thread's row and vector of each step's columns.
  static __device__ __forceinline__ int Row() { return threadIdx.x / Tile::kVectors; }
  static __device__ __forceinline__ int Vector() { return threadIdx.x % Tile::kVectors; }

  static __device__ __forceinline__ SharedMatrix<T> Columns(int buffer) {
    return {SharedMemory<T>() + buffer * Tile::kColumns, Tile::kColumnStride};
  }
  static __device__ __forceinline__ SharedMatrix<T> Kernel(int stage) {
    return {SharedMemory<T>() + kBuffers * Tile::kColumns + stage * Tile::kKernel,
            Tile::kKernelStride};
  }
  static __device__ __forceinline__ Sample* Samples() {
    return reinterpret_cast<Sample*>(SharedMemory<unsigned char>() + Tile::kPipelineBytes);
  }
  __device__ __forceinline__ const Sample& SampleOfThread(const Steps& step) const {
    return Samples()[Row() * Tile::kTaps + step.tap() - step.first_tap()];
  }

  const DeformConv2dProblem& problem_;
  const DeformConv2dPrimals<T>& primals_;
  int64_t first_pixel_;
  int group_, first_feature_, features_;
  const T* channels_;  // the thread's, of the first step, in its image
  int located_group_ = -1, located_tap_ = -1;
};

template <typename T, typename Tile>
__global__ void __launch_bounds__(Tile::kThreads)
    DeformConv2dForwardKernel(const DeformConv2dPrimals<T> primals,
                              const T* bias,  // [O]
                              T* y,           // [N, H_out, W_out, O]
                              const DeformConv2dProblem problem) {
  ForwardBlock<T, Tile> block(problem, primals);
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
  return Launch(DeformConv2dForwardKernel<T, Tile>, shape, stream, primals, bias, y, problem);
}

}  // namespace

template <typename T>
cudaError_t LaunchDeformConv2dForward(const DeformConv2dProblem& problem,
                                      const DeformConv2dPrimals<T>& primals, const T* bias, T* y,
                                      cudaStream_t stream) {
  if (problem.pixels() == 0) return cudaSuccess;
  // Wide tiles sample less often, but must leave no multiprocessor without work.
  int device, processors;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  using Wide = ForwardTile<T, 256>;
  const bool wide = problem.group_features() > 128 && BlocksOf<T, Wide>(problem) >= processors;
  return wide ? LaunchTiles<T, Wide>(problem, primals, bias, y, stream)
              : LaunchTiles<T, ForwardTile<T, 128>>(problem, primals, bias, y, stream);
}

#define JAX_DCN_INSTANTIATE(T)                    \
  template cudaError_t LaunchDeformConv2dForward( \
      const DeformConv2dProblem&, const DeformConv2dPrimals<T>&, const T*, T*, cudaStream_t);
JAX_DCN_INSTANTIATE(float)
JAX_DCN_INSTANTIATE(BFloat16)
JAX_DCN_INSTANTIATE(Float16)

}  // namespace jax_dcn
