// SPDX-License-Identifier: MIT
// XLA handlers of deformable aggregation on CPU.

#include "common/deform_aggregate/call.h"
#include "cpu/deform_aggregate/kernels.h"
#include "cpu/runtime/handler.h"
#include "cpu/runtime/instruction_set.h"

namespace jax_dcn::deform_aggregate {
namespace {

struct OnCpu {
  using Call = DeformAggregateCall;
  static const auto& Kernels() { return ForInstructionSet(JAX_DCN_KERNELS(kDeformAggregate)); }
};

}  // namespace

std::vector<Target> CpuTargets() { return CpuHandlers<OnCpu>::Targets("jax_dcn_deform_aggregate"); }

}  // namespace jax_dcn::deform_aggregate
