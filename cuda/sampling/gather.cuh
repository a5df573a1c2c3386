// SPDX-License-Identifier: MIT
// The gradient of x: every pixel of x adds up the gradients of the samples that read the pixel,
// always in the same order. No thread scatters, so no sum depends on chance.
//
// An operator supplies `Gradients`:
//   Type                              of x
//   group_channels                    channels that a segment's samples share
//   At(bin)                           -> Place, the pixel of a bin
//   Place::exists, Place::segment
//   Place::Rows(channel)              -> what the operator needs to find rows of this channel
//   Place::Row(rows, id)              -> the gradient of an entry's sample, from this channel on
//   Place::Put(channel, sum)          keeps the pixel's gradient
#ifndef JAX_DCN_CUDA_SAMPLING_GATHER_CUH_
#define JAX_DCN_CUDA_SAMPLING_GATHER_CUH_

#include <algorithm>

#include "cuda/runtime/launch.cuh"
#include "cuda/runtime/vector.cuh"
#include "cuda/sampling/bins.h"

namespace jax_dcn {
namespace {

constexpr unsigned kGatherThreads = 256;
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

// Some lanes serve one bin, and as many channels as the lanes hold. The blocks along y share the
// other channels.
template <typename Gradients, int kSize>
__global__ void __launch_bounds__(kGatherThreads, kGatherBlocks)
    SumBinsKernel(const Bins bins, const Gradients gradients) {
  using T = typename Gradients::Type;
  const int64_t bin = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (bin >= bins.count) return;
  const auto place = gradients.At(bin);
  const int32_t begin = bins.begins[bin], end = bins.ends[bin];
  if (!place.exists || end - begin > kLongBin) return;
  for (int c = (blockIdx.y * blockDim.x + threadIdx.x) * kSize; c < gradients.group_channels;
       c += gridDim.y * blockDim.x * kSize) {
    Unpacked<T, kSize> sum = {};
    AddEntries(bins, place, c, begin, end, 1, sum);
    place.Put(c, sum);
  }
}

// One block serves one long bin: its rows of lanes share the entries, and the first row adds up the
// sums.
template <typename Gradients, int kSize>
__global__ void __launch_bounds__(kGatherThreads, kGatherBlocks)
    SumLongBinsKernel(const Bins bins, const Gradients gradients) {
  using Sums = Unpacked<typename Gradients::Type, kSize>;
  Sums* const shared = SharedMemory<Sums>();  // [rows, lanes]
  const int rows = blockDim.y, row = threadIdx.y, lanes = blockDim.x, lane = threadIdx.x;
  for (int i = blockIdx.x; i < *bins.long_count; i += gridDim.x) {
    const int32_t bin = bins.long_bins[i];
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
}

// Sums the sorted bins, kSize channels of a pixel at a time.
template <int kSize, typename Gradients>
cudaError_t LaunchSumBins(cudaStream_t stream, const Bins& bins, const Gradients& gradients) {
  const int64_t vectors = gradients.group_channels / kSize;
  const unsigned lanes = LanesFor(vectors), rows = kGatherThreads / lanes;
  const dim3 block(lanes, rows);
  const dim3 grid(BlocksFor(bins.count, rows), std::min(BlocksFor(vectors, lanes), 64u));
  constexpr size_t kBytes = kGatherThreads * sizeof(Unpacked<typename Gradients::Type, kSize>);
  const cudaError_t error =
      Launch(SumBinsKernel<Gradients, kSize>, {grid, block}, stream, bins, gradients);
  if (error != cudaSuccess || bins.long_capacity == 0) return error;
  return Launch(SumLongBinsKernel<Gradients, kSize>, {bins.long_blocks(), block, kBytes}, stream,
                bins, gradients);
}

}  // namespace
}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_SAMPLING_GATHER_CUH_
