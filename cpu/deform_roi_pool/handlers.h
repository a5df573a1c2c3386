// SPDX-License-Identifier: MIT
// XLA handlers of deformable RoI pooling on CPU.
#ifndef JAX_DCN_CPU_DEFORM_ROI_POOL_HANDLERS_H_
#define JAX_DCN_CPU_DEFORM_ROI_POOL_HANDLERS_H_

#include "xla/ffi/api/ffi.h"

namespace jax_dcn {

XLA_FFI_DECLARE_HANDLER_SYMBOL(DeformRoIPoolForward);
XLA_FFI_DECLARE_HANDLER_SYMBOL(DeformRoIPoolJvp);
XLA_FFI_DECLARE_HANDLER_SYMBOL(DeformRoIPoolBackward);

}  // namespace jax_dcn

#endif  // JAX_DCN_CPU_DEFORM_ROI_POOL_HANDLERS_H_
