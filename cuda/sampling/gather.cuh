// SPDX-License-Identifier: MIT
// The gradient of x: every pixel of x adds up the gradients of the samples that read the pixel,
// always in the same order. No thread scatters, so no sum depends on chance.
//
// An operator supplies `Gradients`:
//   Type                              of x
//   group_channels                    channels that a segment's samples share
//   At(bin)                           -> Place, the pixel of a bin
//   Place::exists, Place::segment
//   Place::Rows(channel)              -> where the operator finds rows of this channel
//   Place::Row(rows, id)              -> the gradient of an entry's sample, from this channel on
//   Place::Put(channel, sum)          keeps the pixel's gradient
#ifndef JAX_DCN_CUDA_SAMPLING_GATHER_CUH_
#define JAX_DCN_CUDA_SAMPLING_GATHER_CUH_

#include <algorithm>

#include "cuda/runtime/launch.cuh"
#include "cuda/runtime/vector.cuh"
#include "cuda/sampling/bins.h"
#include "cuda/sampling/sort.cuh"

namespace jax_dcn {
namespace {

// Blocks for each multiprocessor, which leaves 64 registers for a thread.
constexpr unsigned kGatherBlocks = 4;

// sum += Σ w g over the entries from `first` in steps of `step`, for channels from `channel`.
template <int kSize, typename Place, typename T>
__device__ __forceinline__ void AddEntries(const Bins& bins, const Place& place, int32_t channel,
                                           int32_t first, int32_t end, int step,
                                           Unpacked<T, kSize>& sum) {
  const Sum<T>* const weights = bins.WeightsOf<Sum<T>>(place.segment);
  const auto rows = place.Rows(channel);
#pragma unroll 4
  for (int32_t e = first; e < end; e += step) {
    const int32_t id = bins.ids[e];
    const Sum<T> weight = weights[id];
    const Unpacked<T, kSize> g = Unpack(LoadConstant<kSize>(place.Row(rows, id)));
#pragma unroll
    for (int i = 0; i < kSize; ++i) sum.value[i] += weight * g.value[i];
  }
}

// Some threads sum one bin, each of them some channels. All threads of the block call.
template <int kSize, typename Gradients>
__device__ __forceinline__ void SumBin(const Bins& bins, const Gradients& gradients, int64_t bin) {
  if (bin >= bins.count) return;
  const auto place = gradients.At(bin);
  const int32_t begin = bins.begins[bin], end = bins.ends[bin];
  if (!place.exists || end - begin > kLongBin) return;
  for (int c = threadIdx.x * kSize; c < gradients.group_channels; c += blockDim.x * kSize) {
    Unpacked<typename Gradients::Type, kSize> sum = {};
    AddEntries(bins, place, c, begin, end, 1, sum);
    place.Put(c, sum);
  }
}

// One block sums one long bin. The rows of threads share the entries, and the first row adds up the
// sums.
template <int kSize, typename Gradients>
__device__ __forceinline__ void SumLongBin(const Bins& bins, const Gradients& gradients,
                                           int32_t bin) {
  using Sums = Unpacked<typename Gradients::Type, kSize>;
  Sums* const shared = SharedMemory<Sums>();  // [rows, lanes]
  const int rows = blockDim.y, row = threadIdx.y, lanes = blockDim.x, lane = threadIdx.x;
  const auto place = gradients.At(bin);
  for (int first = 0; first < gradients.group_channels; first += lanes * kSize) {
    const int c = first + lane * kSize;
    Sums sum = {};
    if (c < gradients.group_channels) {
      AddEntries(bins, place, c, bins.begins[bin] + row, bins.ends[bin], rows, sum);
    }
    shared[row * lanes + lane] = sum;
    __syncthreads();
    if (row == 0 && c < gradients.group_channels) {
      for (int r = 1; r < rows; ++r) {
#pragma unroll
        for (int k = 0; k < kSize; ++k) sum.value[k] += shared[r * lanes + lane].value[k];
      }
      place.Put(c, sum);
    }
    __syncthreads();
  }
}

// Sorts and sums the bins. The first blocks take the long bins, one at a time. Every other block
// takes as many neighbouring bins as the block has rows of threads: warps sort the bins, and rows
// sum the bins.
template <typename Gradients, int kSize>
__global__ void __launch_bounds__(kSortThreads, kGatherBlocks)
    GatherBinsKernel(const Bins bins, const Gradients gradients) {
  const unsigned long_blocks = bins.long_blocks();
  if (blockIdx.x < long_blocks) {
    for (int i = blockIdx.x; i < *bins.long_count; i += long_blocks) {
      SortLongBin(bins, bins.long_bins[i]);
      __syncthreads();
      SumLongBin<kSize>(bins, gradients, bins.long_bins[i]);
    }
    return;
  }
  const int64_t first = int64_t{blockIdx.x - long_blocks} * blockDim.y;
  for (unsigned row = SortThread() / kWarp; row < blockDim.y; row += kSortWarps) {
    SortBin(bins, first + row);
  }
  __syncthreads();
  SumBin<kSize>(bins, gradients, first + threadIdx.y);
}

// Sorts and sums the bins, kSize channels of a pixel at a time.
template <int kSize, typename Gradients>
cudaError_t LaunchGatherBins(cudaStream_t stream, const Bins& bins, const Gradients& gradients) {
  const unsigned lanes = LanesFor(gradients.group_channels / kSize, kSortThreads);
  const dim3 block(lanes, kSortThreads / lanes);
  const unsigned blocks = bins.long_blocks() + BlocksFor(bins.count, block.y);
  constexpr size_t kSumBytes = kSortThreads * sizeof(Unpacked<typename Gradients::Type, kSize>);
  const size_t bytes = bins.long_capacity == 0 ? 0 : std::max(kSortBytes, kSumBytes);
  return Launch(GatherBinsKernel<Gradients, kSize>, {blocks, block, bytes}, stream, bins,
                gradients);
}

}  // namespace
}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_SAMPLING_GATHER_CUH_
