// SPDX-License-Identifier: MIT
// Checks the conversions of whole vectors of 16-bit numbers against those of one number.
#include <cstdio>
#include <cstring>

#include "cpu/runtime/simd.h"

namespace jax_dcn::JAX_DCN_ISA {
namespace {

bool Same(float a, float b) { return (a != a && b != b) || !std::memcmp(&a, &b, sizeof(a)); }

// Every number of type T, and floats around it.
template <typename T>
bool Converts() {
  for (uint32_t bits = 0; bits < 1 << 16; ++bits) {
    T halves[kLanes<float>], rounded[kLanes<float>];
    for (int i = 0; i < kLanes<float>; ++i) {
      const uint16_t half = static_cast<uint16_t>(bits + 257 * i);
      std::memcpy(&halves[i], &half, sizeof(half));
    }
    Vector<float> sums = LoadSums(halves);
    for (int i = 0; i < kLanes<float>; ++i) {
      if (!Same(sums[i], ToFloat(halves[i]))) return false;
      sums[i] += sums[i] * (i % 2 ? 0x1p-11f : 0x1.8p-9f);  // ties of both types
    }
    StoreRounded(rounded, sums);
    for (int i = 0; i < kLanes<float>; ++i) {
      if (!Same(ToFloat(rounded[i]), ToFloat(FromFloat<T>::Round(sums[i])))) return false;
    }
  }
  return true;
}

}  // namespace
}  // namespace jax_dcn::JAX_DCN_ISA

int main() {
  using namespace jax_dcn;
  const bool ok = JAX_DCN_ISA::Converts<BFloat16>() && JAX_DCN_ISA::Converts<Float16>();
  std::puts(ok ? "conversions agree" : "a vector converts differently from its numbers");
  return ok ? 0 : 1;
}
