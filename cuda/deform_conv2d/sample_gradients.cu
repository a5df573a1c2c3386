// SPDX-License-Identifier: MIT
// The gradients of offset and mask, from the gradient of the columns. The columns may take the
// place of their gradient.

#include "cuda/deform_conv2d/block_samples.cuh"
#include "cuda/deform_conv2d/columns.h"

namespace jax_dcn {
namespace {

// Blocks for each multiprocessor, which leaves 80 registers for a thread: with 64 some spill.
constexpr int kBlocks = 3;

// dots[i] += Σ_c g x_i over this thread's channels, with g the gradient of the sample's column.
// Writes the column to `columns` unless `columns` is null.
template <int kSize, typename T>
__device__ __forceinline__ void AddChannels(const DeformConv2dChunk& chunk,
                                            const ColumnSample<T>& sample, const T* x,
                                            const T* grad_columns, T* columns,
                                            Sum<T> (&dots)[kCorners]) {
  for (int c = threadIdx.x * kSize; c < chunk.sizes.offset_group_channels;
       c += blockDim.x * kSize) {
    const int64_t column = chunk.ColumnIndex(sample.row, sample.channel + c);
    const auto corners = LoadCorners<kSize>(sample, x + sample.x + c, chunk.sizes.pixel_bytes);
    AddDots(corners, Unpack(Load<kSize>(grad_columns + column)), dots);
    if (columns != nullptr) StoreGlobal(columns + column, Pack(Interpolate(sample, corners)));
  }
}

// The gradients of a sample's mask and offset are linear in the dot products.
template <typename T>
__device__ __forceinline__ void StoreGradients(const DeformConv2dChunk& chunk,
                                               const BlockSample<T>& sample,
                                               const CornerWeights<Sum<T>>& dots,
                                               const DeformConv2dCotangents<T>& grads) {
  using A = Sum<T>;
  const int64_t place = sample.place.Index(chunk);
  if (grads.mask != nullptr) {
    grads.mask[place] = Combine(ValueWeights(sample.read, A(1)), dots.corner);
  }
  if (grads.offset == nullptr) return;
  A* const grad = grads.offset + 2 * place;
  grad[0] = Combine(DerivativeWeights(sample.read, sample.mask, A(0)), dots.corner);
  grad[1] = Combine(DerivativeWeights(sample.read, A(0), sample.mask), dots.corner);
}

// `columns` may be `grad_columns`: each element is read before the same thread writes it.
template <typename T, int kSize>
__global__ void __launch_bounds__(kThreads, kBlocks)
    DeformConv2dSampleGradientsKernel(const DeformConv2dPrimals<T> primals, ChunkStart start,
                                      const T* grad_columns, const DeformConv2dCotangents<T> grads,
                                      T* columns, const DeformConv2dChunk chunk) {
  using A = Sum<T>;
  ColumnSample<T>* const samples = SharedMemory<ColumnSample<T>>();
  CornerWeights<A>* const dots = reinterpret_cast<CornerWeights<A>*>(samples + kBlockSamples);
  const int count = BlockSamples(chunk), thread = ThreadInBlock();
  const BlockSample<T> own(chunk, start, primals, min(thread, count - 1));
  if (thread < count) samples[thread] = {chunk, own};
  __syncthreads();
  // All lanes of a warp go through the loop equally often, since they exchange their sums.
  for (int first = 0; first < count; first += blockDim.y) {
    const int i = first + threadIdx.y;
    A sums[kCorners] = {};
    if (i < count) AddChannels<kSize>(chunk, samples[i], primals.x, grad_columns, columns, sums);
    for (int lanes = blockDim.x / 2; lanes > 0; lanes /= 2) {
#pragma unroll
      for (int j = 0; j < kCorners; ++j) sums[j] += __shfl_xor_sync(0xffffffffu, sums[j], lanes);
    }
    if (i < count && threadIdx.x == 0) dots[i] = {sums[0], sums[1], sums[2], sums[3]};
  }
  __syncthreads();
  if (thread < count && own.exists) StoreGradients(chunk, own, dots[thread], grads);
}

}  // namespace

template <typename T>
cudaError_t LaunchDeformConv2dSampleGradients(cudaStream_t stream, const DeformConv2dChunk& chunk,
                                              const DeformConv2dPrimals<T>& primals,
                                              ChunkStart start, const T* grad_columns,
                                              const DeformConv2dCotangents<T>& grads, T* columns) {
  if (chunk.samples() == 0) return cudaSuccess;
  constexpr size_t kSampleBytes = sizeof(ColumnSample<T>) + sizeof(CornerWeights<Sum<T>>);
  const bool vectors = AreVectors<T>(chunk.sizes, {primals.x, grad_columns, columns});
  return WithVectorSize<T>(vectors, [&](auto size) {
    return Launch(DeformConv2dSampleGradientsKernel<T, size>, ShapeFor(chunk, size, kSampleBytes),
                  stream, primals, start, grad_columns, grads, columns, chunk);
  });
}

#define JAX_DCN_INSTANTIATE(T)                                                                     \
  template cudaError_t LaunchDeformConv2dSampleGradients(                                          \
      cudaStream_t, const DeformConv2dChunk&, const DeformConv2dPrimals<T>&, ChunkStart, const T*, \
      const DeformConv2dCotangents<T>&, T*);
JAX_DCN_INSTANTIATE(float)
JAX_DCN_INSTANTIATE(double)
JAX_DCN_INSTANTIATE(BFloat16)
JAX_DCN_INSTANTIATE(Float16)

}  // namespace jax_dcn
