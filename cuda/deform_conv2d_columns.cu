// SPDX-License-Identifier: MIT
// Kernels that sample columns, and those for the gradients of offset and mask.
//
// A block takes some samples: first each thread locates one, once for all channels, then groups of
// lanes read the four corners of one sample at a time, neighbouring lanes neighbouring channels.

#include "common/half.h"
#include "cuda/channels.cuh"
#include "cuda/deform_conv2d_columns.h"
#include "cuda/launch.cuh"

namespace jax_dcn {
namespace {

// Not tuned: no GPU was at hand. The samples of a block share corners, and fit into 8 KB.
constexpr unsigned kThreads = 256;
constexpr int kBlockSamples = 128;
// Blocks for each multiprocessor, which leaves 64 registers for a thread, and 80 for gradients and
// for sums in double: with 64 some of these spill.
constexpr int kGradientBlocks = 3;
template <typename T>
constexpr int kBlocks = sizeof(typename Accumulator<T>::type) == sizeof(float) ? 4 : 3;

// Weights of the corners by which the columns are sampled.
template <typename A>
struct alignas(16) PlacedSample {
  CornerWeights<A> weights;
  int32_t corner[kCorners];
  int64_t x;  // index of the first channel of the sample's group in its image
  int32_t row, channel;

  // Corners and weights are those of nowhere where the sample does not exist.
  __device__ void Place(const DeformConv2dChunk& chunk, const ChunkSample& sample,
                        const BilinearSample<A>& read) {
    for (int i = 0; i < kCorners; ++i) corner[i] = static_cast<int32_t>(read.corner[i]);
    channel = sample.group * static_cast<int32_t>(chunk.problem.offset_group_channels());
    x = sample.image * chunk.image_size() + channel;
    row = sample.Row(chunk, 0);
  }
};

template <typename A>
__device__ BilinearSample<A> Nowhere() {
  return {{kOutside, kOutside, kOutside, kOutside}, A(0), A(0)};
}

__device__ __forceinline__ int ThreadInBlock() { return threadIdx.y * blockDim.x + threadIdx.x; }

// Samples of this block.
__device__ __forceinline__ int BlockSamples(const DeformConv2dChunk& chunk) {
  return min(kBlockSamples, chunk.samples() - static_cast<int>(blockIdx.x) * kBlockSamples);
}

// The pixel at a corner. One that is outside is zero, and not read: the image multiplied by zero
// would turn an infinity into a NaN.
template <int kSize, typename T, typename A>
__device__ __forceinline__ Channels<A, kSize> Corner(const T* x, const PlacedSample<A>& sample,
                                                     int i, int32_t channels) {
  const int32_t corner = sample.corner[i];
  if (corner == kOutside) return {};
  return Load<kSize>(x + int64_t{corner} * channels);
}

// sums += Σ_i w_i x_i
template <int kSize, typename T, typename A>
__device__ __forceinline__ void AddCorners(const T* x, const PlacedSample<A>& sample,
                                           const CornerWeights<A>& weights, int32_t channels,
                                           A (&sums)[kSize]) {
#pragma unroll
  for (int i = 0; i < kCorners; ++i) {
    const auto pixel = Corner<kSize>(x, sample, i, channels);
#pragma unroll
    for (int c = 0; c < kSize; ++c) sums[c] += weights.corner[i] * pixel[c];
  }
}

// ---------------------------------------------------------------------------------------- columns

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

// --------------------------------------------------------------------------------------- gradients

// With g the gradient of a sample's column, the gradients of its mask and its offset are linear in
// the four dot products of g with the corners, Σ_c g x_i. `columns` may be `grad_columns`: each
// number is read before the same thread writes it.
template <typename T, int kSize>
__global__ void __launch_bounds__(kThreads, kGradientBlocks)
    DeformConv2dSampleGradientsKernel(const DeformConv2dPrimals<T> primals, ChunkStart start,
                                      const T* grad_columns, const DeformConv2dCotangents<T> grads,
                                      T* columns, const DeformConv2dChunk chunk) {
  using A = typename Accumulator<T>::type;
  PlacedSample<A>* const samples = SharedMemory<PlacedSample<A>>();
  CornerWeights<A>* const dots = reinterpret_cast<CornerWeights<A>*>(samples + kBlockSamples);
  const int count = BlockSamples(chunk), thread = ThreadInBlock();
  const int index = blockIdx.x * kBlockSamples + min(thread, count - 1);
  const ChunkSample own(chunk, start, index);
  const bool exists = thread < count && own.Exists(chunk);
  BilinearSample<A> read = Nowhere<A>();
  A mask = 0;
  if (exists) {
    read = own.Read(chunk, primals.offset);
    mask = own.Mask(chunk, primals.mask);
  }
  if (thread < count) {
    samples[thread].Place(chunk, own, read);
    samples[thread].weights = ValueWeights(read, mask);
  }
  __syncthreads();
  const int32_t channels = chunk.problem.channels;
  const int32_t group_channels = chunk.problem.offset_group_channels();
  // All lanes of a warp go through the loop equally often, since they exchange their sums.
  for (int first = 0; first < count; first += blockDim.y) {
    const int i = first + threadIdx.y;
    const PlacedSample<A>& sample = samples[min(i, count - 1)];
    A sums[kCorners] = {};
    for (int c = threadIdx.x * kSize; i < count && c < group_channels; c += blockDim.x * kSize) {
      const int64_t column = chunk.ColumnIndex(sample.row, sample.channel + c);
      const auto g = Load<kSize>(grad_columns + column);
      A values[kSize] = {};
#pragma unroll
      for (int j = 0; j < kCorners; ++j) {
        const auto pixel = Corner<kSize>(primals.x + sample.x + c, sample, j, channels);
#pragma unroll
        for (int k = 0; k < kSize; ++k) {
          sums[j] += pixel[k] * g[k];
          values[k] += sample.weights.corner[j] * pixel[k];
        }
      }
      if (columns != nullptr) Store(columns + column, values);
    }
    for (int lanes = blockDim.x / 2; lanes > 0; lanes /= 2) {
#pragma unroll
      for (int j = 0; j < kCorners; ++j) sums[j] += __shfl_xor_sync(0xffffffffu, sums[j], lanes);
    }
    if (i < count && threadIdx.x == 0) {
      for (int j = 0; j < kCorners; ++j) dots[i].corner[j] = sums[j];
    }
  }
  __syncthreads();
  if (!exists) return;
  const A* const own_dots = dots[thread].corner;
  const int64_t place = own.Index(chunk);
  if (grads.mask != nullptr) grads.mask[place] = Combine(ValueWeights(read, A(1)), own_dots);
  if (grads.offset != nullptr) {
    grads.offset[2 * place] = Combine(DerivativeWeights(read, mask, A(0)), own_dots);
    grads.offset[2 * place + 1] = Combine(DerivativeWeights(read, A(0), mask), own_dots);
  }
}

// ---------------------------------------------------------------------------------------- launches

// `samples` bytes of shared memory for each sample of a block.
LaunchShape ShapeFor(const DeformConv2dChunk& chunk, int size, size_t sample_bytes) {
  const unsigned lanes = LanesFor(chunk.problem.offset_group_channels() / size);
  return {BlocksFor(chunk.samples(), kBlockSamples), dim3(lanes, kThreads / lanes),
          kBlockSamples * sample_bytes};
}

// Calls `launch` with the kernel of the larger vectors where the arrays allow them.
#define JAX_DCN_LAUNCH(kernel, vectors, sample, ...)                                             \
  (vectors                                                                                       \
       ? Launch(kernel<T, kVector<T>>, ShapeFor(chunk, kVector<T>, sample), stream, __VA_ARGS__) \
       : Launch(kernel<T, 1>, ShapeFor(chunk, 1, sample), stream, __VA_ARGS__))

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

template <typename T>
cudaError_t LaunchDeformConv2dSampleGradients(cudaStream_t stream, const DeformConv2dChunk& chunk,
                                              const DeformConv2dPrimals<T>& primals,
                                              ChunkStart start, const T* grad_columns,
                                              const DeformConv2dCotangents<T>& grads, T* columns) {
  using A = typename Accumulator<T>::type;
  if (chunk.samples() == 0) return cudaSuccess;
  const bool vectors = AreVectors<T>(chunk.problem, {primals.x, grad_columns, columns});
  constexpr size_t kSampleBytes = sizeof(PlacedSample<A>) + sizeof(CornerWeights<A>);
  return JAX_DCN_LAUNCH(DeformConv2dSampleGradientsKernel, vectors, kSampleBytes, primals, start,
                        grad_columns, grads, columns, chunk);
}

#define JAX_DCN_INSTANTIATE(T)                                                                     \
  template cudaError_t LaunchDeformConv2dColumns(cudaStream_t, const DeformConv2dChunk&,           \
                                                 const DeformConv2dPrimals<T>&, ChunkStart, T*);   \
  template cudaError_t LaunchDeformConv2dColumnsJvp(                                               \
      cudaStream_t, const DeformConv2dChunk&, const DeformConv2dPrimals<T>&,                       \
      const DeformConv2dTangents<T>&, ChunkStart, T*);                                             \
  template cudaError_t LaunchDeformConv2dSampleGradients(                                          \
      cudaStream_t, const DeformConv2dChunk&, const DeformConv2dPrimals<T>&, ChunkStart, const T*, \
      const DeformConv2dCotangents<T>&, T*);
JAX_DCN_INSTANTIATE(float)
JAX_DCN_INSTANTIATE(double)
JAX_DCN_INSTANTIATE(BFloat16)
JAX_DCN_INSTANTIATE(Float16)

}  // namespace jax_dcn
