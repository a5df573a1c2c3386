// SPDX-License-Identifier: MIT
// The samples of a block, for the kernels that read columns' worth of them: first each thread
// locates one, once for all channels, then groups of lanes read the four corners of one sample at a
// time, neighbouring lanes neighbouring channels.
#ifndef JAX_DCN_CUDA_SAMPLING_PLACED_SAMPLE_CUH_
#define JAX_DCN_CUDA_SAMPLING_PLACED_SAMPLE_CUH_

#include "cuda/runtime/channels.cuh"
#include "cuda/deform_conv2d/chunk.h"
#include "cuda/runtime/launch.cuh"

namespace jax_dcn {

// Not tuned: no GPU was at hand. The samples of a block share corners, and fit into 8 KB.
constexpr unsigned kThreads = 256;
constexpr int kBlockSamples = 128;

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

// `samples` bytes of shared memory for each sample of a block.
inline LaunchShape ShapeFor(const DeformConv2dChunk& chunk, int size, size_t sample_bytes) {
  const unsigned lanes = LanesFor(chunk.problem.offset_group_channels() / size);
  return {BlocksFor(chunk.samples(), kBlockSamples), dim3(lanes, kThreads / lanes),
          kBlockSamples * sample_bytes};
}

// Calls `launch` with the kernel of the larger vectors where the arrays allow them.
#define JAX_DCN_LAUNCH(kernel, vectors, sample, ...)                                             \
  (vectors                                                                                       \
       ? Launch(kernel<T, kVector<T>>, ShapeFor(chunk, kVector<T>, sample), stream, __VA_ARGS__) \
       : Launch(kernel<T, 1>, ShapeFor(chunk, 1, sample), stream, __VA_ARGS__))

}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_SAMPLING_PLACED_SAMPLE_CUH_
