// SPDX-License-Identifier: MIT
// The kernels of deformable aggregation on CPU.
#ifndef JAX_DCN_CPU_DEFORM_AGGREGATE_KERNELS_H_
#define JAX_DCN_CPU_DEFORM_AGGREGATE_KERNELS_H_

#include "common/deform_aggregate/problem.h"
#include "cpu/runtime/kernels.h"

namespace jax_dcn {

JAX_DCN_DECLARE_KERNELS(DeformAggregate, kDeformAggregate)

}  // namespace jax_dcn

#endif  // JAX_DCN_CPU_DEFORM_AGGREGATE_KERNELS_H_
