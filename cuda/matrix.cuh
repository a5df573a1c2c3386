// SPDX-License-Identifier: MIT
// Products of matrices in shared memory, by the tensor cores of a warp. T is a 16-bit type, or
// float in the precision of TF32.
#ifndef JAX_DCN_CUDA_MATRIX_CUH_
#define JAX_DCN_CUDA_MATRIX_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/instructions.cuh"
#include "cuda/launch.cuh"
#include "cuda/packed.cuh"

namespace jax_dcn {

constexpr int kFragmentRows = 16;
// Columns of a, and rows of b, that one instruction multiplies.
template <typename T>
constexpr int kFragmentDepth = 32 / static_cast<int>(sizeof(T));

// A matrix in shared memory. With the right stride, 16 bytes of each of eight rows lie in different
// banks.
template <typename T>
struct SharedMatrix {
  T* data;
  int stride;
  __device__ __forceinline__ T* At(int row, int column) const {
    return data + row * stride + column;
  }
};

// A fragment of a: 16 rows, kFragmentDepth columns, from (row, column).
template <typename T>
__device__ __forceinline__ void LoadRows(uint32_t (&a)[4], const SharedMatrix<T>& matrix, int row,
                                         int column) {
  const int lane = threadIdx.x % kWarp;
  LoadMatrices(a, matrix.At(row + lane % 16, column + lane / 16 * Packed<T>::kSize));
}

// The same of a matrix that holds a transposed: kFragmentDepth rows, 16 columns.
template <typename T>
__device__ __forceinline__ void LoadRowsTransposed(uint32_t (&a)[4], const SharedMatrix<T>& matrix,
                                                   int row, int column) {
  const int lane = threadIdx.x % kWarp;
  if constexpr (sizeof(T) == 2) {
    LoadTransposedMatrices(a, matrix.At(row + lane % 8 + lane / 16 * 8, column + lane / 8 % 2 * 8));
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[i] = RoundToTf32(*matrix.At(row + lane % 4 + i / 2 * 4, column + lane / 4 + i % 2 * 8));
    }
  }
}

// Two fragments of b: kFragmentDepth rows, 8 columns each, from (row, column).
template <typename T>
__device__ __forceinline__ void LoadColumns(uint32_t (&b)[4], const SharedMatrix<T>& matrix,
                                            int row, int column) {
  const int lane = threadIdx.x % kWarp;
  if constexpr (sizeof(T) == 2) {
    LoadTransposedMatrices(b, matrix.At(row + lane % 16, column + lane / 16 * 8));
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      b[i] = RoundToTf32(*matrix.At(row + lane % 4 + i % 2 * 4, column + lane / 4 + i / 2 * 8));
    }
  }
}

// A warp's part of a product: 16 kRows rows, 8 kColumns columns, summed in registers.
template <int kRows, int kColumns>
struct WarpProduct {
  float sums[kRows][kColumns][4];

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int i = 0; i < kRows * kColumns * 4; ++i) (&sums[0][0][0])[i] = 0;
  }

  // += of the fragments that `load_a(fragment, row)` and `load_b(fragments, column)` give for the
  // warp's rows and columns.
  template <typename T, typename LoadA, typename LoadB>
  __device__ __forceinline__ void Add(const LoadA& load_a, const LoadB& load_b) {
    uint32_t a[kRows][4];
#pragma unroll
    for (int i = 0; i < kRows; ++i) load_a(a[i], kFragmentRows * i);
#pragma unroll
    for (int j = 0; j < kColumns; j += 2) {
      uint32_t b[4];
      load_b(b, 8 * j);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        MultiplyAdd<T>(sums[i][j], a[i], b[0], b[1]);
        MultiplyAdd<T>(sums[i][j + 1], a[i], b[2], b[3]);
      }
    }
  }

  // Calls `store(row, column, first, second)` for each two neighbours that this lane holds.
  template <typename Store>
  __device__ __forceinline__ void ForEachPair(const Store& store) const {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          store(kFragmentRows * i + 8 * half + lane / 4, 8 * j + lane % 4 * 2, sums[i][j][2 * half],
                sums[i][j][2 * half + 1]);
        }
      }
    }
  }
};

}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_MATRIX_CUH_
