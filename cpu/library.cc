// SPDX-License-Identifier: MIT
// The library jax_dcn_cpu: a list of the CPU's XLA targets.

#include "common/ffi/library.h"

#include "cpu/deform_conv2d/handlers.h"
#include "cpu/deform_roi_pool/handlers.h"
#include "cpu/runtime/instruction_set.h"

namespace jax_dcn {

JAX_DCN_EXPORT const Library& CpuLibrary() {
  static const Library library = {
      Name(CurrentInstructionSet()),
      {
          {"jax_dcn_deform_conv2d_forward", DeformConv2dForward},
          {"jax_dcn_deform_conv2d_jvp", DeformConv2dJvp},
          {"jax_dcn_deform_conv2d_backward", DeformConv2dBackward},
          {"jax_dcn_deform_roi_pool_forward", DeformRoIPoolForward},
          {"jax_dcn_deform_roi_pool_jvp", DeformRoIPoolJvp},
          {"jax_dcn_deform_roi_pool_backward", DeformRoIPoolBackward},
      },
  };
  return library;
}

}  // namespace jax_dcn
