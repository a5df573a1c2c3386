// SPDX-License-Identifier: MIT
// How threads share rows. A row is a query's group, and some lanes of a warp serve a row: each lane
// locates one sample of the row at a time, into shared memory, and reads some neighbouring channels
// of all located samples. Where rows are few, parts of the lanes share the samples of a row.
#ifndef JAX_DCN_CUDA_DEFORM_AGGREGATE_ROWS_CUH_
#define JAX_DCN_CUDA_DEFORM_AGGREGATE_ROWS_CUH_

#include <initializer_list>

#include "cuda/deform_aggregate/sizes.h"
#include "cuda/runtime/launch.cuh"
#include "cuda/sampling/sample.cuh"

namespace jax_dcn {
namespace {

constexpr unsigned kThreads = 256;

// The row of this thread, and the part of the row that is the thread's. Threads after the last row
// repeat the last row, and must store nothing.
struct ThreadRow {
  int32_t index, image, group;
  bool exists;
  int lane, part, parts;  // lanes of a part hold different channels

  __device__ __forceinline__ ThreadRow(const DeformAggregateSizes& sizes, int lanes)
      : lane(threadIdx.x % lanes), part(threadIdx.x / lanes), parts(blockDim.x / lanes) {
    const int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
    exists = row < sizes.rows;
    index = exists ? static_cast<int32_t>(row) : sizes.rows - 1;
    const int32_t query = sizes.by_groups.Quotient(index);  // in the batch
    group = sizes.by_groups.Remainder(index, query);
    image = sizes.by_queries.Quotient(query);
  }

  // Index in `weights` of a sample of the row; half of its index in `positions`.
  __device__ __forceinline__ int64_t SampleIndex(const DeformAggregateSizes& sizes,
                                                 int32_t sample) const {
    return int64_t{index} * sizes.samples + sample;
  }

  // Index in y of a channel of the row.
  __device__ __forceinline__ int64_t ChannelIndex(const DeformAggregateSizes& sizes,
                                                  int32_t channel) const {
    return int64_t{index} * sizes.group_channels + channel;
  }
};

// Shared memory for the located samples of this thread's row. The next row starts one sample later
// than necessary, in other banks.
template <typename Located>
__device__ __forceinline__ Located* LocatedSamples() {
  return SharedMemory<Located>() + threadIdx.y * (blockDim.x + 1);
}

// The number of samples that are located at once, from `first` on.
__device__ __forceinline__ int32_t LocatedAtOnce(const DeformAggregateSizes& sizes, int32_t first) {
  return min(static_cast<int32_t>(blockDim.x), sizes.samples - first);
}

// Threads that keep a GPU busy: half of what 128 multiprocessors hold. The number is the same for
// every GPU, because it decides in which order the samples of a row are summed. The emulator of the
// tests has a smaller number.
#ifndef JAX_DCN_BUSY_THREADS
#define JAX_DCN_BUSY_THREADS (1024 * 128)
#endif

// Calls `launch(shape, lanes)` for rows of which a thread moves `size` channels at once.
template <typename F>
cudaError_t LaunchRows(const DeformAggregateSizes& sizes, int size, size_t located_bytes,
                       const F& launch) {
  if (sizes.rows == 0) return cudaSuccess;
  const unsigned lanes = LanesFor(sizes.group_channels / size);
  unsigned threads = lanes;
  while (threads < kWarp && threads < lanes * sizes.samples &&
         int64_t{threads} * sizes.rows < JAX_DCN_BUSY_THREADS) {
    threads *= 2;
  }
  const unsigned rows = kThreads / threads;
  const LaunchShape shape = {BlocksFor(sizes.rows, rows), dim3(threads, rows),
                             rows * (threads + 1) * located_bytes};
  return launch(shape, static_cast<int>(lanes));
}

// Whether vectors lie within one group, and at multiples of their size in each array; null counts
// as aligned.
template <typename T>
bool AreVectors(const DeformAggregateSizes& sizes, std::initializer_list<const void*> arrays) {
  return AreAligned(arrays) && sizes.group_channels % kVector<T> == 0;
}

}  // namespace
}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_DEFORM_AGGREGATE_ROWS_CUH_
