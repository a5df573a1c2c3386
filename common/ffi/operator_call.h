// SPDX-License-Identifier: MIT
// One XLA call of an operator, of its tangent or of its fused backward pass: where its arrays are,
// each checked. Shared by the handlers of every operator and backend.
#ifndef JAX_DCN_COMMON_FFI_OPERATOR_CALL_H_
#define JAX_DCN_COMMON_FFI_OPERATOR_CALL_H_

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "common/ffi/handler.h"

namespace jax_dcn {

// Arrays are numbered: the operands of the forward call, in order, then its result. Derivatives
// depend on the first `primals` operands, and every call has these operands. The other operands and
// the results of each kind of call:
//   forward    the operands that are left          -> the result
//   jvp        tangents of the arrays in `wrt`     -> tangent of the result
//   backward   cotangent of the result             -> cotangents of the arrays in `wrt`
class OperatorCall {
 public:
  enum Kind { kForward, kJvp, kBackward };

  ffi::DataType dtype() const { return dtype_; }

  // Elements of the results.
  int64_t written() const { return written_; }

  // The operand that is `array`, or the tangent or cotangent of `array`. Null where the call has no
  // such operand.
  template <typename T>
  const T* Linear(int64_t array) const {
    return static_cast<const T*>(linear_[array]);
  }

  template <typename T>
  T* Result(int64_t array) const {
    return static_cast<T*>(results_[array]);
  }

 protected:
  struct Array {
    const char* name;
    Shape shape;
    bool wide;            // of the type of coordinates and sums
    bool differentiable;  // may be in `wrt`
  };

  template <typename T>
  const T* Primal(int64_t array) const {
    return static_cast<const T*>(primals_[array]);
  }

  static ffi::AnyBuffer Argument(const ffi::RemainingArgs& arguments, int64_t index) {
    return ValueOf("operand " + std::to_string(index), arguments.get<ffi::AnyBuffer>(index));
  }

  static int64_t InRange(const char* name, int64_t value, int64_t least) {
    if (value < least || value > std::numeric_limits<int32_t>::max()) {
      throw Refusal(std::string(name) + " must be at least " + std::to_string(least) +
                    " and fit into 32 bits, got " + std::to_string(value));
    }
    return value;
  }

  static void ExpectOperands(const ffi::RemainingArgs& arguments, size_t least) {
    if (arguments.size() >= least) return;
    throw Refusal("expected at least " + std::to_string(least) + " operands");
  }

  // Finds the arrays of the call, which `arrays` describes; the first has the dtype of the call.
  // `more_results` follow these arrays in the results.
  void Read(Kind kind, const std::vector<Array>& arrays, int64_t primals,
            const ffi::RemainingArgs& arguments, const ffi::RemainingRets& results,
            const ffi::Dictionary& attributes, size_t more_results = 0) {
    using Indices = std::vector<int64_t>;
    const int64_t y = arrays.size() - 1;
    dtype_ = Argument(arguments, 0).element_type();
    primals_.resize(arrays.size());
    linear_.resize(arrays.size());
    results_.resize(arrays.size());
    for (int64_t i = 0; i < primals; ++i) {
      primals_[i] = Checked("", arrays[i], Argument(arguments, i));
    }
    Indices rest;
    for (int64_t i = primals; i < y; ++i) rest.push_back(i);
    const Indices wrt = kind == kForward ? Indices() : ReadWrt(arrays, attributes);
    ReadLinear(arrays, primals,
               kind == kForward ? rest
               : kind == kJvp   ? wrt
                                : Indices{y},
               arguments);
    ReadResults(arrays, kind == kBackward ? wrt : Indices{y}, more_results, results);
  }

  void* Checked(const char* prefix, const Array& array, const ffi::AnyBuffer& buffer) const {
    const ffi::DataType accumulator =
        dtype_ == ffi::DataType::F64 ? ffi::DataType::F64 : ffi::DataType::F32;
    Expect(std::string(prefix) + array.name, buffer, array.shape,
           array.wide ? accumulator : dtype_);
    return buffer.untyped_data();
  }

  static std::vector<int64_t> ReadWrt(const std::vector<Array>& arrays,
                                      const ffi::Dictionary& attributes) {
    const int64_t operands = arrays.size() - 1;
    std::vector<int64_t> wrt;
    std::vector<bool> seen(operands);
    for (int64_t index : Attribute<ffi::Span<const int64_t>>(attributes, "wrt")) {
      if (index < 0 || index >= operands || seen[index] || !arrays[index].differentiable) {
        throw Refusal("wrt must be indices of differentiable operands, each once");
      }
      seen[index] = true;
      wrt.push_back(index);
    }
    return wrt;
  }

  ffi::DataType dtype_;

 private:
  void ReadLinear(const std::vector<Array>& arrays, int64_t primals,
                  const std::vector<int64_t>& indices, const ffi::RemainingArgs& arguments) {
    const size_t expected = primals + indices.size();
    if (arguments.size() != expected) {
      throw Refusal("expected " + std::to_string(expected) + " operands, got " +
                    std::to_string(arguments.size()));
    }
    for (size_t i = 0; i < indices.size(); ++i) {
      linear_[indices[i]] =
          Checked("operand for ", arrays[indices[i]], Argument(arguments, primals + i));
    }
  }

  void ReadResults(const std::vector<Array>& arrays, const std::vector<int64_t>& indices,
                   size_t more, const ffi::RemainingRets& results) {
    if (results.size() != indices.size() + more) {
      throw Refusal("expected " + std::to_string(indices.size() + more) + " results, got " +
                    std::to_string(results.size()));
    }
    for (size_t i = 0; i < indices.size(); ++i) {
      ffi::Result<ffi::AnyBuffer> result = ValueOf("result", results.get<ffi::AnyBuffer>(i));
      results_[indices[i]] = Checked("result for ", arrays[indices[i]], *result);
      written_ += (*result).element_count();
    }
  }

  std::vector<const void*> primals_, linear_;
  std::vector<void*> results_;
  int64_t written_ = 0;
};

}  // namespace jax_dcn

#endif  // JAX_DCN_COMMON_FFI_OPERATOR_CALL_H_
