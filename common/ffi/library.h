// SPDX-License-Identifier: MIT
// The interface of a library of kernels: one function that returns a Library. The library does not
// depend on Python, so that one build serves every version of Python.
#ifndef JAX_DCN_COMMON_FFI_LIBRARY_H_
#define JAX_DCN_COMMON_FFI_LIBRARY_H_

#include <string>
#include <vector>

#include "xla/ffi/api/ffi.h"

#define JAX_DCN_EXPORT __attribute__((visibility("default")))

namespace jax_dcn {

struct Target {
  std::string name;
  XLA_FFI_Handler* handler;
};

// The targets of several operators as one list.
inline std::vector<Target> Joined(const std::vector<std::vector<Target>>& operators) {
  std::vector<Target> all;
  for (const std::vector<Target>& targets : operators) {
    all.insert(all.end(), targets.begin(), targets.end());
  }
  return all;
}

struct Library {
  const char* description;  // the hardware that the kernels are for
  std::vector<Target> targets;
  // The version of XLA's interface in the build. XLA refuses handlers of a newer version than its
  // own.
  int ffi_version[2] = {XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR};
};

}  // namespace jax_dcn

#endif  // JAX_DCN_COMMON_FFI_LIBRARY_H_
