// SPDX-License-Identifier: MIT
// The Python module jax_dcn._cpu: a list of the CPU's XLA targets.

#include <pybind11/pybind11.h>

#include "common/capsule.h"
#include "cpu/deform_conv2d.h"
#include "cpu/instruction_set.h"

PYBIND11_MODULE(_cpu, m) {
  pybind11::dict targets;
  targets["jax_dcn_deform_conv2d_forward"] = jax_dcn::Capsule(jax_dcn::DeformConv2dForward);
  targets["jax_dcn_deform_conv2d_jvp"] = jax_dcn::Capsule(jax_dcn::DeformConv2dJvp);
  targets["jax_dcn_deform_conv2d_backward"] = jax_dcn::Capsule(jax_dcn::DeformConv2dBackward);
  m.attr("TARGETS") = targets;
  m.attr("FFI_VERSION") = jax_dcn::FfiVersion();
  m.def("describe", [] { return jax_dcn::Name(jax_dcn::CurrentInstructionSet()); });
}
