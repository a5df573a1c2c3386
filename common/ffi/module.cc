// SPDX-License-Identifier: MIT
// The Python module JAX_DCN_MODULE, which hands the targets of the library JAX_DCN_LIBRARY to JAX.
// No other file includes pybind11.

#include <pybind11/pybind11.h>

#include "common/ffi/library.h"

namespace jax_dcn {

const Library& JAX_DCN_LIBRARY();

}  // namespace jax_dcn

PYBIND11_MODULE(JAX_DCN_MODULE, m, pybind11::mod_gil_not_used()) {
  const jax_dcn::Library& library = jax_dcn::JAX_DCN_LIBRARY();
  pybind11::dict targets;
  for (const jax_dcn::Target& target : library.targets) {
    targets[target.name.c_str()] = pybind11::capsule(reinterpret_cast<void*>(target.handler));
  }
  m.attr("TARGETS") = targets;
  m.attr("FFI_VERSION") = pybind11::make_tuple(library.ffi_version[0], library.ffi_version[1]);
  m.attr("DESCRIPTION") = library.description;
}
