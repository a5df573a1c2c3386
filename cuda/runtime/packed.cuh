// SPDX-License-Identifier: MIT
// Sixteen bytes of neighbouring channels, as they lie in memory and as numbers: what one
// instruction moves at most. T is a 16-bit type or float.
#ifndef JAX_DCN_CUDA_RUNTIME_PACKED_CUH_
#define JAX_DCN_CUDA_RUNTIME_PACKED_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "common/sampling/half.h"
#include "cuda/runtime/instructions.cuh"

namespace jax_dcn {

template <typename T>
struct Packed {
  static constexpr int kSize = 16 / static_cast<int>(sizeof(T));
  uint4 bits;
};

template <typename T>
struct Unpacked {
  float value[Packed<T>::kSize];
};

// From global memory that nobody writes meanwhile.
template <typename T>
__device__ __forceinline__ Packed<T> LoadGlobal(const T* from) {
  return {__ldg(reinterpret_cast<const uint4*>(from))};
}

template <typename T>
__device__ __forceinline__ Packed<T> LoadShared(const T* from) {
  return {*reinterpret_cast<const uint4*>(from)};
}

template <typename T>
__device__ __forceinline__ void StoreShared(T* to, const Packed<T>& packed) {
  *reinterpret_cast<uint4*>(to) = packed.bits;
}

template <typename T>
__device__ __forceinline__ void StoreGlobal(T* to, const Packed<T>& packed) {
  StoreVector(to, {packed.bits.x, packed.bits.y, packed.bits.z, packed.bits.w});
}

template <typename T>
__device__ __forceinline__ Unpacked<T> Unpack(const Packed<T>& packed) {
  const uint32_t words[4] = {packed.bits.x, packed.bits.y, packed.bits.z, packed.bits.w};
  Unpacked<T> unpacked;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 2) {
      const float2 pair = Pair<T>::ToFloats(words[i]);
      unpacked.value[2 * i] = pair.x;
      unpacked.value[2 * i + 1] = pair.y;
    } else {
      unpacked.value[i] = __uint_as_float(words[i]);
    }
  }
  return unpacked;
}

// Rounds to what tensor cores read of T: float to TF32.
template <typename T>
__device__ __forceinline__ Packed<T> RoundToFactor(const Unpacked<T>& unpacked) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 2) {
      words[i] = Pair<T>::Round(unpacked.value[2 * i], unpacked.value[2 * i + 1]);
    } else {
      words[i] = RoundToTf32(unpacked.value[i]);
    }
  }
  return {make_uint4(words[0], words[1], words[2], words[3])};
}

// Rounds two neighbours.
template <typename T>
__device__ __forceinline__ void StorePair(T* to, float first, float second) {
  if constexpr (sizeof(T) == 2) {
    *reinterpret_cast<uint32_t*>(to) = Pair<T>::Round(first, second);
  } else {
    *reinterpret_cast<float2*>(to) = make_float2(first, second);
  }
}

}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_RUNTIME_PACKED_CUH_
