// SPDX-License-Identifier: MIT
// XLA handlers of deformable RoI pooling on CPU.

#include "common/deform_roi_pool/call.h"
#include "cpu/deform_roi_pool/kernels.h"
#include "cpu/runtime/handler.h"
#include "cpu/runtime/instruction_set.h"

namespace jax_dcn::deform_roi_pool {
namespace {

struct OnCpu {
  using Call = DeformRoIPoolCall;
  static const auto& Kernels() { return ForInstructionSet(JAX_DCN_KERNELS(kDeformRoIPool)); }
};

}  // namespace

std::vector<Target> CpuTargets() { return CpuHandlers<OnCpu>::Targets("jax_dcn_deform_roi_pool"); }

}  // namespace jax_dcn::deform_roi_pool
