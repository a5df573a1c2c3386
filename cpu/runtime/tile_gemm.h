// SPDX-License-Identifier: MIT
// Products of pairs of bfloat16 by tiles.
#ifndef JAX_DCN_CPU_RUNTIME_TILE_GEMM_H_
#define JAX_DCN_CPU_RUNTIME_TILE_GEMM_H_

#include <cstdint>

#include "cpu/runtime/panels.h"
#include "cpu/runtime/tiles.h"

namespace jax_dcn::JAX_DCN_ISA {

// A panel times rows of a left matrix. Both have their depth in steps of a tile. A step that is not
// whole, or whose rows do not lie one after the other, is copied first, with zeros in what is
// missing.
template <bool kTransposed>
class TilePanel {
 public:
  using Element = PanelElement<BFloat16, kTransposed>;

  TilePanel(const LeftMatrix<BFloat16>& a, const Element* panel) : a_(a), panel_(panel) {}

  // C[rows, columns] = base[rows, columns] + A[rows, depth] panel[depth, kPanel]
  void Multiply(int64_t rows, const BaseMatrix<float>& base, const ResultMatrix<float>& c) {
    for (int64_t first = 0; first < rows; first += kSumsSide) {
      const int64_t count = Min(kSumsSide, rows - first);
      MultiplyRows(first, count);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t row = c.indices == nullptr ? first + i : c.indices[first + i];
        const float* sums = sums_ + i * kSumsSide;
        const Vector<float> vectors[] = {Load(sums), Load(sums + kTileSide)};
        StoreRow(c.data + row * c.stride, base.data + row * base.stride, vectors, c.columns);
      }
    }
  }

 private:
  static_assert(!kHasPairs || (kPanel<float> == kSumsSide && kLanes<float> == kTileSide));

  void MultiplyRows(int64_t first, int64_t count) {
    TileSums sums;
    const Element* panel = panel_;
    for (int64_t segment = 0; segment < a_.segments; ++segment) {
      for (int64_t k = 0; k < a_.segment_depth; k += kTileSide) {
        const int64_t depth = Min(kTileSide, a_.segment_depth - k);
        sums.Add(Left(first, count, segment * a_.segment_step + k, depth), Right(panel, k, depth));
      }
      panel += a_.segment_depth * kPanel<float>;
    }
    sums.StoreTo(sums_);
  }

  JAX_DCN_INLINE PairRows Left(int64_t first, int64_t count, int64_t k, int64_t depth) {
    const bool in_order = kTransposed || a_.indices == nullptr;
    if (in_order && count == kSumsSide && depth == kTileSide) {
      return {a_.data + first * a_.stride + k, a_.stride};
    }
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = in_order ? first + i : a_.indices[first + i];
      CopyRow(a_.data + row * a_.stride + k, depth, left_ + i * kTileSide);
    }
    return {left_, kTileSide};
  }

  JAX_DCN_INLINE PairRows Right(const Element* panel, int64_t k, int64_t depth) {
    if constexpr (kTransposed) {
      for (int64_t i = 0; i < depth; ++i) {
        for (int64_t j = 0; j < kPanel<float>; j += kLanes<float>) {
          StorePacked(right_ + i * kPanel<float> + j,
                      LoadRight<BFloat16, true>(panel, a_.indices, k + i, j / kLanes<float>));
        }
      }
    } else if (depth == kTileSide) {
      return {panel + k * kPanel<float>, kPanel<float>};
    } else {
      __builtin_memcpy(right_, panel + k * kPanel<float>, depth * kPanel<float> * sizeof(Pair));
    }
    __builtin_memset(right_ + depth * kPanel<float>, 0,
                     (kTileSide - depth) * kPanel<float> * sizeof(Pair));
    return {right_, kPanel<float>};
  }

  static JAX_DCN_INLINE void CopyRow(const Pair* from, int64_t count, Pair* to) {
    if (count == kTileSide) return StorePacked(to, LoadPacked(from));
    for (int64_t i = 0; i < kTileSide; ++i) to[i] = i < count ? from[i] : Pair{};
  }

  const LeftMatrix<BFloat16>& a_;
  const Element* const panel_;
  alignas(64) Pair left_[kSumsSide * kTileSide] = {};
  alignas(64) Pair right_[kTileSide * kPanel<float>];
  alignas(64) float sums_[kSumsSide * kSumsSide];
};

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_RUNTIME_TILE_GEMM_H_
