// SPDX-License-Identifier: MIT
// The library jax_dcn_cpu: the XLA targets of every operator on CPU. The build defines
// JAX_DCN_OPERATORS, which lists the operators: JAX_DCN_OPERATOR(one) JAX_DCN_OPERATOR(another).

#include "common/ffi/library.h"

#include "cpu/runtime/instruction_set.h"

namespace jax_dcn {

// Each operator's handlers.cc defines its targets.
#define JAX_DCN_OPERATOR(name)      \
  namespace name {                  \
  std::vector<Target> CpuTargets(); \
  }
JAX_DCN_OPERATORS
#undef JAX_DCN_OPERATOR

JAX_DCN_EXPORT const Library& CpuLibrary() {
#define JAX_DCN_OPERATOR(name) name::CpuTargets(),
  static const Library library = {Name(CurrentInstructionSet()), Joined({JAX_DCN_OPERATORS})};
#undef JAX_DCN_OPERATOR
  return library;
}

}  // namespace jax_dcn
