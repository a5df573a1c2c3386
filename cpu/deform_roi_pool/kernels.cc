// SPDX-License-Identifier: MIT
// The kernels of deformable RoI pooling. Compiled once for each instruction set.

#include "cpu/deform_roi_pool/kernels.h"

#include "cpu/deform_roi_pool/backward.h"
#include "cpu/deform_roi_pool/forward.h"

namespace jax_dcn::JAX_DCN_ISA {

template <typename T>
constexpr Kernels<DeformRoIPool, T> kKernels = {DeformRoIPoolForward<T>, DeformRoIPoolJvp<T>,
                                                DeformRoIPoolBackward<T>};

const KernelTable<DeformRoIPool> kDeformRoIPool = {kKernels<float>, kKernels<double>,
                                                   kKernels<BFloat16>, kKernels<Float16>};

}  // namespace jax_dcn::JAX_DCN_ISA
