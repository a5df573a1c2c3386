// SPDX-License-Identifier: MIT
// The kernels of deformable convolution on CPU.
#ifndef JAX_DCN_CPU_DEFORM_CONV2D_KERNELS_H_
#define JAX_DCN_CPU_DEFORM_CONV2D_KERNELS_H_

#include "common/deform_conv2d/problem.h"
#include "cpu/runtime/kernels.h"

namespace jax_dcn {

JAX_DCN_DECLARE_KERNELS(DeformConv2d, kDeformConv2d)

}  // namespace jax_dcn

#endif  // JAX_DCN_CPU_DEFORM_CONV2D_KERNELS_H_
