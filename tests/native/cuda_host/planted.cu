// SPDX-License-Identifier: MIT
// Kernels with and without mistakes, to prove that the emulator finds them. Each function returns
// the error of the launch.

#include <cuda_runtime.h>

#include <cstring>

#include "cuda/runtime/instructions.cuh"
#include "cuda/runtime/launch.cuh"
#include "cuda/sampling/sample.cuh"

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

// Lanes of one warp, by two instructions under one mask.
__global__ void DifferentInstructionsKernel(const int* in, int* out) {
  if (threadIdx.x % kWarp < 9) {
    out[threadIdx.x] = __shfl_sync(~0u, in[threadIdx.x], 0);
  } else {
    out[threadIdx.x] = __shfl_sync(~0u, in[threadIdx.x], 1);
  }
}

// Lanes may wait for each other in different places.
__global__ void DifferentPlacesKernel(const int* in, int* out) {
  if (threadIdx.x % kWarp < 9) {
    __syncwarp();
  } else {
    __syncwarp();
  }
  out[threadIdx.x] = in[threadIdx.x];
}

// Copies 16 bytes a thread to shared memory, `kShift` bytes from where they may be.
template <int kShift>
__global__ void CopyKernel(const int* in, int* out) {
  unsigned char* const shared = SharedMemory<unsigned char>() + kShift;
  if (threadIdx.x == 0) CopyAsync(shared, in, true);
  CommitCopies();
  WaitForCopies<0>();
  __syncthreads();
  out[threadIdx.x] = *reinterpret_cast<const volatile unsigned char*>(shared);
}

// Stores and loads a value of each thread, kStride values apart.
template <typename Bits, int kStride>
__global__ void StridedKernel(const int* in, int* out) {
  Bits* const mine = SharedMemory<Bits>() + threadIdx.x * kStride;
  Bits bits = {};
  std::memcpy(&bits, &in[threadIdx.x], sizeof(int));
  StoreSharedBits(mine, bits);
  bits = LoadSharedBits<Bits>(mine);
  std::memcpy(&out[threadIdx.x], &bits, sizeof(int));
}

struct SampleWithTail : Sample<float> {
  uint4 tail;
};

// Reads a located sample of each thread.
template <typename Located>
__global__ void LocatedKernel(const int* in, int* out) {
  Located* const mine = SharedMemory<Located>() + threadIdx.x;
  mine->pixel[0] = in[threadIdx.x];
  out[threadIdx.x] = InShared(*mine).pixel[0];
}

// Stores 16 bytes a thread, in rows of kRowBytes for each eight threads, column by column, and
// loads them as matrices and as they are.
template <int kRowBytes>
__global__ void ColumnsKernel(const int* in, int* out) {
  unsigned char* const shared = SharedMemory<unsigned char>();
  unsigned char* const mine = shared + threadIdx.x % 8 * kRowBytes + threadIdx.x / 8 * 16;
  StoreSharedBits(mine, make_uint4(in[threadIdx.x], 0, 0, 0));
  __syncthreads();
  uint32_t matrices[4];
  LoadMatrices(matrices, mine);
  out[threadIdx.x] = static_cast<int>(LoadSharedBits<uint4>(mine).x);
}

int Run(void (*kernel)(const int*, int*), int threads, const int* in, int* out) {
  return Launch(kernel, {1, static_cast<unsigned>(threads), threads * sizeof(int)}, nullptr, in,
                out);
}

template <int kRowBytes>
int RunColumns(int threads, const int* in, int* out) {
  const LaunchShape shape = {1, static_cast<unsigned>(threads), 8 * kRowBytes};
  return Launch(ColumnsKernel<kRowBytes>, shape, nullptr, in, out);
}

template <typename Bits, int kStride>
int RunStrided(int threads, const int* in, int* out) {
  const LaunchShape shape = {1, static_cast<unsigned>(threads), threads * kStride * sizeof(Bits)};
  return Launch(StridedKernel<Bits, kStride>, shape, nullptr, in, out);
}

template <typename Located>
int RunLocated(int threads, const int* in, int* out) {
  const LaunchShape shape = {1, static_cast<unsigned>(threads), threads * sizeof(Located)};
  return Launch(LocatedKernel<Located>, shape, nullptr, in, out);
}

// Two blocks of the widest fused kernel fit where there is shared memory for them.
constexpr int kFusedBytes = 78 << 10;
static_assert(ResidentBlocks(kFusedBytes, 800) == 2 && ResidentBlocks(kFusedBytes, 900) == 2);
static_assert(ResidentBlocks(kFusedBytes, 1000) == 2 && ResidentBlocks(kFusedBytes, 1030) == 2);
static_assert(ResidentBlocks(kFusedBytes, 860) == 1 && ResidentBlocks(kFusedBytes, 890) == 1);
static_assert(ResidentBlocks(kFusedBytes, 1200) == 1 && ResidentBlocks(kFusedBytes, 1210) == 1);
static_assert(ResidentBlocks(49 << 10, 860) == 2 && ResidentBlocks(50 << 10, 860) == 1);

template <int kSharedBytes>
int RunWith(int threads, const int* in, int* out) {
  const LaunchShape shape = {1, static_cast<unsigned>(threads), kSharedBytes};
  return Launch(ReverseKernel<true>, shape, nullptr, in, out);
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
JAX_DCN_PLANT(different_instructions, DifferentInstructionsKernel)
JAX_DCN_PLANT(different_places, DifferentPlacesKernel)
JAX_DCN_PLANT(copy, CopyKernel<0>)
JAX_DCN_PLANT(copy_unaligned, CopyKernel<8>)
JAX_DCN_PLANT(beyond_shared_memory, BeyondSharedMemoryKernel)

#define JAX_DCN_PLANT_LAUNCH(name, run)                                                  \
  extern "C" __attribute__((visibility("default"))) int name(int threads, const int* in, \
                                                             int* out) {                 \
    using namespace jax_dcn;                                                             \
    return run(threads, in, out);                                                        \
  }

JAX_DCN_PLANT_LAUNCH(rows_of_144_bytes, RunColumns<144>)
JAX_DCN_PLANT_LAUNCH(rows_of_128_bytes, RunColumns<128>)
JAX_DCN_PLANT_LAUNCH(rows_of_160_bytes, RunColumns<160>)
JAX_DCN_PLANT_LAUNCH(words, (RunStrided<int, 1>))
JAX_DCN_PLANT_LAUNCH(every_second_word, (RunStrided<int, 2>))
JAX_DCN_PLANT_LAUNCH(every_third_pair, (RunStrided<uint2, 3>))
JAX_DCN_PLANT_LAUNCH(every_fourth_pair, (RunStrided<uint2, 4>))
JAX_DCN_PLANT_LAUNCH(samples, RunLocated<Sample<float>>)
JAX_DCN_PLANT_LAUNCH(samples_of_48_bytes, RunLocated<SampleWithTail>)
JAX_DCN_PLANT_LAUNCH(shared_99_kb, RunWith<(99 << 10)>)
JAX_DCN_PLANT_LAUNCH(shared_100_kb, RunWith<(100 << 10)>)

extern "C" __attribute__((visibility("default"))) const char* failure() {
  return cudaGetErrorString(cudaErrorLaunchFailure);
}
