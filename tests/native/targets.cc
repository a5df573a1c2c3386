// SPDX-License-Identifier: MIT
// The targets of a library of kernels, for targets.py. JAX_DCN_LIBRARY is the library's function.

#include "common/ffi/library.h"

namespace jax_dcn {

const Library& JAX_DCN_LIBRARY();

}  // namespace jax_dcn

extern "C" JAX_DCN_EXPORT int TargetCount() {
  return static_cast<int>(jax_dcn::JAX_DCN_LIBRARY().targets.size());
}

extern "C" JAX_DCN_EXPORT const char* TargetName(int index) {
  return jax_dcn::JAX_DCN_LIBRARY().targets[index].name.c_str();
}

extern "C" JAX_DCN_EXPORT XLA_FFI_Handler* TargetHandler(int index) {
  return jax_dcn::JAX_DCN_LIBRARY().targets[index].handler;
}
