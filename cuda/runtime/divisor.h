// SPDX-License-Identifier: MIT
// Division by a number that the host knows: on the device a multiplication and a shift.
#ifndef JAX_DCN_CUDA_RUNTIME_DIVISOR_H_
#define JAX_DCN_CUDA_RUNTIME_DIVISOR_H_

#include <cstdint>

#include "common/sampling/bilinear.h"

namespace jax_dcn {

// With s = ⌈log2 d⌉ and m = ⌈2^(31 + s) / d⌉, which fits into 32 bits, n / d = ⌊n m / 2^(31 + s)⌋
// for every n below 2^31: m is too large by less than 2^s / d, n m by less than 2^(31 + s) / d.
class Divisor {
 public:
  Divisor() = default;
  // A divisor beyond 31 bits, or of zero, counts as one: nothing that there is has such a divisor.
  explicit Divisor(int64_t divisor)
      : divisor_(divisor < 1 || divisor > INT32_MAX ? 1 : static_cast<uint32_t>(divisor)) {
    while ((uint64_t{1} << shift_) < divisor_) ++shift_;
    const uint64_t power = uint64_t{1} << (31 + shift_);
    multiplier_ = static_cast<uint32_t>((power + divisor_ - 1) / divisor_);
  }

  JAX_DCN_INLINE int32_t Quotient(int32_t n) const {
    const uint64_t product = uint64_t{static_cast<uint32_t>(n) * 2} * multiplier_;
    return static_cast<int32_t>(static_cast<uint32_t>(product >> 32) >> shift_);
  }
  JAX_DCN_INLINE int32_t Remainder(int32_t n, int32_t quotient) const {
    return n - quotient * static_cast<int32_t>(divisor_);
  }

 private:
  uint32_t divisor_ = 1, multiplier_ = 1u << 31, shift_ = 0;
};

}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_RUNTIME_DIVISOR_H_
