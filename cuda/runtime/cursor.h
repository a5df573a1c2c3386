// SPDX-License-Identifier: MIT
// Takes the operands and the results of an XLA call one after the other.
#ifndef JAX_DCN_CUDA_RUNTIME_CURSOR_H_
#define JAX_DCN_CUDA_RUNTIME_CURSOR_H_

#include <cstddef>
#include <string>

#include "common/ffi/handler.h"

namespace jax_dcn {

class Cursor {
 public:
  Cursor(const ffi::RemainingArgs& operands, const ffi::RemainingRets& results)
      : operands_(operands), results_(results), results_end_(results.size()) {}

  size_t operands_left() const { return operands_.size() - operand_; }

  ffi::AnyBuffer Operand() {
    const std::string name = "operand " + std::to_string(operand_);
    return ValueOf(name, operands_.get<ffi::AnyBuffer>(operand_++));
  }
  ffi::AnyBuffer Result() {
    if (result_ == results_end_) throw Refusal("expected more results");
    return ResultAt(result_++);
  }
  // The last result that was not taken.
  ffi::AnyBuffer LastResult() {
    if (result_ == results_end_) throw Refusal("expected more results");
    return ResultAt(--results_end_);
  }

  void ExpectEnd() const {
    if (operands_left() == 0 && result_ == results_end_) return;
    throw Refusal("expected " + std::to_string(operand_) + " operands and " +
                  std::to_string(results_.size() - results_end_ + result_) + " results, got " +
                  std::to_string(operands_.size()) + " and " + std::to_string(results_.size()));
  }

 private:
  ffi::AnyBuffer ResultAt(size_t index) const {
    return *ValueOf("result " + std::to_string(index), results_.get<ffi::AnyBuffer>(index));
  }

  const ffi::RemainingArgs& operands_;
  const ffi::RemainingRets& results_;
  size_t operand_ = 0, result_ = 0, results_end_;
};

}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_RUNTIME_CURSOR_H_
