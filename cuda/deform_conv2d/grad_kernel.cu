// SPDX-License-Identifier: MIT
// Fused gradient of the kernel: columns are sampled again, and multiplied with the gradient of y.

#include "cuda/deform_conv2d/fused.h"
#include "cuda/deform_conv2d/locate.cuh"
#include "cuda/runtime/launch.cuh"
#include "cuda/runtime/matrix.cuh"
#include "cuda/runtime/pipeline.cuh"
#include "cuda/runtime/vector.cuh"
#include "cuda/sampling/sample.cuh"

namespace jax_dcn {
namespace {

// A block computes kRows x kFeatures of the gradient, whose rows are the channels of all taps, as a
// sum of products over steps of kPixels each. None of these sizes has been measured yet.
template <typename T>
struct GradKernelTile {
  static constexpr int kRows = 64;
  static constexpr int kFeatures = 128;
  static constexpr int kThreads = BlockProduct<kRows, kFeatures>::kThreads;
  static constexpr int kPixels = 2 * kFragmentDepth<T>;
  static constexpr int kChunk = kChunkBytes / static_cast<int>(sizeof(T));
  static constexpr int kChunks = kRows / kChunk;
  static constexpr int kVectors = kChunk / kVector<T>;  // in a chunk
  static constexpr int kSharing = 2;                    // chunks that may share samples
  static constexpr int kSteps = 9;                      // located at a time

  static constexpr int kColumnStride = kRows + 8;
  static constexpr int kGradStride = kFeatures + 8;
  static constexpr int kColumns = kPixels * kColumnStride;     // elements of a step
  static constexpr int kGrad = kPixels * kGradStride;          // elements of a step
  static constexpr int kRowVectors = kFeatures / kVector<T>;   // of a row of grad_y
  static constexpr int kRowsAtOnce = kThreads / kRowVectors;   // rows that the threads copy
  static constexpr int kCopies = kPixels / kRowsAtOnce;        // of a thread, in a step
  static constexpr int kSamples = kSteps * kPixels * kChunks;  // located at a time
  static constexpr int kPipelineBytes = (kBuffers * kColumns + kStages * kGrad) * sizeof(T);
  static constexpr int kSharedBytes = kPipelineBytes + kSamples * sizeof(Sample<float>);

  using Product = BlockProduct<kRows, kFeatures>;

  static_assert(kPixels * kChunks * kVectors == kThreads, "16 bytes of a step for each thread");
  static_assert(kPixels % kRowsAtOnce == 0, "all threads copy equally often");
  static_assert(kThreads % kChunks == 0, "a thread locates samples of one chunk");
  static_assert(kThreads * kSharing <= kSamples, "each thread locates a sample");
  static_assert(kSharedBytes <= kMostSharedBytes, "every GPU can hold a block");
};

// Some steps of kPixels output pixels each, in order.
template <typename Tile>
class PixelSteps {
 public:
  __device__ __forceinline__ PixelSteps(int first, int last) : step_(first), last_(last) {}
  __device__ __forceinline__ bool done() const { return step_ >= last_; }
  __device__ __forceinline__ int first_pixel() const { return step_ * Tile::kPixels; }
  // The step's place among the steps that are located together.
  __device__ __forceinline__ int located() const { return located_; }

  __device__ __forceinline__ void Advance() {
    ++step_;
    located_ = located_ == Tile::kSteps - 1 ? 0 : located_ + 1;
  }

 private:
  int step_, last_, located_ = 0;
};

// A chunk of channels of one tap.
struct ChannelChunk {
  int tap, channel, offset_group;
};

// One block's part of the gradient, from its part of the pixels.
template <typename T>
class GradKernelBlock {
  using Tile = GradKernelTile<T>;

 public:
  using Steps = PixelSteps<Tile>;

  __device__ __forceinline__ GradKernelBlock(const DeformConv2dSizes& sizes,
                                             const DeformConv2dPrimals<T>& primals, const T* grad_y)
      : sizes_(sizes), primals_(primals) {
    const int feature_tiles = (sizes.group_features + Tile::kFeatures - 1) / Tile::kFeatures;
    const int tile = blockIdx.x / feature_tiles;
    const int first_of_group = blockIdx.x % feature_tiles * Tile::kFeatures;
    first_row_ = tile * Tile::kRows;
    first_feature_ = blockIdx.y * sizes.group_features + first_of_group;
    features_ = min(sizes.group_features - first_of_group, Tile::kFeatures);
    channels_ = primals.x + ChunkAt(ThreadChunk()).channel + ThreadVector() * kVector<T>;
    grad_y_ = grad_y + first_feature_ + CopyFeature();
    column_ = Kept(ThreadPixel() * Tile::kColumnStride + ThreadChunk() * Tile::kChunk +
                   ThreadVector() * kVector<T>);
    copy_ = Kept(CopyRow() * Tile::kGradStride + CopyFeature());
    spacing_ = ChunksShareSamples() ? Tile::kSharing : 1;
    sample_ = Kept(ThreadPixel() * Tile::kChunks + ThreadChunk() / spacing_ * spacing_);
  }

  // An equal share of all steps for each part.
  __device__ __forceinline__ Steps AllSteps() const {
    const int steps = (sizes_.pixels() + Tile::kPixels - 1) / Tile::kPixels;
    const int share = (steps + gridDim.z - 1) / gridDim.z;
    return Steps(share * blockIdx.z, min(share * static_cast<int>(blockIdx.z + 1), steps));
  }

  __device__ __forceinline__ void Locate(const Steps& step) const {
    if (step.located() != 0) return;
    int i = threadIdx.x * spacing_;
    const ChannelChunk chunk = ChunkAt(i % Tile::kChunks);
    do {
      const int pixel = step.first_pixel() + i / Tile::kChunks;
      const bool exists = pixel < sizes_.pixels() && chunk.tap < sizes_.taps;
      Samples()[i] = exists ? LocateSample(sizes_, primals_, pixel, chunk.offset_group, chunk.tap)
                            : NoSample<float>();
      i += Tile::kThreads * spacing_;
    } while (i < Tile::kSamples);
    __syncthreads();
  }

  __device__ __forceinline__ CornerChannels<T> Read(const Steps& step) const {
    return LoadCorners<kVector<T>>(InShared<SampleCorners>(ThreadSample(step)), channels_,
                                   sizes_.pixel_bytes);
  }

  __device__ __forceinline__ void Write(const Steps& step, const CornerChannels<T>& corners,
                                        int buffer) const {
    StoreShared(Columns(buffer).data + column_,
                PackFactor(Interpolate(InShared(ThreadSample(step)), corners)));
  }

  // Starts to copy the step's part of grad_y.
  __device__ __forceinline__ void Copy(const Steps& step, int stage) const {
    const int first_pixel = step.first_pixel() + CopyRow();
    const T* const grad_y = RowsAfter(grad_y_, first_pixel, sizes_.features_bytes);
    T* const shared = Grad(stage).data + copy_;
#pragma unroll
    for (int i = 0; i < Tile::kCopies; ++i) {
      const int row = i * Tile::kRowsAtOnce;
      CopyAsync(shared + row * Tile::kGradStride, RowsAfter(grad_y, row, sizes_.features_bytes),
                first_pixel + row < sizes_.pixels() && CopyFeature() < features_);
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

  // Writes the block's part of the sum over its pixels.
  __device__ __forceinline__ void Store(const typename Tile::Product& product, float* parts) const {
    const int64_t rows = int64_t{sizes_.taps} * sizes_.group_channels;
    float* const part = parts + blockIdx.z * rows * sizes_.features;
    product.ForEachPair([&](int row, int column, float first, float second) {
      const int64_t global_row = first_row_ + row;
      if (global_row >= rows || column >= features_) return;
      StorePair(part + global_row * sizes_.features + first_feature_ + column, first, second);
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
  // The first row, and the feature, that the thread copies of grad_y.
  static __device__ __forceinline__ int CopyRow() { return threadIdx.x / Tile::kRowVectors; }
  static __device__ __forceinline__ int CopyFeature() {
    return threadIdx.x % Tile::kRowVectors * kVector<T>;
  }

  // The chunk at the block's rows; its tap does not exist beyond the last row.
  __device__ __forceinline__ ChannelChunk ChunkAt(int index) const {
    const int row = first_row_ + index * Tile::kChunk;
    const int tap = sizes_.by_group_channels.Quotient(row);
    const int channel =
        blockIdx.y * sizes_.group_channels + sizes_.by_group_channels.Remainder(row, tap);
    return {tap, channel, sizes_.by_offset_group_channels.Quotient(channel)};
  }

  // Whether all chunks are of one tap and one offset group: neighbours then share samples.
  __device__ __forceinline__ bool ChunksShareSamples() const {
    const ChannelChunk first = ChunkAt(0), last = ChunkAt(Tile::kChunks - 1);
    return first.tap == last.tap && first.offset_group == last.offset_group;
  }

  static __device__ __forceinline__ SharedMatrix<T> Columns(int buffer) {
    return {SharedMemory<T>() + buffer * Tile::kColumns, Tile::kColumnStride};
  }
  static __device__ __forceinline__ SharedMatrix<T> Grad(int stage) {
    return {SharedMemory<T>() + kBuffers * Tile::kColumns + stage * Tile::kGrad, Tile::kGradStride};
  }
  static __device__ __forceinline__ Sample<float>* Samples() {
    return reinterpret_cast<Sample<float>*>(SharedMemory<unsigned char>() + Tile::kPipelineBytes);
  }
  __device__ __forceinline__ const Sample<float>& ThreadSample(const Steps& step) const {
    return Samples()[step.located() * Tile::kPixels * Tile::kChunks + sample_];
  }

  const DeformConv2dSizes& sizes_;
  const DeformConv2dPrimals<T>& primals_;
  int first_row_, first_feature_, features_;
  const T* channels_;           // of the thread, at the first pixel
  const T* grad_y_;             // the elements that the thread copies, at the first pixel
  int spacing_;                 // between samples that are located
  int column_, copy_, sample_;  // where the thread writes columns and copies, and reads samples
};

template <typename T>
__global__ void __launch_bounds__(GradKernelTile<T>::kThreads,
                                  ResidentBlocks(GradKernelTile<T>::kSharedBytes))
    DeformConv2dGradKernelPartsKernel(const DeformConv2dPrimals<T> primals,
                                      const T* grad_y,  // [N, H_out, W_out, O]
                                      float* parts,     // [parts, K_h, K_w, C / groups, O]
                                      const DeformConv2dSizes sizes) {
  GradKernelBlock<T> block(sizes, primals, grad_y);
  typename GradKernelTile<T>::Product product;
  product.Clear();
  SumProducts(block, product);
  block.Store(product, parts);
}

// One thread sums one element of all parts.
template <typename T>
__global__ void SumGradKernelPartsKernel(const float* parts, int count, int64_t size, T* sum) {
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
      Launch(DeformConv2dGradKernelPartsKernel<T>, {grid, Tile::kThreads, Tile::kSharedBytes},
             stream, primals, grad_y, scratch, DeformConv2dSizes(problem, sizeof(T)));
  if (error != cudaSuccess) return error;
  constexpr int kThreads = 256;
  const unsigned blocks = static_cast<unsigned>((size + kThreads - 1) / kThreads);
  return Launch(SumGradKernelPartsKernel<T>, {blocks, kThreads}, stream, scratch, parts, size,
                grad_kernel);
}

#define JAX_DCN_INSTANTIATE(T)                                                                    \
  template cudaError_t LaunchDeformConv2dGradKernel(const DeformConv2dProblem&,                   \
                                                    const DeformConv2dPrimals<T>&, const T*, int, \
                                                    float*, T*, cudaStream_t);
JAX_DCN_INSTANTIATE(float)
JAX_DCN_INSTANTIATE(BFloat16)
JAX_DCN_INSTANTIATE(Float16)

}  // namespace jax_dcn
