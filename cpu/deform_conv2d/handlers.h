// SPDX-License-Identifier: MIT
// XLA handlers of deformable convolution on CPU.
#ifndef JAX_DCN_CPU_DEFORM_CONV2D_HANDLERS_H_
#define JAX_DCN_CPU_DEFORM_CONV2D_HANDLERS_H_

#include "xla/ffi/api/ffi.h"

namespace jax_dcn {

XLA_FFI_DECLARE_HANDLER_SYMBOL(DeformConv2dForward);
XLA_FFI_DECLARE_HANDLER_SYMBOL(DeformConv2dJvp);
XLA_FFI_DECLARE_HANDLER_SYMBOL(DeformConv2dBackward);

}  // namespace jax_dcn

#endif  // JAX_DCN_CPU_DEFORM_CONV2D_HANDLERS_H_
