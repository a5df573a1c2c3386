// SPDX-License-Identifier: MIT
// Stands in for CUDA's header of this name: what our kernels use of it, run on the host by grid.h.
// There are no floating-point atomics, because our kernels are bitwise reproducible.
#ifndef JAX_DCN_TESTS_CUDA_HOST_CUDA_RUNTIME_H_
#define JAX_DCN_TESTS_CUDA_HOST_CUDA_RUNTIME_H_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>

#include "grid.h"
#include "xla/ffi/api/ffi.h"

#define CUDART_VERSION 0  // no version of CUDA
#define __host__
#define __device__
#define __global__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define __shared__ static thread_local

// ------------------------------------------------------------------------------------- vector
// types

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};

inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

// -------------------------------------------------------------------------------------- device
// code

using std::max;
using std::min;

inline void __syncthreads(int line = __builtin_LINE()) { cuda_host::WaitForBlock(line); }

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  cuda_host::Exchange(mask, nullptr, 0, cuda_host::kAnywhere);
}

template <typename T>
T __ldg(const T* pointer) {
  return *pointer;
}

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __clz(int value) { return value == 0 ? 32 : __builtin_clz(value); }
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

namespace cuda_host {

template <typename T>
T ValueOf(const Values& values, int lane) {
  T value;
  std::memcpy(&value, values.of_lane[lane], sizeof(T));
  return value;
}

// Combines the values of the lanes in the mask.
template <typename T, typename F>
T Reduce(unsigned mask, T value, int line, const F& combine) {
  const Values& values = Exchange(mask, &value, sizeof(T), line);
  T result{};
  bool first = true;
  for (int lane = 0; lane < kWarp; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    const T other = ValueOf<T>(values, lane);
    result = first ? other : combine(result, other);
    first = false;
  }
  return result;
}

// The value of lane `source`, or one's own where that is in another part of `width` lanes.
template <typename T>
T Shuffle(unsigned mask, T value, int source, int width, int line) {
  const Values& values = Exchange(mask, &value, sizeof(T), line);
  const int lane = Lane(), first = lane / width * width;
  return source < first || source >= first + width ? value : ValueOf<T>(values, source);
}

}  // namespace cuda_host

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, int line = __builtin_LINE()) {
  const int first = cuda_host::Lane() / width * width;
  return cuda_host::Shuffle(mask, value, first + source % width, width, line);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, int line = __builtin_LINE()) {
  return cuda_host::Shuffle(mask, value, cuda_host::Lane() ^ lanes, width, line);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, int lanes, int width = 32, int line = __builtin_LINE()) {
  return cuda_host::Shuffle(mask, value, cuda_host::Lane() - lanes, width, line);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, int lanes, int width = 32, int line = __builtin_LINE()) {
  return cuda_host::Shuffle(mask, value, cuda_host::Lane() + lanes, width, line);
}
inline unsigned __ballot_sync(unsigned mask, bool value, int line = __builtin_LINE()) {
  const unsigned bit = value ? 1u << cuda_host::Lane() : 0u;
  return cuda_host::Reduce(mask, bit, line, [](unsigned a, unsigned b) { return a | b; });
}
inline bool __any_sync(unsigned mask, bool value, int line = __builtin_LINE()) {
  return __ballot_sync(mask, value, line) != 0;
}
inline bool __all_sync(unsigned mask, bool value, int line = __builtin_LINE()) {
  return __ballot_sync(mask, value, line) == mask;
}
template <typename T>
T __reduce_add_sync(unsigned mask, T value, int line = __builtin_LINE()) {
  return cuda_host::Reduce(mask, value, line, [](T a, T b) { return a + b; });
}
template <typename T>
T __reduce_max_sync(unsigned mask, T value, int line = __builtin_LINE()) {
  return cuda_host::Reduce(mask, value, line, [](T a, T b) { return a < b ? b : a; });
}
template <typename T>
T __reduce_min_sync(unsigned mask, T value, int line = __builtin_LINE()) {
  return cuda_host::Reduce(mask, value, line, [](T a, T b) { return b < a ? b : a; });
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T value, int line = __builtin_LINE()) {
  const cuda_host::Values& values = cuda_host::Exchange(mask, &value, sizeof(T), line);
  unsigned equal = 0;
  for (int lane = 0; lane < cuda_host::kWarp; ++lane) {
    const bool in_mask = mask >> lane & 1;
    if (in_mask && cuda_host::ValueOf<T>(values, lane) == value) equal |= 1u << lane;
  }
  return equal;
}

namespace cuda_host {

// Threads change places only where they wait, so that any sequence of operations is atomic.
template <typename T, typename F>
T Atomically(T* address, const F& change) {
  static_assert(std::is_integral_v<T>, "sums of numbers are not to depend on their order");
  const T old = *address;
  *address = change(old);
  return old;
}

}  // namespace cuda_host

template <typename T>
T atomicAdd(T* address, T value) {
  return cuda_host::Atomically(address, [=](T old) { return old + value; });
}
template <typename T>
T atomicMax(T* address, T value) {
  return cuda_host::Atomically(address, [=](T old) { return std::max(old, value); });
}
template <typename T>
T atomicExch(T* address, T value) {
  return cuda_host::Atomically(address, [=](T) { return value; });
}
template <typename T>
T atomicCAS(T* address, T expected, T value) {
  return cuda_host::Atomically(address, [=](T old) { return old == expected ? value : old; });
}

// ---------------------------------------------------------------------------------------- host
// code

using cudaStream_t = struct CudaStream*;

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
};

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

namespace cuda_host {

inline const char*& Failure() {
  static thread_local const char* failure = "no error";
  return failure;
}

inline cudaError_t Failed(cudaError_t error, const char* why) {
  Failure() = why;
  return error;
}

constexpr size_t kMostSharedBytes = 99 << 10;  // sm_86, sm_89 and sm_120: the least of all

}  // namespace cuda_host

inline const char* cudaGetErrorString(cudaError_t) { return cuda_host::Failure(); }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }  // launches return theirs

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int shared_bytes) {
  if (static_cast<size_t>(shared_bytes) <= cuda_host::kMostSharedBytes) return cudaSuccess;
  return cuda_host::Failed(cudaErrorInvalidValue, "more shared memory than there is");
}

// Few multiprocessors, so that small problems fill them, or many: no result may depend on them.
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };

inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  return *value = cuda_host::TossOnHost() ? 2 : 200, cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t = nullptr) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  const dim3 grid = config->gridDim, block = config->blockDim;
  const size_t blocks = size_t{1} * grid.x * grid.y * grid.z;
  const size_t threads = size_t{1} * block.x * block.y * block.z;
  if (blocks == 0 || grid.x > INT32_MAX || grid.y > 65535 || grid.z > 65535 || threads == 0 ||
      threads > 1024 || block.z > 64) {
    return cuda_host::Failed(cudaErrorInvalidConfiguration, "a grid that a GPU would refuse");
  }
  if (config->dynamicSmemBytes > cuda_host::kMostSharedBytes) {
    return cuda_host::Failed(cudaErrorInvalidValue, "more shared memory than there is");
  }
  const auto call = std::make_tuple(kernel, Parameters(arguments)...);
  const auto run = [](const void* context) {
    std::apply([](auto* kernel, const auto&... values) { kernel(values...); },
               *static_cast<const decltype(call)*>(context));
  };
  const char* failure = cuda_host::RunGrid(grid, block, config->dynamicSmemBytes, run, &call);
  return failure == nullptr ? cudaSuccess : cuda_host::Failed(cudaErrorLaunchFailure, failure);
}

// XLA's CPU calls the handlers here, and has no streams.
namespace xla::ffi {
template <>
struct CtxDecoding<PlatformStream<cudaStream_t>> {
  using Type = cudaStream_t;
  static std::optional<Type> Decode(const XLA_FFI_Api*, XLA_FFI_ExecutionContext*,
                                    DiagnosticEngine&) {
    return nullptr;
  }
};
}  // namespace xla::ffi

#endif  // JAX_DCN_TESTS_CUDA_HOST_CUDA_RUNTIME_H_
