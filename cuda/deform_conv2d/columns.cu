// SPDX-License-Identifier: MIT
// Kernels that sample columns, and their tangent.

#include "cuda/deform_conv2d/block_samples.cuh"
#include "cuda/deform_conv2d/columns.h"

namespace jax_dcn {
namespace {

// Blocks for each multiprocessor, which leaves 64 registers for a thread, and 80 for sums in
// double: with 64 some of these spill.
template <typename T>
constexpr int kBlocks = sizeof(Sum<T>) == sizeof(float) ? 4 : 3;

template <typename T, int kSize>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    DeformConv2dColumnsKernel(const DeformConv2dPrimals<T> primals, ChunkStart start, T* columns,
                              const DeformConv2dChunk chunk) {
  ColumnSample<T>* const samples = SharedMemory<ColumnSample<T>>();
  const int count = BlockSamples(chunk), thread = ThreadInBlock();
  if (thread < count) {
    const ChunkSample at(chunk, start, blockIdx.x * kBlockSamples + thread);
    const bool exists = at.Exists(chunk);
    const auto read = exists ? at.Read(chunk, primals.offset) : Nowhere<Sum<T>>();
    samples[thread] = {chunk, at, read, exists ? at.Mask(chunk, primals.mask) : 0};
  }
  __syncthreads();
  for (int i = threadIdx.y; i < count; i += blockDim.y) {
    const ColumnSample<T>& sample = samples[i];
    for (int c = threadIdx.x * kSize; c < chunk.sizes.offset_group_channels;
         c += blockDim.x * kSize) {
      const auto corners =
          LoadCorners<kSize>(sample, primals.x + sample.x + c, chunk.sizes.pixel_bytes);
      StoreGlobal(columns + chunk.ColumnIndex(sample.row, sample.channel + c),
                  Pack(Interpolate(sample, corners)));
    }
  }
}

// ----------------------------------------------------------------------------------------- tangent

// ẋ and x are sampled by the weights m w and ṁ w + m ẇ.
template <typename T>
struct alignas(16) ColumnSampleDot : ColumnSample<T> {
  Sum<T> weight_dot[kCorners];

  __device__ __forceinline__ ColumnSampleDot(const ColumnSample<T>& sample,
                                             const CornerWeights<Sum<T>>& dot)
      : ColumnSample<T>(sample),
        weight_dot{dot.corner[0], dot.corner[1], dot.corner[2], dot.corner[3]} {}
};

template <typename T>
__device__ CornerWeights<Sum<T>> WeightsDot(const DeformConv2dChunk& chunk,
                                            const ChunkSample& sample,
                                            const BilinearSample<Sum<T>>& read,
                                            const DeformConv2dPrimals<T>& primals,
                                            const DeformConv2dTangents<T>& tangents) {
  using A = Sum<T>;
  auto weights =
      ValueWeights(read, tangents.mask == nullptr ? A(0) : sample.Mask(chunk, tangents.mask));
  if (tangents.offset != nullptr) {
    const A mask = sample.Mask(chunk, primals.mask);
    const A* dot = tangents.offset + 2 * sample.Index(chunk);
    const auto moved = DerivativeWeights(read, mask * dot[0], mask * dot[1]);
    for (int i = 0; i < kCorners; ++i) weights.corner[i] += moved.corner[i];
  }
  return weights;
}

template <typename T, int kSize>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    DeformConv2dColumnsJvpKernel(const DeformConv2dPrimals<T> primals,
                                 const DeformConv2dTangents<T> tangents, bool kernel_moves,
                                 ChunkStart start, T* columns, const DeformConv2dChunk chunk) {
  using A = Sum<T>;
  ColumnSampleDot<T>* const samples = SharedMemory<ColumnSampleDot<T>>();
  const int count = BlockSamples(chunk), thread = ThreadInBlock();
  const bool weights_move = tangents.offset != nullptr || tangents.mask != nullptr;
  if (thread < count) {
    const ChunkSample at(chunk, start, blockIdx.x * kBlockSamples + thread);
    const bool exists = at.Exists(chunk);
    const auto read = exists ? at.Read(chunk, primals.offset) : Nowhere<A>();
    CornerWeights<A> dot = {};
    if (exists && weights_move) dot = WeightsDot(chunk, at, read, primals, tangents);
    samples[thread] = {{chunk, at, read, exists ? at.Mask(chunk, primals.mask) : A(0)}, dot};
  }
  __syncthreads();
  for (int i = threadIdx.y; i < count; i += blockDim.y) {
    const ColumnSampleDot<T>& sample = samples[i];
    for (int c = threadIdx.x * kSize; c < chunk.sizes.offset_group_channels;
         c += blockDim.x * kSize) {
      int32_t row = sample.row;
      CornerChannels<T, kSize> x;
      if (kernel_moves || weights_move) {
        x = LoadCorners<kSize>(sample, primals.x + sample.x + c, chunk.sizes.pixel_bytes);
      }
      if (kernel_moves) {
        StoreGlobal(columns + chunk.ColumnIndex(row, sample.channel + c),
                    Pack(Interpolate(sample, x)));
        row += chunk.sizes.taps;
      }
      if (tangents.x == nullptr && !weights_move) continue;
      Unpacked<T, kSize> sum = {};
      if (tangents.x != nullptr) {
        AddCorners(LoadCorners<kSize>(sample, tangents.x + sample.x + c, chunk.sizes.pixel_bytes),
                   sample.weight, sum);
      }
      if (weights_move) AddCorners(x, sample.weight_dot, sum);
      StoreGlobal(columns + chunk.ColumnIndex(row, sample.channel + c), Pack(sum));
    }
  }
}

}  // namespace

template <typename T>
cudaError_t LaunchDeformConv2dColumns(cudaStream_t stream, const DeformConv2dChunk& chunk,
                                      const DeformConv2dPrimals<T>& primals, ChunkStart start,
                                      T* columns) {
  if (chunk.samples() == 0) return cudaSuccess;
  return WithVectorSize<T>(AreVectors<T>(chunk.sizes, {primals.x, columns}), [&](auto size) {
    return Launch(DeformConv2dColumnsKernel<T, size>,
                  ShapeFor(chunk, size, sizeof(ColumnSample<T>)), stream, primals, start, columns,
                  chunk);
  });
}

template <typename T>
cudaError_t LaunchDeformConv2dColumnsJvp(cudaStream_t stream, const DeformConv2dChunk& chunk,
                                         const DeformConv2dPrimals<T>& primals,
                                         const DeformConv2dTangents<T>& tangents, bool kernel_moves,
                                         ChunkStart start, T* columns) {
  if (chunk.samples() == 0) return cudaSuccess;
  const bool vectors = AreVectors<T>(chunk.sizes, {primals.x, tangents.x, columns});
  return WithVectorSize<T>(vectors, [&](auto size) {
    return Launch(DeformConv2dColumnsJvpKernel<T, size>,
                  ShapeFor(chunk, size, sizeof(ColumnSampleDot<T>)), stream, primals, tangents,
                  kernel_moves, start, columns, chunk);
  });
}

#define JAX_DCN_INSTANTIATE(T)                                                                   \
  template cudaError_t LaunchDeformConv2dColumns(cudaStream_t, const DeformConv2dChunk&,         \
                                                 const DeformConv2dPrimals<T>&, ChunkStart, T*); \
  template cudaError_t LaunchDeformConv2dColumnsJvp(                                             \
      cudaStream_t, const DeformConv2dChunk&, const DeformConv2dPrimals<T>&,                     \
      const DeformConv2dTangents<T>&, bool, ChunkStart, T*);
JAX_DCN_INSTANTIATE(float)
JAX_DCN_INSTANTIATE(double)
JAX_DCN_INSTANTIATE(BFloat16)
JAX_DCN_INSTANTIATE(Float16)

}  // namespace jax_dcn
