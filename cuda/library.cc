// SPDX-License-Identifier: MIT
// The library jax_dcn_cuda: the XLA targets of every operator on CUDA. The build defines
// JAX_DCN_OPERATORS, which lists the operators: JAX_DCN_OPERATOR(one) JAX_DCN_OPERATOR(another).

#include "common/ffi/library.h"

#include <cuda_runtime.h>

#include <string>

namespace jax_dcn {

// Each operator's handlers.cc defines its targets.
#define JAX_DCN_OPERATOR(name)       \
  namespace name {                   \
  std::vector<Target> CudaTargets(); \
  }
JAX_DCN_OPERATORS
#undef JAX_DCN_OPERATOR

JAX_DCN_EXPORT const Library& CudaLibrary() {
  static const std::string description = "CUDA " + std::to_string(CUDART_VERSION / 1000) + "." +
                                         std::to_string(CUDART_VERSION % 1000 / 10) +
                                         " for " JAX_DCN_CUDA_ARCHITECTURES;
#define JAX_DCN_OPERATOR(name) name::CudaTargets(),
  static const Library library = {description.c_str(), Joined({JAX_DCN_OPERATORS})};
#undef JAX_DCN_OPERATOR
  return library;
}

}  // namespace jax_dcn
