// SPDX-License-Identifier: MIT
// Matrices of the products C = base + A B, with B packed into panels of columns.
#ifndef JAX_DCN_CPU_RUNTIME_PANELS_H_
#define JAX_DCN_CPU_RUNTIME_PANELS_H_

#include <cstdint>
#include <type_traits>

#include "cpu/runtime/pairs.h"
#include "cpu/runtime/simd.h"

namespace jax_dcn::JAX_DCN_ISA {

// The columns of a panel: as many as one tile of C covers.
template <typename A>
constexpr int64_t kPanel = kTileVectors * kLanes<A>;

// A matrix [rows, depth] of elements E. Distances and depths count packed elements.
template <typename E>
struct LeftMatrix {
  const typename Packed<E>::Element* data;
  // From row to row. Of a transposed matrix, from one step of depth to the next, unless tiles
  // multiply the matrix.
  int64_t stride;
  int64_t segment_depth;
  // The indices of the rows in `data`. Null means that the rows follow each other. A transposed
  // matrix always has indices: the row of the panel by which each step of depth is multiplied.
  const int32_t* indices = nullptr;
  // The depth may lie in equal segments, with a constant step from one segment to the next.
  int64_t segments = 1, segment_step = 0;
};

// The matrix that a product is added to: the result itself, or with a stride of 0 one row that
// stands for all rows.
template <typename A>
struct BaseMatrix {
  const A* data;
  int64_t stride;
};

template <typename A>
struct ResultMatrix {
  A* data;
  int64_t stride;
  int64_t columns;                   // of this panel, at most kPanel
  const int32_t* indices = nullptr;  // of the rows; null if the rows follow each other
};

// A panel of packed elements or, for a transposed left matrix, of rows: [depth, kPanel].
template <typename E, bool kTransposed>
using PanelElement = typename std::conditional<kTransposed, typename Packed<E>::Row,
                                               typename Packed<E>::Element>::type;

// The factor of step `k` of depth: vector `j` of a row of the panel.
template <typename E, bool kTransposed>
JAX_DCN_INLINE auto LoadRight(const PanelElement<E, kTransposed>* panel, const int32_t* indices,
                              int64_t k, int64_t j) {
  constexpr int64_t kRow = kPanel<typename Packed<E>::Sum>, kStep = kLanes<typename Packed<E>::Sum>;
  if constexpr (!kTransposed) {
    return LoadPacked(panel + k * kRow + j * kStep);
  } else if constexpr (Packed<E>::kDepth == 1) {
    return Load(panel + indices[k] * kRow + j * kStep);
  } else {
    return LoadPairs(panel + indices[2 * k] * kRow + j * kStep,
                     panel + indices[2 * k + 1] * kRow + j * kStep);
  }
}

// c = base + sums
template <typename A>
struct RowSum {
  A* const c;
  const A *const base, *const sums;

  template <typename V>
  JAX_DCN_INLINE void At(int64_t i) {
    Write(c + i, Read<V>(base + i) + Read<V>(sums + i));
  }
};

template <typename A, int kVectors>
JAX_DCN_INLINE void StoreRow(A* c, const A* base, const Vector<A> (&sums)[kVectors],
                             int64_t columns) {
  if (columns == kVectors * kLanes<A>) {
    for (int j = 0; j < kVectors; ++j) {
      Store<A>(c + j * kLanes<A>, Load(base + j * kLanes<A>) + sums[j]);
    }
    return;
  }
  A row[kVectors * kLanes<A>];
  for (int j = 0; j < kVectors; ++j) Store<A>(row + j * kLanes<A>, sums[j]);
  RowSum<A> sum = {c, base, row};
  Vectorised<A>(columns, sum);
}

// Copies `rows` rows of up to kPanel columns into a panel, zeros in the columns that are missing.
template <typename T, typename A>
JAX_DCN_INLINE A* PackRows(const T* rows_data, int64_t rows, int64_t stride, int64_t columns,
                           A* panel) {
  for (int64_t row = 0; row < rows; ++row, panel += kPanel<A>) {
    const T* from = rows_data + row * stride;
    if (columns == kPanel<A>) {
      for (int64_t i = 0; i < kPanel<A>; i += kLanes<A>) Store<A>(panel + i, LoadSums(from + i));
    } else {
      for (int64_t i = 0; i < kPanel<A>; ++i) panel[i] = i < columns ? ToFloat(from[i]) : A(0);
    }
  }
  return panel;
}

JAX_DCN_INLINE BFloat16* PackRows(const BFloat16* rows_data, int64_t rows, int64_t stride,
                                  int64_t columns, BFloat16* panel) {
  for (int64_t row = 0; row < rows; ++row, panel += kPanel<float>) {
    __builtin_memcpy(panel, rows_data + row * stride, columns * sizeof(BFloat16));
    for (int64_t i = columns; i < kPanel<float>; ++i) panel[i] = {};
  }
  return panel;
}

// Copies pairs of rows in the same way: a packed element has the elements of two neighbouring rows.
// `rows` is even.
JAX_DCN_INLINE Pair* PackRows(const BFloat16* rows_data, int64_t rows, int64_t stride,
                              int64_t columns, Pair* panel) {
  constexpr int64_t kColumns = kPanel<float>, kStep = kLanes<float>;
  for (int64_t row = 0; row < rows; row += 2, panel += kColumns) {
    const BFloat16 *first = rows_data + row * stride, *second = first + stride;
    if (columns == kColumns) {
      for (int64_t i = 0; i < kColumns; i += kStep) {
        StorePacked(panel + i, LoadPairs(first + i, second + i));
      }
    } else {
      for (int64_t i = 0; i < kColumns; ++i) {
        panel[i] = i < columns ? Pair{first[i], second[i]} : Pair{};
      }
    }
  }
  return panel;
}

// Transposes up to kPanel rows into a panel, with zeros in the columns that are missing.
template <typename T, typename A>
JAX_DCN_INLINE A* PackTransposed(const T* rows_data, int64_t depth, int64_t stride, int64_t columns,
                                 A* panel) {
  for (int64_t k = 0; k < depth; ++k, panel += kPanel<A>) {
    for (int64_t i = 0; i < kPanel<A>; ++i) {
      panel[i] = i < columns ? ToFloat(rows_data[i * stride + k]) : A(0);
    }
  }
  return panel;
}

// Transposes pairs of columns in the same way. `depth` is even.
JAX_DCN_INLINE Pair* PackTransposed(const BFloat16* rows_data, int64_t depth, int64_t stride,
                                    int64_t columns, Pair* panel) {
  for (int64_t k = 0; k < depth; k += 2, panel += kPanel<float>) {
    for (int64_t i = 0; i < kPanel<float>; ++i) {
      const BFloat16* pair = rows_data + i * stride + k;
      panel[i] = i < columns ? Pair{pair[0], pair[1]} : Pair{};
    }
  }
  return panel;
}

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_RUNTIME_PANELS_H_
