// SPDX-License-Identifier: MIT
// Stands in for the file of this name in the repository's `cuda/`: each instruction as the PTX ISA
// describes it, on the host.
#ifndef JAX_DCN_TESTS_CUDA_HOST_CUDA_INSTRUCTIONS_CUH_
#define JAX_DCN_TESTS_CUDA_HOST_CUDA_INSTRUCTIONS_CUH_

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "common/sampling/half.h"

namespace jax_dcn {

template <typename T>
struct Pair {
  static float2 ToFloats(uint32_t pair) {
    return {ToFloat(T{static_cast<uint16_t>(pair)}), ToFloat(T{static_cast<uint16_t>(pair >> 16)})};
  }
  static uint32_t Round(float first, float second) {
    return FromFloat<T>::Round(first).bits | static_cast<uint32_t>(FromFloat<T>::Round(second).bits)
                                                 << 16;
  }
};

// Half a unit in the last place is rounded away from zero.
inline uint32_t RoundToTf32(float value) {
  const uint32_t bits = __float_as_uint(value);
  return std::isfinite(value) ? (bits + 0x1000u) & 0xffffe000u : bits;
}

template <typename T>
const T* RowsAfter(const T* from, int32_t rows, int32_t row_bytes) {
  return reinterpret_cast<const T*>(reinterpret_cast<uintptr_t>(from) + int64_t{rows} * row_bytes);
}

inline int Kept(int value) { return value; }

inline void StoreVector(void* global, const uint32_t (&words)[4]) {
  if (reinterpret_cast<uintptr_t>(global) % 16 != 0) cuda_host::Fail("a store is not aligned");
  std::memcpy(global, words, sizeof(words));
}

// Counts the move of some bytes of shared memory, 16 at a time where they are more.
inline void MoveSharedBytes(const void* shared, size_t bytes, int line) {
  const size_t at_once = std::min<size_t>(bytes, 16);
  if (reinterpret_cast<uintptr_t>(shared) % at_once != 0) cuda_host::Fail("a move is not aligned");
  for (size_t moved = 0; moved < bytes; moved += at_once) {
    cuda_host::MoveShared(static_cast<const char*>(shared) + moved, at_once, line);
  }
}

template <typename Bits>
void StoreSharedBits(void* shared, const Bits& bits, int line = __builtin_LINE()) {
  MoveSharedBytes(shared, sizeof(bits), line);
  std::memcpy(shared, &bits, sizeof(bits));
}

template <typename Bits>
Bits LoadSharedBits(const void* shared, int line = __builtin_LINE()) {
  MoveSharedBytes(shared, sizeof(Bits), line);
  Bits bits;
  std::memcpy(&bits, shared, sizeof(bits));
  return bits;
}

template <typename Bits>
const Bits& InShared(const Bits& bits, int line = __builtin_LINE()) {
  MoveSharedBytes(&bits, sizeof(Bits), line);
  return bits;
}

struct Rows {
  const char* row[cuda_host::kWarp];
};

inline Rows ExchangeRows(const void* row, int line) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) cuda_host::Fail("a matrix row is not aligned");
  const cuda_host::Values& values = cuda_host::Exchange(~0u, &row, sizeof(row), line);
  Rows rows;
  for (int lane = 0; lane < cuda_host::kWarp; ++lane) {
    rows.row[lane] = cuda_host::ValueOf<const char*>(values, lane);
  }
  if (cuda_host::Lane() != 0) return rows;
  const void* moved[cuda_host::kWarp];
  std::copy_n(rows.row, cuda_host::kWarp, moved);
  cuda_host::CountBankConflicts(moved, 16);
  return rows;
}

inline void LoadMatrices(uint32_t (&matrices)[4], const void* row, int line = __builtin_LINE()) {
  const Rows rows = ExchangeRows(row, line);
  const int lane = cuda_host::Lane();
  for (int i = 0; i < 4; ++i) {
    std::memcpy(&matrices[i], rows.row[8 * i + lane / 4] + 4 * (lane % 4), 4);
  }
}

inline void LoadTransposedMatrices(uint32_t (&matrices)[4], const void* row,
                                   int line = __builtin_LINE()) {
  const Rows rows = ExchangeRows(row, line);
  const int lane = cuda_host::Lane();
  for (int i = 0; i < 4; ++i) {
    uint16_t values[2];
    for (int k = 0; k < 2; ++k) {
      std::memcpy(&values[k], rows.row[8 * i + 2 * (lane % 4) + k] + 2 * (lane / 4), 2);
    }
    matrices[i] = values[0] | static_cast<uint32_t>(values[1]) << 16;
  }
}

// The numbers in a 32-bit register that holds a part of a row of a, or of a column of b.
template <typename T>
struct Factor {
  static constexpr int kValues = 2;
  static void Read(uint32_t bits, float* values) {
    const float2 pair = Pair<T>::ToFloats(bits);
    values[0] = pair.x;
    values[1] = pair.y;
  }
};
template <>
struct Factor<float> {
  static constexpr int kValues = 1;
  // Tensor cores do not read the lower bits. Kernels round instead of leaving bits unread.
  static void Read(uint32_t bits, float* values) {
    *values = __uint_as_float(bits & 0xffffe000u);
    if (bits % 0x2000 != 0 && std::isfinite(*values)) {
      cuda_host::Fail("a factor is not rounded to TF32");
    }
  }
};

// Register i of lane 4 g + q holds, of a, row g + 8 (i % 2) and the values at q + 4 (i / 2); of b,
// column g and the values at q + 4 i; of the sums, row g + 8 (i / 2), column 2 q + i % 2.
template <typename T>
void MultiplyAdd(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                 int line = __builtin_LINE()) {
  const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const cuda_host::Values& values = cuda_host::Exchange(~0u, mine, sizeof(mine), line);
  const int g = cuda_host::Lane() / 4, q = cuda_host::Lane() % 4;
  constexpr int kValues = Factor<T>::kValues, kDepth = 8 * kValues;
  float rows[2][kDepth], columns[2][kDepth];
  for (int k = 0; k < 8; ++k) {
    for (int i = 0; i < 2; ++i) {
      uint32_t bits[2];
      std::memcpy(&bits[0], values.of_lane[4 * g + k % 4] + 4 * (2 * (k / 4) + i), 4);
      std::memcpy(&bits[1], values.of_lane[4 * (2 * q + i) + k % 4] + 4 * (4 + k / 4), 4);
      Factor<T>::Read(bits[0], &rows[i][kValues * k]);
      Factor<T>::Read(bits[1], &columns[i][kValues * k]);
    }
  }
  for (int i = 0; i < 4; ++i) {
    for (int k = 0; k < kDepth; ++k) sums[i] += rows[i / 2][k] * columns[i % 2][k];
  }
}

inline void CopyAsync(void* shared, const void* global, bool exists) {
  static const uint4 zeros = {};
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 ||
      (exists && reinterpret_cast<uintptr_t>(global) % 16 != 0)) {
    cuda_host::Fail("an asynchronous copy is not aligned");
  }
  cuda_host::CopyLater(shared, exists ? global : &zeros, 16);
}

using cuda_host::CommitCopies;

template <int kLeft>
void WaitForCopies() {
  cuda_host::WaitForCopies(kLeft);
}

}  // namespace jax_dcn

#endif  // JAX_DCN_TESTS_CUDA_HOST_CUDA_INSTRUCTIONS_CUH_
