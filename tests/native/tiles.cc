// SPDX-License-Identifier: MIT
// Compares the processor's products of tiles of bfloat16, bit by bit, with the model that replaces
// the products elsewhere.

#include "cpu/runtime/tiles.h"

#include <cstdio>
#include <random>

namespace jax_dcn::JAX_DCN_ISA {
namespace {

constexpr int64_t kStride = kSumsSide + 1;  // from row to row

// Pairs whose products and sums are of every size, subnormal ones and infinities among them; or of
// about one size.
void Draw(std::mt19937& random, bool any_size, Pair (&pairs)[kSumsSide * kStride]) {
  std::uniform_int_distribution<uint32_t> exponent(any_size ? 30 : 126, any_size ? 200 : 127);
  for (Pair& pair : pairs) {
    for (BFloat16* element : {&pair.first, &pair.second}) {
      element->bits = static_cast<uint16_t>((random() & 0x807f) | exponent(random) << 7);
    }
  }
}

bool SameBits(float a, float b) {
  return (a != a && b != b) || BitCast<uint32_t>(a) == BitCast<uint32_t>(b);
}

// Two steps of depth: the second is added to the sums of the first.
bool Agree(std::mt19937& random, bool any_size) {
  static Pair left[kSumsSide * kStride], right[kSumsSide * kStride];
  float expected[kSumsSide][kSumsSide] = {};
  static float actual[kSumsSide * kSumsSide];
  TileSums sums;
  for (int step = 0; step < 2; ++step) {
    Draw(random, any_size, left), Draw(random, any_size, right);
    sums.Add({left, kStride}, {right, kStride});
    ModelOfTiles({left, kStride}, {right, kStride}, expected);
  }
  sums.StoreTo(actual);
  for (int64_t i = 0; i < kSumsSide * kSumsSide; ++i) {
    if (!SameBits(actual[i], expected[i / kSumsSide][i % kSumsSide])) return false;
  }
  return true;
}

}  // namespace
}  // namespace jax_dcn::JAX_DCN_ISA

int main() {
  using namespace jax_dcn::JAX_DCN_ISA;
  if (!HasTiles()) return 2;
  const TileRegisters<jax_dcn::BFloat16> registers;
  std::mt19937 random(0);
  for (int i = 0; i < 200; ++i) {
    if (!Agree(random, i % 2)) return 1;
  }
  std::printf("the model gives the processor's bits\n");
}
