// SPDX-License-Identifier: MIT
// The kernels of deformable aggregation. Compiled once for each instruction set.

#include "cpu/deform_aggregate/kernels.h"

#include "cpu/deform_aggregate/backward.h"
#include "cpu/deform_aggregate/forward.h"

namespace jax_dcn::JAX_DCN_ISA {

template <typename T>
constexpr Kernels<DeformAggregate, T> kKernels = {DeformAggregateForward<T>, DeformAggregateJvp<T>,
                                                  DeformAggregateBackward<T>};

const KernelTable<DeformAggregate> kDeformAggregate = {kKernels<float>, kKernels<double>,
                                                       kKernels<BFloat16>, kKernels<Float16>};

}  // namespace jax_dcn::JAX_DCN_ISA
