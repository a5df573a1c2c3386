// SPDX-License-Identifier: MIT
// The kernel that makes room for bins.

#include "cuda/runtime/launch.cuh"
#include "cuda/sampling/bins.h"
#include "cuda/sampling/sort.cuh"

namespace jax_dcn {
namespace {

constexpr unsigned kReserveThreads = 256;

// One thread serves one bin. The bins of a warp lie side by side.
__global__ void __launch_bounds__(kReserveThreads) ReserveBinsKernel(Bins bins) {
  const int64_t bin = int64_t{blockIdx.x} * kReserveThreads + threadIdx.x;
  const int lane = threadIdx.x % kWarp;
  const bool exists = bin < bins.count;
  const int32_t entries = exists ? bins.ends[bin] : 0;
  const int32_t sum = WarpInclusiveSum(entries, lane);
  int32_t begin = 0;
  if (lane == kWarp - 1) begin = atomicAdd(bins.reserved, sum);
  begin = __shfl_sync(0xffffffffu, begin, kWarp - 1) + sum - entries;
  if (!exists) return;
  bins.begins[bin] = bins.ends[bin] = begin;
  if (entries > kLongBin) bins.long_bins[atomicAdd(bins.long_count, 1)] = bin;
}

}  // namespace

cudaError_t LaunchReserveBins(cudaStream_t stream, const Bins& bins) {
  return Launch(ReserveBinsKernel, {BlocksFor(bins.count, kReserveThreads), kReserveThreads},
                stream, bins);
}

}  // namespace jax_dcn
