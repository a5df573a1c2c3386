// SPDX-License-Identifier: MIT
// Sorts the entries of bins by id, so that they are always summed in the same order.
#ifndef JAX_DCN_CUDA_SAMPLING_SORT_CUH_
#define JAX_DCN_CUDA_SAMPLING_SORT_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/runtime/instructions.cuh"
#include "cuda/runtime/launch.cuh"
#include "cuda/sampling/bins.h"

namespace jax_dcn {

// Threads of a block that sorts, in any shape.
constexpr unsigned kSortThreads = 256;
constexpr unsigned kSortWarps = kSortThreads / kWarp;

__device__ __forceinline__ int SortThread() { return threadIdx.y * blockDim.x + threadIdx.x; }

// The sum over the lanes up to this one, of a warp whose threads all take part.
__device__ __forceinline__ int32_t WarpInclusiveSum(int32_t value, int lane) {
  for (int step = 1; step < kWarp; step *= 2) {
    const int32_t other = __shfl_up_sync(0xffffffffu, value, step);
    if (lane >= step) value += other;
  }
  return value;
}

// One warp sorts one bin that is not long: an entry's place is the number of smaller ids.
__device__ __forceinline__ void SortBin(const Bins& bins, int64_t bin) {
  if (bin >= bins.count) return;
  const int32_t begin = bins.begins[bin], end = bins.ends[bin];
  if (end - begin > kLongBin) return;
  for (int32_t i = begin + SortThread() % kWarp; i < end; i += kWarp) {
    const int32_t id = bins.unsorted[i];
    int32_t place = begin;
    for (int32_t j = begin; j < end; ++j) place += bins.unsorted[j] < id;
    bins.ids[place] = id;
  }
}

// Each thread owns some words of the bitmap. The words of neighbouring threads lie in different
// banks of shared memory.
constexpr int kOwnedWords = 8;
constexpr int kBitmapStride = kOwnedWords + 1;
constexpr int kBitmapWords = kSortThreads * kBitmapStride;
constexpr int kBitmapBits = kSortThreads * kOwnedWords * 32;
// Shared memory of a block that sorts long bins.
constexpr size_t kSortBytes = (kBitmapWords + kSortWarps) * sizeof(unsigned);

// The least value of a block's threads, by way of [warps] in shared memory.
__device__ __forceinline__ int32_t LeastOfBlock(int32_t value, int32_t* of_warps) {
  const int32_t of_warp = __reduce_min_sync(0xffffffffu, value);
  __syncthreads();  // all have read what was there
  if (SortThread() % kWarp == 0) of_warps[SortThread() / kWarp] = of_warp;
  __syncthreads();
  int32_t least = of_warps[0];
  for (unsigned w = 1; w < kSortWarps; ++w) least = min(least, of_warps[w]);
  return least;
}

// Marks the ids of a bin that are among the kBitmapBits ids from `first` on. All threads of the
// block call.
__device__ __forceinline__ void MarkIds(const Bins& bins, int32_t begin, int32_t end, int64_t first,
                                        unsigned* bitmap) {
  for (int32_t e = begin + SortThread(); e < end; e += kSortThreads) {
    const int64_t bit = bins.unsorted[e] - first;
    if (bit < 0 || bit >= kBitmapBits) continue;
    const int word = static_cast<int>(bit / 32);
    // Ids differ, so that adding a bit sets the bit.
    atomicAdd(&bitmap[word / kOwnedWords * kBitmapStride + word % kOwnedWords],
              1u << static_cast<int>(bit % 32));
  }
}

// Writes the ids that are marked in this thread's own words, in order, from `place` on.
__device__ __forceinline__ void WriteMarkedIds(const Bins& bins, const unsigned* own, int64_t first,
                                               int32_t place) {
  for (int w = 0; w < kOwnedWords; ++w) {
    const int32_t word_id = static_cast<int32_t>(first) + 32 * (SortThread() * kOwnedWords + w);
    for (unsigned bits = LoadSharedBits<unsigned>(&own[w]); bits != 0; bits &= bits - 1) {
      bins.ids[place++] = word_id + __ffs(static_cast<int>(bits)) - 1;
    }
  }
}

// One block sorts one long bin. The ids of a bin differ, so the block marks them in a bitmap, one
// part of the ids from the least to the greatest after the other, and reads the bitmap in order.
// The time grows with the number of ids, not with the square of the number.
__device__ __forceinline__ void SortLongBin(const Bins& bins, int32_t bin) {
  unsigned* const bitmap = SharedMemory<unsigned>();
  int32_t* const warp_sums = reinterpret_cast<int32_t*>(bitmap + kBitmapWords);
  const int thread = SortThread(), warp = thread / kWarp, lane = thread % kWarp;
  unsigned* const own = bitmap + thread * kBitmapStride;
  const int32_t begin = bins.begins[bin], end = bins.ends[bin];
  int32_t least = bins.unsorted[begin], greatest = least;
  for (int32_t e = begin + thread; e < end; e += kSortThreads) {
    least = min(least, bins.unsorted[e]);
    greatest = max(greatest, bins.unsorted[e]);
  }
  const int32_t begin_id = LeastOfBlock(least, warp_sums);
  const int32_t last_id = -LeastOfBlock(-greatest, warp_sums);
  int32_t place = begin;
  for (int64_t first = begin_id; first <= last_id; first += kBitmapBits) {
    for (int w = 0; w < kOwnedWords; ++w) StoreSharedBits(&own[w], 0u);
    __syncthreads();
    MarkIds(bins, begin, end, first, bitmap);
    __syncthreads();
    int32_t marked = 0;
    for (int w = 0; w < kOwnedWords; ++w) marked += __popc(LoadSharedBits<unsigned>(&own[w]));
    const int32_t sum = WarpInclusiveSum(marked, lane);
    if (lane == kWarp - 1) warp_sums[warp] = sum;
    __syncthreads();
    int32_t own_place = place + sum - marked;
    for (unsigned w = 0; w < kSortWarps; ++w) {
      if (static_cast<int>(w) < warp) own_place += warp_sums[w];
      place += warp_sums[w];
    }
    WriteMarkedIds(bins, own, first, own_place);
  }
}

}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_SAMPLING_SORT_CUH_
