// SPDX-License-Identifier: MIT
// What a library of kernels shows of itself: one function, without Python, so that the same library
// serves every Python.
#ifndef JAX_DCN_COMMON_FFI_LIBRARY_H_
#define JAX_DCN_COMMON_FFI_LIBRARY_H_

#include <vector>

#include "xla/ffi/api/ffi.h"

#define JAX_DCN_EXPORT __attribute__((visibility("default")))

namespace jax_dcn {

struct Target {
  const char* name;
  XLA_FFI_Handler* handler;
};

struct Library {
  const char* description;  // what its kernels were compiled for, and which of them run here
  std::vector<Target> targets;
  // XLA refuses handlers that were built for a newer interface than its own.
  int ffi_version[2] = {XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR};
};

}  // namespace jax_dcn

#endif  // JAX_DCN_COMMON_FFI_LIBRARY_H_
