// SPDX-License-Identifier: MIT
// Compares the processor's products of pairs of bfloat16, bit by bit, with the model that replaces
// them elsewhere.

#include "cpu/runtime/pairs.h"

#include <cstdio>
#include <cstring>
#include <random>

namespace jax_dcn::JAX_DCN_ISA {
namespace {

bool SameBits(float a, float b) { return (a != a && b != b) || !std::memcmp(&a, &b, sizeof(a)); }

// Numbers of every size: subnormal ones, infinities and NaN among them; or of about the same size.
bool Agree(std::mt19937& random, bool any_size) {
  const uint32_t keep = any_size ? 0xffffffffu : 0x80ff80ffu, set = any_size ? 0 : 0x3f003f00u;
  Pair factor = BitCast<Pair>(static_cast<uint32_t>(random() & keep) | set);
  Pairs right;
  Vector<float> sum;
  for (int i = 0; i < kLanes<float>; ++i) {
    right[i] = (random() & keep) | set;
    sum[i] = BitCast<float>(static_cast<uint32_t>(random() & keep) | set);
  }
  const Vector<float> actual = AddProduct(sum, factor, right);
  for (int i = 0; i < kLanes<float>; ++i) {
    const uint32_t bits = right[i];
    if (!SameBits(actual[i], ModelOfProduct(sum[i], factor, BitCast<Pair>(bits)))) return false;
  }
  return true;
}

}  // namespace
}  // namespace jax_dcn::JAX_DCN_ISA

int main() {
  std::mt19937 random(0);
  for (int i = 0; i < 100000; ++i) {
    if (!jax_dcn::JAX_DCN_ISA::Agree(random, i % 2)) return 1;
  }
  std::printf("the model gives the processor's bits\n");
}
