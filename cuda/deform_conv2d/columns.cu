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
    samples[thread] = {chunk, BlockSample<T>(chunk, start, primals, thread)};
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
__device__ __forceinline__ CornerWeights<Sum<T>> WeightsDot(
    const DeformConv2dChunk& chunk, const BlockSample<T>& sample,
    const DeformConv2dTangents<T>& tangents) {
  using A = Sum<T>;
  if (!sample.exists) return {};
  auto weights = ValueWeights(
      sample.read, tangents.mask == nullptr ? A(0) : sample.place.Mask(chunk, tangents.mask));
  if (tangents.offset != nullptr) {
    const A* dot = tangents.offset + 2 * sample.place.Index(chunk);
    const auto moved = DerivativeWeights(sample.read, sample.mask * dot[0], sample.mask * dot[1]);
    for (int i = 0; i < kCorners; ++i) weights.corner[i] += moved.corner[i];
  }
  return weights;
}

// The operands that move: x, where `x_dot` is not null, the weights of samples, and the kernel.
template <typename T>
struct Moving {
  const T* x_dot;
  bool weights, kernel;
};

// Writes kSize channels of a sample's columns, from channel `c` of its group on: of the column
// itself, which the tangent of the kernel multiplies, and of its tangent.
template <int kSize, typename T>
__device__ __forceinline__ void StoreColumns(const DeformConv2dChunk& chunk,
                                             const ColumnSampleDot<T>& sample, int c, const T* x,
                                             const Moving<T>& moving, T* columns) {
  const int32_t pixel_bytes = chunk.sizes.pixel_bytes;
  int32_t row = sample.row;
  CornerChannels<T, kSize> corners;
  if (moving.kernel || moving.weights) {
    corners = LoadCorners<kSize>(sample, x + sample.x + c, pixel_bytes);
  }
  if (moving.kernel) {
    StoreGlobal(columns + chunk.ColumnIndex(row, sample.channel + c),
                Pack(Interpolate(sample, corners)));
    row += chunk.sizes.taps;
  }
  if (moving.x_dot == nullptr && !moving.weights) return;
  Unpacked<T, kSize> sum = {};
  if (moving.x_dot != nullptr) {
    AddCorners(LoadCorners<kSize>(sample, moving.x_dot + sample.x + c, pixel_bytes), sample.weight,
               sum);
  }
  if (moving.weights) AddCorners(corners, sample.weight_dot, sum);
  StoreGlobal(columns + chunk.ColumnIndex(row, sample.channel + c), Pack(sum));
}

template <typename T, int kSize>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    DeformConv2dColumnsJvpKernel(const DeformConv2dPrimals<T> primals,
                                 const DeformConv2dTangents<T> tangents, bool kernel_moves,
                                 ChunkStart start, T* columns, const DeformConv2dChunk chunk) {
  ColumnSampleDot<T>* const samples = SharedMemory<ColumnSampleDot<T>>();
  const int count = BlockSamples(chunk), thread = ThreadInBlock();
  const Moving<T> moving = {tangents.x, tangents.offset != nullptr || tangents.mask != nullptr,
                            kernel_moves};
  if (thread < count) {
    const BlockSample<T> sample(chunk, start, primals, thread);
    CornerWeights<Sum<T>> dot = {};
    if (moving.weights) dot = WeightsDot(chunk, sample, tangents);
    samples[thread] = {{chunk, sample}, dot};
  }
  __syncthreads();
  for (int i = threadIdx.y; i < count; i += blockDim.y) {
    for (int c = threadIdx.x * kSize; c < chunk.sizes.offset_group_channels;
         c += blockDim.x * kSize) {
      StoreColumns<kSize>(chunk, samples[i], c, primals.x, moving, columns);
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
