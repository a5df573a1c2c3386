// SPDX-License-Identifier: MIT
// Fused gradient of the kernel: columns are sampled again, and multiplied with the gradient of y.

#include "cuda/deform_conv2d/fused.h"
#include "cuda/runtime/launch.cuh"
#include "cuda/runtime/matrix.cuh"
#include "cuda/runtime/packed.cuh"
#include "cuda/runtime/pipeline.cuh"
#include "cuda/sampling/sample.cuh"

namespace jax_dcn {
namespace {

// A block computes kRows x kFeatures of the gradient, whose rows are the channels of all taps, as a
// sum of products over steps of kPixels each. None of these numbers has been measured yet.
template <typename T>
struct GradKernelTile {
  static constexpr int kRows = 64;
  static constexpr int kFeatures = 128;
  static constexpr int kThreads = BlockProduct<kRows, kFeatures>::kThreads;
  static constexpr int kPixels = 2 * kFragmentDepth<T>;
  static constexpr int kChunk = kChunkBytes / static_cast<int>(sizeof(T));
  static constexpr int kChunks = kRows / kChunk;
  static constexpr int kVectors = kChunk / Packed<T>::kSize;  // in a chunk
  static constexpr int kSteps = 9;                            // located at a time

  static constexpr int kColumnStride = kRows + 8;
  static constexpr int kGradStride = kFeatures + 8;
  static constexpr int kColumns = kPixels * kColumnStride;           // elements of a step
  static constexpr int kGrad = kPixels * kGradStride;                // elements of a step
  static constexpr int kGradVectors = kFeatures / Packed<T>::kSize;  // in a row
  static constexpr int kLocatedPixels = kSteps * kPixels;
  static constexpr int kPipelineBytes = (kBuffers * kColumns + kStages * kGrad) * sizeof(T);
  static constexpr int kSharedBytes =
      kPipelineBytes + kLocatedPixels * (kChunks * sizeof(Sample) + sizeof(const T*));

  using Product = BlockProduct<kRows, kFeatures>;

  static_assert(kPixels * kChunks * kVectors == kThreads, "16 bytes of a step for each thread");
};

// A chunk of channels of one tap.
struct Chunk {
  int tap, channel, offset_group;
};

// One block's part of the gradient, from its part of the pixels.
template <typename T>
class GradKernelBlock {
  using Tile = GradKernelTile<T>;

 public:
  class Steps {
   public:
    __device__ Steps(int64_t first, int64_t last) : first_(first), last_(last), step_(first) {}
    __device__ __forceinline__ bool done() const { return step_ >= last_; }
    __device__ __forceinline__ void Advance() { ++step_; }
    __device__ __forceinline__ int64_t pixel() const { return step_ * Tile::kPixels; }
    // Of those that are located together.
    __device__ __forceinline__ int index() const {
      return static_cast<int>(step_ - first_) % Tile::kSteps;
    }

   private:
    int64_t first_, last_, step_;
  };

  __device__ GradKernelBlock(const DeformConv2dProblem& problem,
                             const DeformConv2dPrimals<T>& primals, const T* grad_y)
      : problem_(problem), primals_(primals), grad_y_(grad_y) {
    const int group_features = static_cast<int>(problem.group_features());
    const int feature_tiles = (group_features + Tile::kFeatures - 1) / Tile::kFeatures;
    const int tile = blockIdx.x / feature_tiles;
    first_row_ = tile * Tile::kRows;
    group_ = blockIdx.y;
    const int first_of_group = blockIdx.x % feature_tiles * Tile::kFeatures;
    first_feature_ = group_ * group_features + first_of_group;
    features_ = min(group_features - first_of_group, Tile::kFeatures);
    channel_ = ChunkAt(ThreadChunk()).channel + ThreadVector() * Packed<T>::kSize;
  }

  // An equal share of all steps for each part.
  __device__ Steps AllSteps() const {
    const int64_t steps = (problem_.pixels() + Tile::kPixels - 1) / Tile::kPixels;
    const int64_t share = (steps + gridDim.z - 1) / gridDim.z;
    return Steps(share * blockIdx.z, min(share * (blockIdx.z + 1), steps));
  }

  __device__ __forceinline__ void Locate(const Steps& step) const {
    if (step.index() != 0) return;
    for (int i = threadIdx.x; i < Tile::kLocatedPixels * Tile::kChunks; i += Tile::kThreads) {
      const int64_t pixel = step.pixel() + i / Tile::kChunks;
      const Chunk chunk = ChunkAt(i % Tile::kChunks);
      const bool exists = pixel < problem_.pixels() && chunk.tap < problem_.taps();
      Samples()[i] = exists ? LocateSample(problem_, primals_, pixel, chunk.offset_group, chunk.tap)
                            : NoSample();
    }
    for (int i = threadIdx.x; i < Tile::kLocatedPixels; i += Tile::kThreads) {
      const int64_t image = problem_.ImageOf(min(step.pixel() + i, problem_.pixels() - 1));
      Images()[i] = primals_.x + image * problem_.image_pixels() * problem_.channels;
    }
    __syncthreads();
  }

  __device__ __forceinline__ CornerChannels<T> Read(const Steps& step) const {
    return LoadCorners(ThreadSample(step),
                       Images()[step.index() * Tile::kPixels + ThreadPixel()] + channel_);
  }

  __device__ __forceinline__ void Write(const Steps& step, const CornerChannels<T>& corners,
                                        int buffer) const {
    const int row = ThreadChunk() * Tile::kChunk + ThreadVector() * Packed<T>::kSize;
    StoreShared(Columns(buffer).At(ThreadPixel(), row),
                RoundToFactor<T>(Interpolate(ThreadSample(step), corners)));
  }

  __device__ __forceinline__ void Copy(const Steps& step, int stage) const {
    const SharedMatrix<T> shared = Grad(stage);
#pragma unroll
    for (int i = threadIdx.x; i < Tile::kPixels * Tile::kGradVectors; i += Tile::kThreads) {
      const int row = i / Tile::kGradVectors;
      const int feature = i % Tile::kGradVectors * Packed<T>::kSize;
      const int64_t pixel = step.pixel() + row;
      CopyAsync(shared.At(row, feature),
                grad_y_ + pixel * problem_.features + first_feature_ + feature,
                pixel < problem_.pixels() && feature < features_);
    }
  }

  __device__ __forceinline__ void Multiply(typename Tile::Product& product, int buffer,
                                           int stage) const {
    const SharedMatrix<T> columns = Columns(buffer), grad = Grad(stage);
#pragma unroll
    for (int depth = 0; depth < Tile::kPixels; depth += kFragmentDepth<T>) {
      product.template Add<T>(
          [&](uint32_t (&a)[4], int row) { LoadRowsTransposed(a, columns, depth, row); },
          [&](uint32_t (&b)[4], int column) { LoadColumns(b, grad, depth, column); });
    }
  }

  // Writes the block's part of the pixels' part of the sum.
  __device__ __forceinline__ void Store(const typename Tile::Product& product, float* parts) const {
    const int64_t rows = problem_.taps() * problem_.group_channels();
    float* const part = parts + blockIdx.z * rows * problem_.features;
    product.ForEachPair([&](int row, int column, float first, float second) {
      const int64_t global_row = first_row_ + row;
      if (global_row >= rows || column >= features_) return;
      StorePair(part + global_row * problem_.features + first_feature_ + column, first, second);
    });
  }

 private:
  // The thread's pixel, chunk and vector of each step's columns.
  static __device__ __forceinline__ int ThreadPixel() {
    return threadIdx.x / (Tile::kVectors * Tile::kChunks);
  }
  static __device__ __forceinline__ int ThreadChunk() {
    return threadIdx.x / Tile::kVectors % Tile::kChunks;
  }
  static __device__ __forceinline__ int ThreadVector() { return threadIdx.x % Tile::kVectors; }

  // The chunk at the block's rows; its tap does not exist beyond the last row.
  __device__ __forceinline__ Chunk ChunkAt(int index) const {
    const int group_channels = static_cast<int>(problem_.group_channels());
    const int row = first_row_ + index * Tile::kChunk, tap = row / group_channels;
    const int channel = group_ * group_channels + row - tap * group_channels;
    return {tap, channel, channel / static_cast<int>(problem_.offset_group_channels())};
  }

  static __device__ __forceinline__ SharedMatrix<T> Columns(int buffer) {
    return {SharedMemory<T>() + buffer * Tile::kColumns, Tile::kColumnStride};
  }
  static __device__ __forceinline__ SharedMatrix<T> Grad(int stage) {
    return {SharedMemory<T>() + kBuffers * Tile::kColumns + stage * Tile::kGrad, Tile::kGradStride};
  }
  static __device__ __forceinline__ Sample* Samples() {
    return reinterpret_cast<Sample*>(SharedMemory<unsigned char>() + Tile::kPipelineBytes);
  }
  // The image of each located pixel.
  static __device__ __forceinline__ const T** Images() {
    return reinterpret_cast<const T**>(Samples() + Tile::kLocatedPixels * Tile::kChunks);
  }
  __device__ __forceinline__ const Sample& ThreadSample(const Steps& step) const {
    return Samples()[(step.index() * Tile::kPixels + ThreadPixel()) * Tile::kChunks +
                     ThreadChunk()];
  }

  const DeformConv2dProblem& problem_;
  const DeformConv2dPrimals<T>& primals_;
  const T* grad_y_;
  int first_row_, group_, first_feature_, features_;
  int channel_;  // the thread's first, in a pixel
};

template <typename T>
__global__ void __launch_bounds__(GradKernelTile<T>::kThreads)
    DeformConv2dGradKernelKernel(const DeformConv2dPrimals<T> primals,
                                 const T* grad_y,  // [N, H_out, W_out, O]
                                 float* parts,     // [parts, K_h, K_w, C / groups, O]
                                 const DeformConv2dProblem problem) {
  GradKernelBlock<T> block(problem, primals, grad_y);
  typename GradKernelTile<T>::Product product;
  product.Clear();
  SumProducts(block, product);
  block.Store(product, parts);
}

// One thread sums one element of all parts.
template <typename T>
__global__ void SumPartsKernel(const float* parts, int count, int64_t size, T* sum) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= size) return;
  float total = 0;
  for (int part = 0; part < count; ++part) total += parts[part * size + i];
  sum[i] = FromFloat<T>::Round(total);
}

}  // namespace

template <typename T>
cudaError_t LaunchDeformConv2dGradKernel(const DeformConv2dProblem& problem,
                                         const DeformConv2dPrimals<T>& primals, const T* grad_y,
                                         int parts, float* scratch, T* grad_kernel,
                                         cudaStream_t stream) {
  using Tile = GradKernelTile<T>;
  const int64_t rows = problem.taps() * problem.group_channels(), size = rows * problem.features;
  const int64_t tiles = (rows + Tile::kRows - 1) / Tile::kRows *
                        ((problem.group_features() + Tile::kFeatures - 1) / Tile::kFeatures);
  const dim3 grid(static_cast<unsigned>(tiles),
                  static_cast<unsigned>(problem.geometry.feature_groups),
                  static_cast<unsigned>(parts));
  const cudaError_t error =
      Launch(DeformConv2dGradKernelKernel<T>, {grid, Tile::kThreads, Tile::kSharedBytes}, stream,
             primals, grad_y, scratch, problem);
  if (error != cudaSuccess) return error;
  constexpr int kThreads = 256;
  const unsigned blocks = static_cast<unsigned>((size + kThreads - 1) / kThreads);
  return Launch(SumPartsKernel<T>, {blocks, kThreads}, stream, scratch, parts, size, grad_kernel);
}

#define JAX_DCN_INSTANTIATE(T)                                                                    \
  template cudaError_t LaunchDeformConv2dGradKernel(const DeformConv2dProblem&,                   \
                                                    const DeformConv2dPrimals<T>&, const T*, int, \
                                                    float*, T*, cudaStream_t);
JAX_DCN_INSTANTIATE(float)
JAX_DCN_INSTANTIATE(BFloat16)
JAX_DCN_INSTANTIATE(Float16)

}  // namespace jax_dcn
