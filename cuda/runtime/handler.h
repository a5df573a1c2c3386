// SPDX-License-Identifier: MIT
// What the handlers of every operator on CUDA share.
#ifndef JAX_DCN_CUDA_RUNTIME_HANDLER_H_
#define JAX_DCN_CUDA_RUNTIME_HANDLER_H_

#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "common/ffi/handler.h"

namespace jax_dcn {

using Stream = ffi::PlatformStream<cudaStream_t>;

// Inside a handler: what a launch reports becomes the error of the call.
inline void ExpectLaunched(cudaError_t error) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

// Kernels that move 16 bytes at a time need arrays that start at a multiple of it, as XLA's do.
inline void ExpectAligned(std::initializer_list<const void*> arrays) {
  for (const void* array : arrays) {
    if (reinterpret_cast<uintptr_t>(array) % 16 != 0) throw Refusal("an array is not aligned");
  }
}

}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_RUNTIME_HANDLER_H_
