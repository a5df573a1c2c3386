// SPDX-License-Identifier: MIT
// Instructions that CUDA C++ has no name for (sm_80 and newer). The tests put a file of this name
// in its place that does the same on the host.
#ifndef JAX_DCN_CUDA_RUNTIME_INSTRUCTIONS_CUH_
#define JAX_DCN_CUDA_RUNTIME_INSTRUCTIONS_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "common/sampling/half.h"

namespace jax_dcn {

// Two 16-bit numbers, the first in the lower half.
template <typename T>
struct Pair;

template <>
struct Pair<BFloat16> {
  static __device__ __forceinline__ float2 ToFloats(uint32_t pair) {
    return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
  }
  static __device__ __forceinline__ uint32_t Round(float first, float second) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
  }
};

template <>
struct Pair<Float16> {
  static __device__ __forceinline__ float2 ToFloats(uint32_t pair) {
    float2 floats;
    asm("{\n"
        ".reg .b16 first, second;\n"
        "mov.b32 {first, second}, %2;\n"
        "cvt.f32.f16 %0, first;\n"
        "cvt.f32.f16 %1, second;\n"
        "}"
        : "=f"(floats.x), "=f"(floats.y)
        : "r"(pair));
    return floats;
  }
  static __device__ __forceinline__ uint32_t Round(float first, float second) {
    uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
  }
};

// Rounds to the 10 bits of fraction that tensor cores read of a float.
__device__ __forceinline__ uint32_t RoundToTf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}

// `from` and `rows` times `row_bytes` bytes, by one instruction: the compiler takes some such
// addresses apart.
template <typename T>
__device__ __forceinline__ const T* RowsAfter(const T* from, int32_t rows, int32_t row_bytes) {
  const T* row;
  asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(row) : "r"(rows), "r"(row_bytes), "l"(from));
  return row;
}

// `value`, which the compiler keeps in a register. Without this, the compiler computes some values
// anew in each round of a loop.
__device__ __forceinline__ int Kept(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// Writes 16 bytes to global memory by one instruction: the compiler takes some such stores apart.
__device__ __forceinline__ void StoreVector(void* global, const uint32_t (&words)[4]) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(global), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
               : "memory");
}

// Writes and reads 4, 8 or 16 bytes of shared memory, or several times 16. Neighbouring lanes that
// are served at once, 128 bytes of them, should use different banks.
template <typename Bits>
__device__ __forceinline__ void StoreSharedBits(void* shared, const Bits& bits) {
  *static_cast<Bits*>(shared) = bits;
}
template <typename Bits>
__device__ __forceinline__ Bits LoadSharedBits(const void* shared) {
  return *static_cast<const Bits*>(shared);
}

// Elements in shared memory, which the compiler loads by instructions of its choice. The emulator
// of the tests counts loads of 16 bytes.
template <typename Bits>
__device__ __forceinline__ const Bits& InShared(const Bits& bits) {
  return bits;
}

__device__ __forceinline__ uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Loads four matrices of 8 rows of 16 bytes; lane 8 i + j holds the address of row j of matrix i.
// Lane 4 j + k receives, of each matrix, the 4 bytes at 4 k of row j.
__device__ __forceinline__ void LoadMatrices(uint32_t (&matrices)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(SharedAddress(row))
               : "memory");
}

// Loads four matrices of 16-bit elements, transposed: lane 4 j + k receives, of each matrix, column
// j of rows 2 k and 2 k + 1.
__device__ __forceinline__ void LoadTransposedMatrices(uint32_t (&matrices)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(SharedAddress(row))
               : "memory");
}

// sums[16, 8] += a[16, 32 bytes] b[32 bytes, 8], in the fragments of mma.m16n8k16, for float (as
// TF32) of mma.m16n8k8.
template <typename T>
__device__ __forceinline__ void MultiplyAdd(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0,
                                            uint32_t b1);

#define JAX_DCN_MULTIPLY_ADD(T, instruction)                                               \
  template <>                                                                              \
  __device__ __forceinline__ void MultiplyAdd<T>(float (&sums)[4], const uint32_t (&a)[4], \
                                                 uint32_t b0, uint32_t b1) {               \
    asm(instruction " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"     \
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                       \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                   \
  }
JAX_DCN_MULTIPLY_ADD(BFloat16, "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32")
JAX_DCN_MULTIPLY_ADD(Float16, "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32")
JAX_DCN_MULTIPLY_ADD(float, "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32")
#undef JAX_DCN_MULTIPLY_ADD

// Starts to copy 16 bytes to shared memory, or zeros where there is nothing to copy.
__device__ __forceinline__ void CopyAsync(void* shared, const void* global, bool exists) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(SharedAddress(shared)), "l"(global), "r"(exists ? 16 : 0)
               : "memory");
}

// Closes the group of the copies that the thread has started.
__device__ __forceinline__ void CommitCopies() { asm volatile("cp.async.commit_group;"); }

// Waits for all groups of the thread but the last `kLeft`.
template <int kLeft>
__device__ __forceinline__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" : : "n"(kLeft) : "memory");
}

}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_RUNTIME_INSTRUCTIONS_CUH_
