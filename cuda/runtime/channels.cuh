// SPDX-License-Identifier: MIT
// Reads and writes neighbouring channels in the type that sums have: 16 bytes of them at once where
// the arrays allow it, or one.
#ifndef JAX_DCN_CUDA_RUNTIME_CHANNELS_CUH_
#define JAX_DCN_CUDA_RUNTIME_CHANNELS_CUH_

#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>

#include "common/deform_conv2d/problem.h"
#include "common/sampling/half.h"
#include "cuda/runtime/instructions.cuh"
#include "cuda/runtime/launch.cuh"

namespace jax_dcn {

constexpr int kVectorBytes = 16;

// Channels of a vector.
template <typename T>
constexpr int kVector = kVectorBytes / static_cast<int>(sizeof(T));

template <typename A, int kSize>
struct Channels {
  A value[kSize];
  __device__ __forceinline__ A operator[](int i) const { return value[i]; }
};

template <typename T, int kSize>
struct alignas(kSize * sizeof(T)) StoredChannels {
  T value[kSize];
};

template <int kSize, typename T>
__device__ __forceinline__ auto Load(const T* from) {
  const auto stored = *reinterpret_cast<const StoredChannels<T, kSize>*>(from);
  Channels<typename Accumulator<T>::type, kSize> channels;
#pragma unroll
  for (int i = 0; i < kSize; ++i) channels.value[i] = ToFloat(stored.value[i]);
  return channels;
}

template <typename T, typename A, int kSize>
__device__ __forceinline__ void Store(T* to, const A (&values)[kSize]) {
  StoredChannels<T, kSize> stored;
#pragma unroll
  for (int i = 0; i < kSize; ++i) stored.value[i] = FromFloat<T>::Round(values[i]);
  if constexpr (sizeof(stored) == kVectorBytes) {
    uint32_t words[4];
    __builtin_memcpy(words, &stored, sizeof(words));
    StoreVector(to, words);
  } else {
    *reinterpret_cast<StoredChannels<T, kSize>*>(to) = stored;
  }
}

// Whether vectors lie within one group of offsets and one group of features, and at multiples of
// their size in each array that there is.
template <typename T>
bool AreVectors(const DeformConv2dProblem& problem, std::initializer_list<const void*> arrays) {
  for (const void* array : arrays) {
    if (reinterpret_cast<uintptr_t>(array) % kVectorBytes != 0) return false;
  }
  return problem.offset_group_channels() % kVector<T> == 0 &&
         problem.group_channels() % kVector<T> == 0;
}

// Lanes that share the vectors of one sample: a power of two, so that all are in one warp.
inline unsigned LanesFor(int64_t vectors) {
  unsigned lanes = 1;
  while (lanes < kWarp && lanes < vectors) lanes *= 2;
  return lanes;
}

}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_RUNTIME_CHANNELS_CUH_
