// SPDX-License-Identifier: MIT
// Kernels that sample columns, and their tangent.

#include "common/sampling/half.h"
#include "cuda/deform_conv2d/columns.h"
#include "cuda/sampling/placed_sample.cuh"

namespace jax_dcn {
namespace {

// Blocks for each multiprocessor, which leaves 64 registers for a thread, and 80 for sums in
// double: with 64 some of these spill.
template <typename T>
constexpr int kBlocks = sizeof(typename Accumulator<T>::type) == sizeof(float) ? 4 : 3;

template <typename T, int kSize>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    DeformConv2dColumnsKernel(const T* __restrict__ x, const typename Accumulator<T>::type* offset,
                              const typename Accumulator<T>::type* mask, ChunkStart start,
                              T* __restrict__ columns, const DeformConv2dChunk chunk) {
  using A = typename Accumulator<T>::type;
  PlacedSample<A>* const samples = SharedMemory<PlacedSample<A>>();
  const int count = BlockSamples(chunk), thread = ThreadInBlock();
  if (thread < count) {
    const ChunkSample sample(chunk, start, blockIdx.x * kBlockSamples + thread);
    const bool exists = sample.Exists(chunk);
    const BilinearSample<A> read = exists ? sample.Read(chunk, offset) : Nowhere<A>();
    samples[thread].Place(chunk, sample, read);
    samples[thread].weights = ValueWeights(read, exists ? sample.Mask(chunk, mask) : A(0));
  }
  __syncthreads();
  const int32_t channels = chunk.problem.channels;
  const int32_t group_channels = chunk.problem.offset_group_channels();
  for (int i = threadIdx.y; i < count; i += blockDim.y) {
    const PlacedSample<A>& sample = samples[i];
    for (int c = threadIdx.x * kSize; c < group_channels; c += blockDim.x * kSize) {
      A sums[kSize] = {};
      AddCorners(x + sample.x + c, sample, sample.weights, channels, sums);
      Store(columns + chunk.ColumnIndex(sample.row, sample.channel + c), sums);
    }
  }
}

// ----------------------------------------------------------------------------------------- tangent

// ẋ and x are sampled by the weights m w and ṁ w + m ẇ.
template <typename A>
struct alignas(16) PlacedSampleDot : PlacedSample<A> {
  CornerWeights<A> weights_dot;
};

template <typename T>
__device__ CornerWeights<typename Accumulator<T>::type> WeightsDot(
    const DeformConv2dChunk& chunk, const ChunkSample& sample,
    const BilinearSample<typename Accumulator<T>::type>& read,
    const DeformConv2dPrimals<T>& primals, const DeformConv2dTangents<T>& tangents) {
  using A = typename Accumulator<T>::type;
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
                                 ChunkStart start, T* __restrict__ columns,
                                 const DeformConv2dChunk chunk) {
  using A = typename Accumulator<T>::type;
  PlacedSampleDot<A>* const samples = SharedMemory<PlacedSampleDot<A>>();
  const int count = BlockSamples(chunk), thread = ThreadInBlock();
  const bool weights_move = tangents.offset != nullptr || tangents.mask != nullptr;
  if (thread < count) {
    const ChunkSample sample(chunk, start, blockIdx.x * kBlockSamples + thread);
    const bool exists = sample.Exists(chunk);
    const BilinearSample<A> read = exists ? sample.Read(chunk, primals.offset) : Nowhere<A>();
    PlacedSampleDot<A>& placed = samples[thread];
    placed.Place(chunk, sample, read);
    placed.weights = ValueWeights(read, exists ? sample.Mask(chunk, primals.mask) : A(0));
    placed.weights_dot = {};
    if (exists && weights_move) {
      placed.weights_dot = WeightsDot(chunk, sample, read, primals, tangents);
    }
  }
  __syncthreads();
  const int32_t channels = chunk.problem.channels;
  const int32_t group_channels = chunk.problem.offset_group_channels();
  for (int i = threadIdx.y; i < count; i += blockDim.y) {
    const PlacedSampleDot<A>& sample = samples[i];
    for (int c = threadIdx.x * kSize; c < group_channels; c += blockDim.x * kSize) {
      int32_t row = sample.row;
      if (kernel_moves) {
        A sums[kSize] = {};
        AddCorners(primals.x + sample.x + c, sample, sample.weights, channels, sums);
        Store(columns + chunk.ColumnIndex(row, sample.channel + c), sums);
        row += chunk.taps();
      }
      if (tangents.x == nullptr && !weights_move) continue;
      A sums[kSize] = {};
      if (tangents.x != nullptr) {
        AddCorners(tangents.x + sample.x + c, sample, sample.weights, channels, sums);
      }
      if (weights_move) {
        AddCorners(primals.x + sample.x + c, sample, sample.weights_dot, channels, sums);
      }
      Store(columns + chunk.ColumnIndex(row, sample.channel + c), sums);
    }
  }
}

}  // namespace

template <typename T>
cudaError_t LaunchDeformConv2dColumns(cudaStream_t stream, const DeformConv2dChunk& chunk,
                                      const DeformConv2dPrimals<T>& primals, ChunkStart start,
                                      T* columns) {
  using A = typename Accumulator<T>::type;
  if (chunk.samples() == 0) return cudaSuccess;
  const bool vectors = AreVectors<T>(chunk.problem, {primals.x, columns});
  return JAX_DCN_LAUNCH(DeformConv2dColumnsKernel, vectors, sizeof(PlacedSample<A>), primals.x,
                        primals.offset, primals.mask, start, columns, chunk);
}

template <typename T>
cudaError_t LaunchDeformConv2dColumnsJvp(cudaStream_t stream, const DeformConv2dChunk& chunk,
                                         const DeformConv2dPrimals<T>& primals,
                                         const DeformConv2dTangents<T>& tangents, ChunkStart start,
                                         T* columns) {
  using A = typename Accumulator<T>::type;
  if (chunk.samples() == 0) return cudaSuccess;
  const bool vectors = AreVectors<T>(chunk.problem, {primals.x, tangents.x, columns});
  return JAX_DCN_LAUNCH(DeformConv2dColumnsJvpKernel, vectors, sizeof(PlacedSampleDot<A>), primals,
                        tangents, tangents.kernel != nullptr, start, columns, chunk);
}

#define JAX_DCN_INSTANTIATE(T)                                                                   \
  template cudaError_t LaunchDeformConv2dColumns(cudaStream_t, const DeformConv2dChunk&,         \
                                                 const DeformConv2dPrimals<T>&, ChunkStart, T*); \
  template cudaError_t LaunchDeformConv2dColumnsJvp(                                             \
      cudaStream_t, const DeformConv2dChunk&, const DeformConv2dPrimals<T>&,                     \
      const DeformConv2dTangents<T>&, ChunkStart, T*);
JAX_DCN_INSTANTIATE(float)
JAX_DCN_INSTANTIATE(double)
JAX_DCN_INSTANTIATE(BFloat16)
JAX_DCN_INSTANTIATE(Float16)

}  // namespace jax_dcn
