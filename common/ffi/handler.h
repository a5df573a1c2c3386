// SPDX-License-Identifier: MIT
// Parts of the XLA handlers of every operator and backend: reading arguments, refusing wrong
// arguments, choosing a type.
#ifndef JAX_DCN_COMMON_FFI_HANDLER_H_
#define JAX_DCN_COMMON_FFI_HANDLER_H_

#include <cstdint>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/sampling/half.h"
#include "xla/ffi/api/ffi.h"

namespace jax_dcn {

namespace ffi = xla::ffi;

using Shape = std::vector<int64_t>;

// Thrown by checks, inside a handler only.
class Refusal : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

// Runs the body of a handler; no std::exception of the body reaches XLA.
template <typename F>
ffi::Error Guarded(const F& body) {
  try {
    body();
    return ffi::Error::Success();
  } catch (const Refusal& refusal) {
    return ffi::Error::InvalidArgument(std::string("jax_dcn: ") + refusal.what());
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "jax_dcn: out of memory");
  } catch (const std::exception& error) {
    return ffi::Error::Internal(std::string("jax_dcn: ") + error.what());
  }
}

// The value that XLA decoded, or a refusal in XLA's words.
template <typename T>
T ValueOf(const std::string& name, ffi::ErrorOr<T> decoded) {
  if (!decoded.has_value()) throw Refusal(name + ": " + decoded.error().message());
  return *decoded;
}

template <typename T>
T Attribute(const ffi::Dictionary& attributes, const char* name) {
  return ValueOf(std::string("attribute ") + name, attributes.get<T>(name));
}

inline std::string ToString(const Shape& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + ")";
}

inline Shape ShapeOf(const ffi::AnyBuffer& buffer) {
  return Shape(buffer.dimensions().begin(), buffer.dimensions().end());
}

inline void ExpectRank(const std::string& name, const Shape& shape, size_t rank) {
  if (shape.size() == rank) return;
  throw Refusal(name + " must have " + std::to_string(rank) + " axes, got shape " +
                ToString(shape));
}

inline void Expect(const std::string& name, const ffi::AnyBuffer& buffer, const Shape& shape,
                   ffi::DataType dtype) {
  if (ShapeOf(buffer) != shape) {
    throw Refusal(name + ": expected shape " + ToString(shape) + ", got " +
                  ToString(ShapeOf(buffer)));
  }
  if (buffer.element_type() != dtype) {
    throw Refusal(name + " has a dtype that does not go with that of x");
  }
}

// Calls `run` with a value of the type that `dtype` names.
template <typename F>
void DispatchFloat(ffi::DataType dtype, const F& run) {
  switch (dtype) {
    case ffi::DataType::F32:
      return run(float{});
    case ffi::DataType::F64:
      return run(double{});
    case ffi::DataType::BF16:
      return run(BFloat16{});
    case ffi::DataType::F16:
      return run(Float16{});
    default:
      throw Refusal("x must be float32, float64, bfloat16 or float16");
  }
}

}  // namespace jax_dcn

#endif  // JAX_DCN_COMMON_FFI_HANDLER_H_
