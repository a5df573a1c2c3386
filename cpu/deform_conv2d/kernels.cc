// SPDX-License-Identifier: MIT
// The kernels of deformable convolution. Compiled once for each instruction set.

#include "cpu/deform_conv2d/kernels.h"

#include "cpu/deform_conv2d/backward.h"
#include "cpu/deform_conv2d/forward.h"

namespace jax_dcn::JAX_DCN_ISA {

template <typename T>
constexpr Kernels<DeformConv2d, T> kKernels = {DeformConv2dForward<T>, DeformConv2dJvp<T>,
                                               DeformConv2dBackward<T>};

const KernelTable<DeformConv2d> kDeformConv2d = {kKernels<float>, kKernels<double>,
                                                 kKernels<BFloat16>, kKernels<Float16>};

}  // namespace jax_dcn::JAX_DCN_ISA
