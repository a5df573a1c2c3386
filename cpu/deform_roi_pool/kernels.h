// SPDX-License-Identifier: MIT
// The kernels of deformable RoI pooling on CPU.
#ifndef JAX_DCN_CPU_DEFORM_ROI_POOL_KERNELS_H_
#define JAX_DCN_CPU_DEFORM_ROI_POOL_KERNELS_H_

#include "common/deform_roi_pool/problem.h"
#include "cpu/runtime/kernels.h"

namespace jax_dcn {

JAX_DCN_DECLARE_KERNELS(DeformRoIPool, kDeformRoIPool)

}  // namespace jax_dcn

#endif  // JAX_DCN_CPU_DEFORM_ROI_POOL_KERNELS_H_
