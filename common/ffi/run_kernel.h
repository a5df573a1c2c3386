// SPDX-License-Identifier: MIT
// The step from an XLA call to a kernel, the same for every operator and backend.
#ifndef JAX_DCN_COMMON_FFI_RUN_KERNEL_H_
#define JAX_DCN_COMMON_FFI_RUN_KERNEL_H_

#include "common/ffi/operator_call.h"

namespace jax_dcn {

// Calls the kernel for a call of kind `kKind` and type T. `kernels` has the members forward, jvp
// and backward; `context` is what kernels run on: an executor of the CPU, or a CUDA stream.
template <OperatorCall::Kind kKind, typename T, typename Kernels, typename Context, typename Call>
auto RunKernel(const Kernels& kernels, Context& context, const Call& call) {
  const auto primals = call.template Primals<T>();
  if constexpr (kKind == OperatorCall::kForward) {
    return kernels.forward(context, call.problem(), primals, call.template Result<T>(Call::kY));
  } else if constexpr (kKind == OperatorCall::kJvp) {
    return kernels.jvp(context, call.problem(), primals, call.template Tangents<T>(),
                       call.template Result<T>(Call::kY));
  } else {
    return kernels.backward(context, call.problem(), primals, call.template Linear<T>(Call::kY),
                            call.template Cotangents<T>());
  }
}

}  // namespace jax_dcn

#endif  // JAX_DCN_COMMON_FFI_RUN_KERNEL_H_
