// SPDX-License-Identifier: MIT
// The tile registers of AMX, sums of products of pairs of bfloat16 as the instruction TDPBF16PS
// makes them, and the transposition that brings pairs into the order of a tile.
#ifndef JAX_DCN_CPU_RUNTIME_TILES_H_
#define JAX_DCN_CPU_RUNTIME_TILES_H_

#include <cmath>
#include <cstdint>

#if defined(__AMX_BF16__)
#include <immintrin.h>

#include "cpu/runtime/instruction_set.h"
#endif

#include "cpu/runtime/pairs.h"
#include "cpu/runtime/simd.h"

namespace jax_dcn::JAX_DCN_ISA {

// A tile has this many rows, and this many columns of four bytes.
constexpr int64_t kTileSide = 16;
// The sums of a product are two by two tiles.
constexpr int64_t kSumsSide = 2 * kTileSide;

// Rows of a matrix of pairs. The stride from row to row counts pairs.
struct PairRows {
  const Pair* data;
  int64_t stride;
};

// A model of the instruction TDPBF16PS, which gives the same bits: the products of the first
// elements are summed apart from the products of the second elements.
inline void ModelOfTiles(const PairRows& left, const PairRows& right,
                         float (&sums)[kSumsSide][kSumsSide]) {
  for (int64_t i = 0; i < kSumsSide; ++i) {
    for (int64_t j = 0; j < kSumsSide; ++j) {
      float first = 0, second = 0;
      for (int64_t k = 0; k < kTileSide; ++k) {
        const Pair a = left.data[i * left.stride + k], b = right.data[k * right.stride + j];
        first = AddFlushed(first, a.first, b.first);
        second = AddFlushed(second, a.second, b.second);
      }
      sums[i][j] = Flushed(Flushed(sums[i][j]) + Flushed(first + second));
    }
  }
}

// Gives the thread its tile registers, if elements E are multiplied by tiles.
template <typename E>
struct TileRegisters {
  TileRegisters() {}
};

#if defined(__AMX_BF16__)

inline bool HasTiles() { return CurrentInstructionSet() == InstructionSet::kAmxBf16; }

template <>
class TileRegisters<BFloat16> {
 public:
  TileRegisters() {
    if (!HasTiles()) return;
    alignas(64) static constexpr Configuration kAllWhole;
    _tile_loadconfig(&kAllWhole);
  }
  ~TileRegisters() {
    if (HasTiles()) _tile_release();
  }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;

 private:
  // The layout that the instruction LDTILECFG reads.
  struct Configuration {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
};

// Sums of products, [kSumsSide, kSumsSide], in the registers 0 to 3.
class TileSums {
 public:
  JAX_DCN_INLINE TileSums() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }

  // Adds the product of [kSumsSide, kTileSide] and [kTileSide, kSumsSide] pairs.
  JAX_DCN_INLINE void Add(const PairRows& left, const PairRows& right) {
    asm volatile("" ::: "memory");  // GCC does not know that the next instructions read memory
    const int64_t step = left.stride * sizeof(Pair), down = right.stride * sizeof(Pair);
    _tile_loadd(6, right.data, down);
    _tile_loadd(4, left.data, step);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, right.data + kTileSide, down);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, left.data + kTileSide * left.stride, step);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }

  JAX_DCN_INLINE void StoreTo(float* sums) const {
    constexpr int64_t kStep = kSumsSide * sizeof(float);
    _tile_stored(0, sums, kStep);
    _tile_stored(1, sums + kTileSide, kStep);
    _tile_stored(2, sums + kTileSide * kSumsSide, kStep);
    _tile_stored(3, sums + kTileSide * kSumsSide + kTileSide, kStep);
  }
};

#else

#if defined(JAX_DCN_EMULATE_AVX512_BF16)
// Whether the model replaces tiles. A test sets this, and so covers products of tiles and of pairs.
inline bool emulate_tiles = false;
inline bool HasTiles() { return emulate_tiles; }
#else
constexpr bool HasTiles() { return false; }
#endif

class TileSums {
 public:
  void Add(const PairRows& left, const PairRows& right) { ModelOfTiles(left, right, sums_); }
  void StoreTo(float* sums) const { __builtin_memcpy(sums, sums_, sizeof(sums_)); }

 private:
  float sums_[kSumsSide][kSumsSide] = {};
};

#endif

// Lanes of two vectors: index l of the first, or kTileSide + l of the second.
JAX_DCN_INLINE Pairs Permute(Pairs first, Pairs second, Pairs index) {
#if defined(__AVX512F__) && !defined(JAX_DCN_EMULATE_AVX512)
  return (Pairs)_mm512_permutex2var_epi32((__m512i)first, (__m512i)index, (__m512i)second);
#else
  Pairs lanes = {};
  for (int i = 0; i < kLanes<float>; ++i) {
    lanes[i] = index[i] < kTileSide ? first[index[i]] : second[index[i] - kTileSide];
  }
  return lanes;
#endif
}

// Exchanges the upper right and the lower left part of every square of 2 * kSide rows.
template <int kSide>
JAX_DCN_INLINE void ExchangeParts(Pairs (&rows)[kTileSide]) {
  Pairs upper = {}, lower = {};
#pragma GCC unroll 16
  for (uint32_t i = 0; i < kLanes<float>; ++i) {
    upper[i] = i & kSide ? kTileSide + i - kSide : i;
    lower[i] = i & kSide ? kTileSide + i : i + kSide;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kTileSide; ++i) {
    if (i & kSide) continue;
    const Pairs first = rows[i], second = rows[i + kSide];
    rows[i] = Permute(first, second, upper);
    rows[i + kSide] = Permute(first, second, lower);
  }
}

JAX_DCN_INLINE void Transpose(Pairs (&rows)[kTileSide]) {
  ExchangeParts<1>(rows);
  ExchangeParts<2>(rows);
  ExchangeParts<4>(rows);
  ExchangeParts<8>(rows);
}

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_RUNTIME_TILES_H_
