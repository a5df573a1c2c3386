// SPDX-License-Identifier: MIT
// Hands XLA handlers to Python: with module.cc, all that knows pybind11.
#ifndef JAX_DCN_COMMON_CAPSULE_H_
#define JAX_DCN_COMMON_CAPSULE_H_

#include <pybind11/pybind11.h>

#include "xla/ffi/api/ffi.h"

namespace jax_dcn {

inline pybind11::capsule Capsule(XLA_FFI_Handler* handler) {
  return pybind11::capsule(reinterpret_cast<void*>(handler));
}

inline pybind11::tuple FfiVersion() {
  return pybind11::make_tuple(XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR);
}

}  // namespace jax_dcn

#endif  // JAX_DCN_COMMON_CAPSULE_H_
