// SPDX-License-Identifier: MIT
// Neighbouring elements of an array: 16 bytes of them, which one instruction moves, or a single
// element where an array allows no more. Packed elements have the type of the array, unpacked
// elements the type of sums.
#ifndef JAX_DCN_CUDA_RUNTIME_VECTOR_CUH_
#define JAX_DCN_CUDA_RUNTIME_VECTOR_CUH_

#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "common/sampling/half.h"
#include "cuda/runtime/instructions.cuh"

namespace jax_dcn {

constexpr int kVectorBytes = 16;

// Elements of a vector.
template <typename T>
constexpr int kVector = kVectorBytes / static_cast<int>(sizeof(T));

// The type of sums of T, float or wider.
template <typename T>
using Sum = decltype(ToFloat(T()));

template <typename T, int kSize = kVector<T>>
struct Packed {
  static_assert(kSize == kVector<T>, "16 bytes, or one element");
  uint4 bits;
};

template <typename T>
struct Packed<T, 1> {
  T element;
};

template <typename T, int kSize = kVector<T>>
struct Unpacked {
  Sum<T> value[kSize];
};

// Loads from memory that no thread writes while the kernel runs.
template <int kSize, typename T>
__device__ __forceinline__ Packed<T, kSize> LoadConstant(const T* from) {
  if constexpr (kSize == 1 && sizeof(T) == 2) {
    return {T{__ldg(reinterpret_cast<const uint16_t*>(from))}};
  } else if constexpr (kSize == 1) {
    return {__ldg(from)};
  } else {
    return {__ldg(reinterpret_cast<const uint4*>(from))};
  }
}

template <int kSize, typename T>
__device__ __forceinline__ Packed<T, kSize> Load(const T* from) {
  return *reinterpret_cast<const Packed<T, kSize>*>(from);
}

template <typename T>
__device__ __forceinline__ Packed<T> LoadShared(const T* from) {
  return {LoadSharedBits<uint4>(from)};
}

template <typename T>
__device__ __forceinline__ void StoreShared(T* to, const Packed<T>& packed) {
  StoreSharedBits(to, packed.bits);
}

template <typename T, int kSize>
__device__ __forceinline__ void StoreGlobal(T* to, const Packed<T, kSize>& packed) {
  if constexpr (kSize == 1) {
    *to = packed.element;
  } else {
    StoreVector(to, {packed.bits.x, packed.bits.y, packed.bits.z, packed.bits.w});
  }
}

template <typename T, int kSize>
__device__ __forceinline__ Unpacked<T, kSize> Unpack(const Packed<T, kSize>& packed) {
  Unpacked<T, kSize> unpacked;
  if constexpr (kSize == 1) {
    unpacked.value[0] = ToFloat(packed.element);
  } else if constexpr (sizeof(T) == 2) {
    const uint32_t words[4] = {packed.bits.x, packed.bits.y, packed.bits.z, packed.bits.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = Pair<T>::ToFloats(words[i]);
      unpacked.value[2 * i] = pair.x;
      unpacked.value[2 * i + 1] = pair.y;
    }
  } else {
    __builtin_memcpy(unpacked.value, &packed.bits, kVectorBytes);
  }
  return unpacked;
}

namespace internal {

// Packs 16 bytes; `round` makes 32 bits of a float.
template <typename T, typename F>
__device__ __forceinline__ Packed<T> PackVector(const Unpacked<T>& unpacked, const F& round) {
  uint32_t words[4];
  if constexpr (sizeof(T) == 8) {
    __builtin_memcpy(words, unpacked.value, kVectorBytes);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(T) == 2) {
        words[i] = Pair<T>::Round(unpacked.value[2 * i], unpacked.value[2 * i + 1]);
      } else {
        words[i] = round(unpacked.value[i]);
      }
    }
  }
  return {make_uint4(words[0], words[1], words[2], words[3])};
}

}  // namespace internal

// Rounds to T.
template <typename T, int kSize>
__device__ __forceinline__ Packed<T, kSize> Pack(const Unpacked<T, kSize>& unpacked) {
  if constexpr (kSize == 1) {
    return {FromFloat<T>::Round(unpacked.value[0])};
  } else {
    return internal::PackVector<T>(unpacked, [](float value) { return __float_as_uint(value); });
  }
}

// Rounds to the bits that tensor cores read of T: float to TF32.
template <typename T>
__device__ __forceinline__ Packed<T> PackFactor(const Unpacked<T>& unpacked) {
  return internal::PackVector<T>(unpacked, RoundToTf32);
}

// Rounds two neighbours, in global or in shared memory.
template <typename T>
__device__ __forceinline__ void StorePair(T* to, float first, float second) {
  if constexpr (sizeof(T) == 2) {
    *reinterpret_cast<uint32_t*>(to) = Pair<T>::Round(first, second);
  } else {
    *reinterpret_cast<float2*>(to) = make_float2(first, second);
  }
}

template <typename T>
__device__ __forceinline__ void StoreSharedPair(T* to, float first, float second) {
  if constexpr (sizeof(T) == 2) {
    StoreSharedBits(to, Pair<T>::Round(first, second));
  } else {
    StoreSharedBits(to, make_float2(first, second));
  }
}

// Whether every array starts at a multiple of 16 bytes; null does.
inline bool AreAligned(std::initializer_list<const void*> arrays) {
  for (const void* array : arrays) {
    if (reinterpret_cast<uintptr_t>(array) % kVectorBytes != 0) return false;
  }
  return true;
}

// Calls `run` with the number of elements that a thread moves at once, as a constant.
template <typename T, typename F>
auto WithVectorSize(bool vectors, const F& run) {
  return vectors ? run(std::integral_constant<int, kVector<T>>())
                 : run(std::integral_constant<int, 1>());
}

}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_RUNTIME_VECTOR_CUH_
