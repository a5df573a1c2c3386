// SPDX-License-Identifier: MIT
// The kernels of deformable RoI pooling. Compiled once for each instruction set.

#include "cpu/deform_roi_pool/kernels.h"

#include "cpu/deform_roi_pool/backward.h"
#include "cpu/deform_roi_pool/forward.h"

namespace jax_dcn::JAX_DCN_ISA {

const DeformRoIPoolKernels<float> kDeformRoIPoolFloat = {
    DeformRoIPoolForward<float>, DeformRoIPoolJvp<float>, DeformRoIPoolBackward<float>};
const DeformRoIPoolKernels<double> kDeformRoIPoolDouble = {
    DeformRoIPoolForward<double>, DeformRoIPoolJvp<double>, DeformRoIPoolBackward<double>};
const DeformRoIPoolKernels<BFloat16> kDeformRoIPoolBFloat16 = {
    DeformRoIPoolForward<BFloat16>, DeformRoIPoolJvp<BFloat16>, DeformRoIPoolBackward<BFloat16>};
const DeformRoIPoolKernels<Float16> kDeformRoIPoolFloat16 = {
    DeformRoIPoolForward<Float16>, DeformRoIPoolJvp<Float16>, DeformRoIPoolBackward<Float16>};

}  // namespace jax_dcn::JAX_DCN_ISA
