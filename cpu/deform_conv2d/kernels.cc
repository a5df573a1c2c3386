// SPDX-License-Identifier: MIT
// The kernels of deformable convolution. Compiled once for each instruction set.

#include "cpu/deform_conv2d/kernels.h"

#include "cpu/deform_conv2d/backward.h"
#include "cpu/deform_conv2d/forward.h"

namespace jax_dcn::JAX_DCN_ISA {

const DeformConv2dKernels<float> kDeformConv2dFloat = {
    DeformConv2dForward<float>, DeformConv2dJvp<float>, DeformConv2dBackward<float>};
const DeformConv2dKernels<double> kDeformConv2dDouble = {
    DeformConv2dForward<double>, DeformConv2dJvp<double>, DeformConv2dBackward<double>};
const DeformConv2dKernels<BFloat16> kDeformConv2dBFloat16 = {
    DeformConv2dForward<BFloat16>, DeformConv2dJvp<BFloat16>, DeformConv2dBackward<BFloat16>};
const DeformConv2dKernels<Float16> kDeformConv2dFloat16 = {
    DeformConv2dForward<Float16>, DeformConv2dJvp<Float16>, DeformConv2dBackward<Float16>};

}  // namespace jax_dcn::JAX_DCN_ISA
