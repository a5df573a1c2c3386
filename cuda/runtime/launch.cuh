// SPDX-License-Identifier: MIT
// The launch of a kernel, and the shared memory of a block. Only the declaration of shared memory
// needs syntax of the CUDA compiler. All other code of a kernel file is plain C++, which the tests
// run on the host.
#ifndef JAX_DCN_CUDA_RUNTIME_LAUNCH_CUH_
#define JAX_DCN_CUDA_RUNTIME_LAUNCH_CUH_

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "cuda/runtime/enqueued.h"

namespace jax_dcn {

constexpr int kWarp = 32;

// The most shared memory of a block on every GPU since sm_80: what sm_86, sm_89 and sm_120 have.
// The Python rules that choose a kernel by its shared memory use the same limit.
constexpr int kMostSharedBytes = 99 << 10;

// The architecture compiled for, such as 900. The only thing in which code differs between
// architectures is the number of blocks for which the compiler saves registers.
#if defined(__CUDA_ARCH__)
constexpr int kArchitecture = __CUDA_ARCH__;
#else
constexpr int kArchitecture = 0;  // the host's part of a file, which compiles no kernel
#endif

// Shared memory of a multiprocessor, at least: newer GPUs of data centers have more than sm_80.
constexpr int MultiprocessorBytes(int architecture) {
  const bool small = architecture == 860 || architecture == 890 || architecture >= 1200;
  return (small ? 100 : 164) << 10;
}

// Blocks that a multiprocessor holds at once, two at most, when each takes so much shared memory. A
// second block samples while the first one multiplies, but a kernel must not save registers for a
// block that does not fit.
constexpr int ResidentBlocks(int shared_bytes, int architecture = kArchitecture) {
  constexpr int kReservedBytes = 1 << 10;  // of each block, by the system
  return 2 * (shared_bytes + kReservedBytes) <= MultiprocessorBytes(architecture) ? 2 : 1;
}

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
};

// Blocks for so many items, when each block takes `each`.
inline unsigned BlocksFor(int64_t items, int64_t each) {
  return static_cast<unsigned>((items + each - 1) / each);
}

// Threads that share so many items: a power of two, so that lanes of one warp stay together.
inline unsigned LanesFor(int64_t items, unsigned most = kWarp) {
  unsigned lanes = 1;
  while (lanes < most && lanes < items) lanes *= 2;
  return lanes;
}

// Runs `kernel` with `arguments` on the stream; returns the error of the launch.
template <typename... Parameters, typename... Arguments>
cudaError_t Launch(void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream,
                   const Arguments&... arguments) {
  constexpr size_t kWithoutAsking = 48 << 10;
  if (shape.shared_bytes > kWithoutAsking) {
    // The limit belongs to the kernel, not to this launch: threads that launch with blocks of
    // different size ask for the same limit.
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMostSharedBytes);
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  ++launched_kernels;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

// The block's shared memory, `LaunchShape::shared_bytes` long.
template <typename T>
__device__ __forceinline__ T* SharedMemory() {
#if defined(__CUDACC__)
  extern __shared__ __align__(128) unsigned char memory[];
#else
  void* const memory = cuda_host::SharedMemory();
#endif
  return reinterpret_cast<T*>(memory);
}

}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_RUNTIME_LAUNCH_CUH_
