// SPDX-License-Identifier: MIT
// The samples of a block, for the kernels that read or write columns: each thread locates one
// sample, once for all channels, and groups of lanes then read the four corners of one sample at a
// time, neighbouring lanes neighbouring channels.
#ifndef JAX_DCN_CUDA_DEFORM_CONV2D_BLOCK_SAMPLES_CUH_
#define JAX_DCN_CUDA_DEFORM_CONV2D_BLOCK_SAMPLES_CUH_

#include <initializer_list>

#include "cuda/deform_conv2d/chunk.h"
#include "cuda/runtime/launch.cuh"
#include "cuda/sampling/sample.cuh"

namespace jax_dcn {

// Not measured: no GPU was at hand. The samples of a block share corners, and fit into 8 KB.
constexpr unsigned kThreads = 256;
constexpr int kBlockSamples = 128;

// The sample of this block that a thread locates. A sample that does not exist reads nothing.
template <typename T>
struct BlockSample {
  ChunkSample place;
  bool exists;
  BilinearSample<Sum<T>> read;
  Sum<T> mask;

  __device__ __forceinline__ BlockSample(const DeformConv2dChunk& chunk, ChunkStart start,
                                         const DeformConv2dPrimals<T>& primals, int index)
      : place(chunk, start, blockIdx.x * kBlockSamples + index),
        exists(place.Exists(chunk)),
        read(exists ? place.Read(chunk, primals.offset) : Nowhere<Sum<T>>()),
        mask(exists ? place.Mask(chunk, primals.mask) : Sum<T>(0)) {}
};

// A sample of the columns' weights, and where its channels are.
template <typename T>
struct alignas(16) ColumnSample : Sample<Sum<T>> {
  int32_t row, channel;  // of the columns and of x, where the sample's first element is
  int64_t x;             // index of the first channel of the sample's group in its image

  __device__ __forceinline__ ColumnSample(const DeformConv2dChunk& chunk,
                                          const BlockSample<T>& sample)
      : Sample<Sum<T>>(SampleOf(sample.read, sample.mask)),
        row(sample.place.Row(chunk, 0)),
        channel(sample.place.group * chunk.sizes.offset_group_channels),
        x(sample.place.image * chunk.sizes.image_elements() + channel) {}
};

__device__ __forceinline__ int ThreadInBlock() { return threadIdx.y * blockDim.x + threadIdx.x; }

// Samples of this block.
__device__ __forceinline__ int BlockSamples(const DeformConv2dChunk& chunk) {
  return min(kBlockSamples, chunk.samples() - static_cast<int>(blockIdx.x) * kBlockSamples);
}

// `sample_bytes` of shared memory for each sample of a block, whose threads move `size` channels.
inline LaunchShape ShapeFor(const DeformConv2dChunk& chunk, int size, size_t sample_bytes) {
  const unsigned lanes = LanesFor(chunk.sizes.offset_group_channels / size);
  return {BlocksFor(chunk.samples(), kBlockSamples), dim3(lanes, kThreads / lanes),
          kBlockSamples * sample_bytes};
}

// Whether vectors lie within one group of offsets and one group of features, and at multiples of
// their size in each array; null counts as aligned.
template <typename T>
bool AreVectors(const DeformConv2dSizes& sizes, std::initializer_list<const void*> arrays) {
  return AreAligned(arrays) && sizes.offset_group_channels % kVector<T> == 0 &&
         sizes.group_channels % kVector<T> == 0;
}

}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_DEFORM_CONV2D_BLOCK_SAMPLES_CUH_
