// SPDX-License-Identifier: MIT
// XLA handlers of deformable convolution on CPU.

#include "common/deform_conv2d/call.h"
#include "cpu/deform_conv2d/kernels.h"
#include "cpu/runtime/handler.h"
#include "cpu/runtime/instruction_set.h"

namespace jax_dcn::deform_conv2d {
namespace {

struct OnCpu {
  using Call = DeformConv2dCall;
  static const auto& Kernels() { return ForInstructionSet(JAX_DCN_KERNELS(kDeformConv2d)); }
};

}  // namespace

std::vector<Target> CpuTargets() { return CpuHandlers<OnCpu>::Targets("jax_dcn_deform_conv2d"); }

}  // namespace jax_dcn::deform_conv2d
