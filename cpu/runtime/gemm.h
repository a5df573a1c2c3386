// SPDX-License-Identifier: MIT
// Products of small matrices that lie in cache: C = base + A B, with B packed into panels of
// columns.
#ifndef JAX_DCN_CPU_RUNTIME_GEMM_H_
#define JAX_DCN_CPU_RUNTIME_GEMM_H_

#include <cstdint>
#include <type_traits>

#include "cpu/runtime/pairs.h"
#include "cpu/runtime/panels.h"
#include "cpu/runtime/simd.h"
#include "cpu/runtime/tile_gemm.h"
#include "cpu/runtime/tiles.h"

namespace jax_dcn::JAX_DCN_ISA {

// Elements of A that one instruction loads.
template <typename Element>
constexpr int kFactors =
    std::is_floating_point_v<Element> ? Max(1, kFactorBytes / int64_t{sizeof(Element)}) : 1;

template <typename Element, int kCount>
struct Factors {
  // The elements are read as one value, because GCC takes a copied struct apart.
  typedef Element Unaligned
      __attribute__((vector_size(kCount * sizeof(Element)), aligned(sizeof(Element)), may_alias));
  const Vector<Element, kCount * sizeof(Element)> vector;

  JAX_DCN_INLINE explicit Factors(const Element* data)
      : vector(*reinterpret_cast<const Unaligned*>(data)) {}
  JAX_DCN_INLINE Element operator[](int i) const { return vector[i]; }
};

template <typename Element>
struct Factors<Element, 1> {
  const Element value;

  JAX_DCN_INLINE explicit Factors(const Element* data) : value(*data) {}
  JAX_DCN_INLINE Element operator[](int) const { return value; }
};

// Adds the products of some steps of depth from `first` on.
template <typename E, int kDepth, int kRows, int kVectors, typename Element, typename Panel,
          typename V>
JAX_DCN_INLINE void AddSteps(const Element* const (&left)[kRows], const Panel* panel, int64_t first,
                             V (&sums)[kRows][kVectors]) {
  decltype(LoadRight<E, false>(panel, nullptr, 0, 0)) right[kDepth][kVectors];
#pragma GCC unroll 16
  for (int k = 0; k < kDepth; ++k) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      right[k][j] = LoadRight<E, false>(panel, nullptr, first + k, j);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    const Factors<Element, kDepth> factors(left[i] + first);
#pragma GCC unroll 16
    for (int k = 0; k < kDepth; ++k) {
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) {
        sums[i][j] = AddProduct(sums[i][j], factors[k], right[k][j]);
      }
    }
  }
}

// Adds the products of a step of depth, given transposed: `left` has an element of each row.
template <typename E, int kRows, int kVectors, typename Element, typename Panel, typename V>
JAX_DCN_INLINE void AddStep(const Element* left, const Panel* panel, const int32_t* indices,
                            int64_t k, V (&sums)[kRows][kVectors]) {
  decltype(LoadRight<E, true>(panel, indices, 0, 0)) right[kVectors];
#pragma GCC unroll 4
  for (int j = 0; j < kVectors; ++j) right[j] = LoadRight<E, true>(panel, indices, k, j);
  constexpr int kCount = kFactors<Element>, kWhole = kRows / kCount * kCount;
#pragma GCC unroll 16
  for (int first = 0; first < kWhole; first += kCount) {
    const Factors<Element, kCount> factors(left + first);
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) {
        sums[first + i][j] = AddProduct(sums[first + i][j], factors[i], right[j]);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = kWhole; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) sums[i][j] = AddProduct(sums[i][j], left[i], right[j]);
  }
}

// Makes kRows rows of C from kVectors vectors of each row of the panel. Each element is summed in
// the order of depth for every kRows, so that the division of rows changes no result.
template <typename E, bool kTransposed, int kVectors, int kRows,
          typename A = typename Packed<E>::Sum>
__attribute__((noinline)) void MultiplyTile(const LeftMatrix<E>& a,
                                            const PanelElement<E, kTransposed>* panel,
                                            const BaseMatrix<A>& base, const ResultMatrix<A>& c) {
  using Element = typename Packed<E>::Element;
  int64_t rows[kRows];
  for (int i = 0; i < kRows; ++i) rows[i] = c.indices == nullptr ? i : c.indices[i];
  // The result is fetched early, because it may lie in memory and the products take a while.
  for (int i = 0; i < kRows; ++i) __builtin_prefetch(c.data + rows[i] * c.stride, 1);
  Vector<A> sums[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {  // one by one: GCC clears arrays by a slow string instruction
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) sums[i][j] = Vector<A>{};
  }
  const Element* left[kRows];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    left[i] = a.data + (kTransposed ? i : a.stride * (a.indices == nullptr ? i : a.indices[i]));
  }
  constexpr int kDepth = kTransposed ? 1 : kFactors<Element>;
  for (int64_t segment = 0; segment < a.segments; ++segment) {
    int64_t k = 0;
    for (; k + kDepth <= a.segment_depth; k += kDepth) {
      if constexpr (kTransposed) {
        AddStep<E>(left[0] + k * a.stride, panel, a.indices, k, sums);
      } else {
        AddSteps<E, kDepth>(left, panel, k, sums);
      }
    }
    if constexpr (kDepth > 1) {
      for (; k < a.segment_depth; ++k) AddSteps<E, 1>(left, panel, k, sums);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) left[i] += a.segment_step;
    panel += a.segment_depth * kPanel<A>;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    StoreRow(c.data + rows[i] * c.stride, base.data + rows[i] * base.stride, sums[i], c.columns);
  }
}

// Chooses the tile of this many rows.
template <typename E, bool kTransposed, int kVectors, int kRows = kTileRows,
          typename A = typename Packed<E>::Sum>
JAX_DCN_INLINE void MultiplyRows(int64_t rows, const LeftMatrix<E>& a,
                                 const PanelElement<E, kTransposed>* panel,
                                 const BaseMatrix<A>& base, const ResultMatrix<A>& c) {
  if constexpr (kRows > 0) {
    if (rows == kRows) return MultiplyTile<E, kTransposed, kVectors, kRows>(a, panel, base, c);
    MultiplyRows<E, kTransposed, kVectors, kRows - 1>(rows, a, panel, base, c);
  }
}

// C[rows, columns] = base[rows, columns] + A[rows, depth] panel[depth, kPanel]
//
// Tiles have about equal size, because a tile of few rows takes nearly as long as a full tile. With
// `kFetchNext`, the product fetches parts of the panel that follows in memory.
template <typename E, bool kTransposed, bool kFetchNext = false,
          typename A = typename Packed<E>::Sum>
void MultiplyPanel(int64_t rows, LeftMatrix<E> a, const PanelElement<E, kTransposed>* panel,
                   BaseMatrix<A> base, ResultMatrix<A> c) {
  using Element = PanelElement<E, kTransposed>;
  if constexpr (Packed<E>::kDepth == 2) {
    if (HasTiles()) return TilePanel<kTransposed>(a, panel).Multiply(rows, base, c);
  }
  constexpr int64_t kLine = 64 / sizeof(Element);
  const int64_t size = a.segments * a.segment_depth * kPanel<A>;
  int64_t tiles = CeilDiv(rows, kTileRows);
  const int64_t part = RoundUp(CeilDiv(size, Max(1, tiles)), kLine);
  const Element *next = panel + size, *end = next + size;
  for (; tiles > 0; --tiles) {
    for (int64_t i = 0; kFetchNext && i < part && next < end; i += kLine, next += kLine) {
      __builtin_prefetch(next);
    }
    const int64_t tile_rows = CeilDiv(rows, tiles);
    if (c.columns > kLanes<A>) {
      MultiplyRows<E, kTransposed, kTileVectors>(tile_rows, a, panel, base, c);
    } else {
      MultiplyRows<E, kTransposed, 1>(tile_rows, a, panel, base, c);
    }
    rows -= tile_rows;
    if (!kTransposed && a.indices != nullptr) {
      a.indices += tile_rows;
    } else {
      a.data += tile_rows * (kTransposed ? 1 : a.stride);
    }
    if (c.indices != nullptr) {
      c.indices += tile_rows;
    } else {
      base.data += tile_rows * base.stride;
      c.data += tile_rows * c.stride;
    }
  }
}

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_RUNTIME_GEMM_H_
