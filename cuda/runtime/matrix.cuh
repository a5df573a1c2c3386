// SPDX-License-Identifier: MIT
// Products of matrices in shared memory, by the tensor cores of a warp. T is a 16-bit type, or
// float in the precision of TF32.
#ifndef JAX_DCN_CUDA_RUNTIME_MATRIX_CUH_
#define JAX_DCN_CUDA_RUNTIME_MATRIX_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/runtime/instructions.cuh"
#include "cuda/runtime/launch.cuh"
#include "cuda/runtime/vector.cuh"

namespace jax_dcn {

constexpr int kFragmentRows = 16;
// Columns of a, and rows of b, that one instruction multiplies.
template <typename T>
constexpr int kFragmentDepth = 32 / static_cast<int>(sizeof(T));

// A matrix in shared memory. With the right stride, 16 bytes of each of eight rows lie in different
// banks.
template <typename T>
struct SharedMatrix {
  using Element = T;
  T* data;
  int stride;
  __device__ __forceinline__ T* At(int row, int column) const {
    return data + row * stride + column;
  }
};

// A matrix in shared memory whose rows are four vectors of 16 bytes, in an order that changes from
// one pair of rows to the next: eight vectors of two neighbouring rows lie in different banks, and
// so do the vectors at one column of eight rows.
template <typename T>
struct SwizzledMatrix {
  using Element = T;
  static constexpr int kRowVectors = 4;
  T* data;
  // `column` is a multiple of a vector.
  __device__ __forceinline__ T* At(int row, int column) const { return At(OffsetOf(row, column)); }
  // Bytes from the start of the matrix. Where `other` is a multiple of 16 bytes within a row,
  // OffsetOf(row, column) ^ other is an offset in the same row.
  static __device__ __forceinline__ int OffsetOf(int row, int column) {
    return row * kRowVectors * kVectorBytes +
           (column * static_cast<int>(sizeof(T)) ^ row / 2 % kRowVectors * kVectorBytes);
  }
  __device__ __forceinline__ T* At(int offset) const {
    return reinterpret_cast<T*>(reinterpret_cast<char*>(data) + offset);
  }
};

// A fragment of a: 16 rows, kFragmentDepth columns, from (row, column).
template <typename Matrix>
__device__ __forceinline__ void LoadRows(uint32_t (&a)[4], const Matrix& matrix, int row,
                                         int column) {
  const int lane = threadIdx.x % kWarp;
  LoadMatrices(a,
               matrix.At(row + lane % 16, column + lane / 16 * kVector<typename Matrix::Element>));
}

// Rounds elements that were not rounded when they were stored to the bits that tensor cores read.
template <typename T>
__device__ __forceinline__ void RoundToFactors(uint32_t (&values)[4]) {
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < 4; ++i) values[i] = RoundToTf32(__uint_as_float(values[i]));
  }
}

// A fragment of a, from a matrix that holds a transposed: kFragmentDepth rows, 16 columns. The
// elements must have been rounded when they were stored.
template <typename T>
__device__ __forceinline__ void LoadRowsTransposed(uint32_t (&a)[4], const SharedMatrix<T>& matrix,
                                                   int row, int column) {
  const int lane = threadIdx.x % kWarp;
  if constexpr (sizeof(T) == 2) {
    LoadTransposedMatrices(a, matrix.At(row + lane % 8 + lane / 16 * 8, column + lane / 8 % 2 * 8));
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[i] = LoadSharedBits<uint32_t>(
          matrix.At(row + lane % 4 + i / 2 * 4, column + lane / 4 + i % 2 * 8));
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
      b[i] = RoundToTf32(LoadSharedBits<float>(
          matrix.At(row + lane % 4 + i % 2 * 4, column + lane / 4 + i / 2 * 8)));
    }
  }
}

// Two fragments of b, from a matrix that holds b transposed: 8 rows each, kFragmentDepth columns.
template <typename T>
__device__ __forceinline__ void LoadColumnsTransposed(uint32_t (&b)[4],
                                                      const SharedMatrix<T>& matrix, int row,
                                                      int column) {
  const int lane = threadIdx.x % kWarp;
  LoadMatrices(b, matrix.At(row + lane % 8 + lane / 16 * 8, column + lane / 8 % 2 * kVector<T>));
  RoundToFactors<T>(b);
}

// A block's product, kBlockRows x kBlockColumns, of which each of 2 x 4 warps sums a part in
// registers.
template <int kBlockRows, int kBlockColumns>
struct BlockProduct {
  static constexpr int kWarpRows = 2, kWarpColumns = 4;  // warps
  static constexpr int kThreads = kWarpRows * kWarpColumns * kWarp;
  static constexpr int kRows = kBlockRows / kWarpRows / kFragmentRows;  // fragments
  static constexpr int kColumns = kBlockColumns / kWarpColumns / 8;     // fragments

  float sums[kRows][kColumns][4];

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int i = 0; i < kRows * kColumns * 4; ++i) (&sums[0][0][0])[i] = 0;
  }

  // += of the fragments that `load_a(fragment, row)` and `load_b(fragments, column)` give for rows
  // and columns of the block.
  template <typename T, typename LoadA, typename LoadB>
  __device__ __forceinline__ void Add(const LoadA& load_a, const LoadB& load_b) {
    uint32_t a[kRows][4];
#pragma unroll
    for (int i = 0; i < kRows; ++i) load_a(a[i], FirstRow() + kFragmentRows * i);
#pragma unroll
    for (int j = 0; j < kColumns; j += 2) {
      uint32_t b[4];
      load_b(b, FirstColumn() + 8 * j);
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
          store(FirstRow() + kFragmentRows * i + 8 * half + lane / 4,
                FirstColumn() + 8 * j + lane % 4 * 2, sums[i][j][2 * half],
                sums[i][j][2 * half + 1]);
        }
      }
    }
  }

 private:
  // Where the warp's part starts.
  static __device__ __forceinline__ int FirstRow() {
    return threadIdx.x / kWarp / kWarpColumns * (kBlockRows / kWarpRows);
  }
  static __device__ __forceinline__ int FirstColumn() {
    return threadIdx.x / kWarp % kWarpColumns * (kBlockColumns / kWarpColumns);
  }
};

}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_RUNTIME_MATRIX_CUH_
