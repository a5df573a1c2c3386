// SPDX-License-Identifier: MIT
// Kernels with and without mistakes, to prove that the emulator finds them. Each function returns
// the error of the launch.

#include <cuda_runtime.h>

#include "cuda/runtime/launch.cuh"

namespace jax_dcn {
namespace {

// Reverses the values of a block through shared memory.
template <bool kBarrier>
__global__ void ReverseKernel(const int* in, int* out) {
  int* const shared = SharedMemory<int>();
  shared[threadIdx.x] = in[threadIdx.x];
  if (kBarrier) __syncthreads();
  out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

// Sums over the lanes of each warp; without the barrier, through shared memory too early.
template <bool kBarrier>
__global__ void WarpSumKernel(const int* in, int* out) {
  int* const shared = SharedMemory<int>();
  int sum = in[threadIdx.x];
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
  if (threadIdx.x % kWarp == 3) shared[threadIdx.x / kWarp] = sum;
  if (kBarrier) __syncwarp();
  out[threadIdx.x] = shared[threadIdx.x / kWarp];
}

__global__ void DivergentBarriersKernel(const int* in, int* out) {
  if (threadIdx.x < 5) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = in[threadIdx.x];
}

__global__ void AbsentLaneKernel(const int* in, int* out) {
  if (threadIdx.x % kWarp != 7) out[threadIdx.x] = __shfl_sync(~0u, in[threadIdx.x], 0);
}

__global__ void BeyondSharedMemoryKernel(const int* in, int* out) {
  SharedMemory<int>()[threadIdx.x + 1] = in[threadIdx.x];
  out[threadIdx.x] = 0;
}

int Run(void (*kernel)(const int*, int*), int threads, const int* in, int* out) {
  return Launch(kernel, {1, static_cast<unsigned>(threads), threads * sizeof(int)}, nullptr, in,
                out);
}

}  // namespace
}  // namespace jax_dcn

#define JAX_DCN_PLANT(name, kernel)                                                      \
  extern "C" __attribute__((visibility("default"))) int name(int threads, const int* in, \
                                                             int* out) {                 \
    return jax_dcn::Run(jax_dcn::kernel, threads, in, out);                              \
  }

JAX_DCN_PLANT(reverse, ReverseKernel<true>)
JAX_DCN_PLANT(reverse_without_barrier, ReverseKernel<false>)
JAX_DCN_PLANT(warp_sum, WarpSumKernel<true>)
JAX_DCN_PLANT(warp_sum_without_barrier, WarpSumKernel<false>)
JAX_DCN_PLANT(divergent_barriers, DivergentBarriersKernel)
JAX_DCN_PLANT(absent_lane, AbsentLaneKernel)
JAX_DCN_PLANT(beyond_shared_memory, BeyondSharedMemoryKernel)

extern "C" __attribute__((visibility("default"))) const char* failure() {
  return cudaGetErrorString(cudaErrorLaunchFailure);
}
