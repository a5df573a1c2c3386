// SPDX-License-Identifier: MIT
// Finds the handlers of the CPU library by name, for fuzz.py.

#include <cstring>

#include "common/ffi/library.h"

namespace jax_dcn {

const Library& CpuLibrary();

}  // namespace jax_dcn

// The handler of a target, or null.
extern "C" JAX_DCN_EXPORT XLA_FFI_Handler* FindHandler(const char* target) {
  for (const jax_dcn::Target& found : jax_dcn::CpuLibrary().targets) {
    if (found.name == target) return found.handler;
  }
  return nullptr;
}
