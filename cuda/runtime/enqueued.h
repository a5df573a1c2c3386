// SPDX-License-Identifier: MIT
// What the calling thread puts on streams. XLA records the work of a handler for later runs, and
// takes a handler without any for an error.
#ifndef JAX_DCN_CUDA_RUNTIME_ENQUEUED_H_
#define JAX_DCN_CUDA_RUNTIME_ENQUEUED_H_

#include <cuda_runtime.h>

#include <cstdint>

namespace jax_dcn {

// Kernels that the thread has launched.
inline thread_local int64_t launched_kernels = 0;

// Launches a kernel that does nothing.
cudaError_t LaunchNothing(cudaStream_t stream);

}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_RUNTIME_ENQUEUED_H_
