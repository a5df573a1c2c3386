// SPDX-License-Identifier: MIT
// XLA handlers of deformable convolution on CUDA.
#ifndef JAX_DCN_CUDA_DEFORM_CONV2D_HANDLERS_H_
#define JAX_DCN_CUDA_DEFORM_CONV2D_HANDLERS_H_

#include "xla/ffi/api/ffi.h"

namespace jax_dcn {

XLA_FFI_DECLARE_HANDLER_SYMBOL(DeformConv2dForward);
XLA_FFI_DECLARE_HANDLER_SYMBOL(DeformConv2dGradKernel);
XLA_FFI_DECLARE_HANDLER_SYMBOL(DeformConv2dSamplesBackward);
XLA_FFI_DECLARE_HANDLER_SYMBOL(DeformConv2dColumns);
XLA_FFI_DECLARE_HANDLER_SYMBOL(DeformConv2dColumnsJvp);
XLA_FFI_DECLARE_HANDLER_SYMBOL(DeformConv2dColumnsBackward);

}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_DEFORM_CONV2D_HANDLERS_H_
