// SPDX-License-Identifier: MIT
// What the handlers of every operator on CUDA share: an operator supplies a call, which reads and
// checks the arguments, and launches.
#ifndef JAX_DCN_CUDA_RUNTIME_HANDLER_H_
#define JAX_DCN_CUDA_RUNTIME_HANDLER_H_

#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "common/ffi/handler.h"
#include "cuda/runtime/cursor.h"
#include "cuda/runtime/enqueued.h"

namespace jax_dcn {

// Inside a handler: the error of a launch becomes the error of the call.
inline void ExpectLaunched(cudaError_t error) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

// Inside a handler: `reason` is why a kernel cannot compute the call, or null where a kernel can.
inline void ExpectNoReason(const char* reason) {
  if (reason != nullptr) throw Refusal(reason);
}

// Kernels that move 16 bytes at a time need arrays that start at a multiple of 16 bytes, as
// XLA's arrays do.
inline void ExpectAligned(std::initializer_list<const void*> arrays) {
  for (const void* array : arrays) {
    if (reinterpret_cast<uintptr_t>(array) % 16 != 0) throw Refusal("an array is not aligned");
  }
}

// The Read of an operator whose call takes all its arrays from a cursor.
template <typename Call>
struct ReadByCursor {
  static Call Read(const ffi::RemainingArgs& arguments, const ffi::RemainingRets& results,
                   const ffi::Dictionary& attributes) {
    Cursor cursor(arguments, results);
    const Call call(cursor, attributes);
    cursor.ExpectEnd();
    return call;
  }
};

// The handler of
//   Op::Read(arguments, results, attributes)   the call, with a dtype()
//   Op::Run<T>(stream, call)                   launches the kernels of T, and returns their error
template <typename Op>
ffi::Error CudaHandler(cudaStream_t stream, ffi::RemainingArgs arguments,
                       ffi::RemainingRets results, ffi::Dictionary attributes) {
  return Guarded([&] {
    const auto call = Op::Read(arguments, results, attributes);
    const int64_t launched_before = launched_kernels;
    DispatchFloat(call.dtype(), [&](auto type) {
      ExpectLaunched(Op::template Run<decltype(type)>(stream, call));
    });
    if (launched_kernels == launched_before) ExpectLaunched(LaunchNothing(stream));
  });
}

inline auto CudaBinding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::PlatformStream<cudaStream_t>>()
      .RemainingArgs()
      .RemainingRets()
      .Attrs();
}

// Defines `symbol`. A handler that only launches can be part of a CUDA graph.
#define JAX_DCN_DEFINE_CUDA_HANDLER(symbol, Op)                         \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(symbol, CudaHandler<Op>, CudaBinding(), \
                                {ffi::Traits::kCmdBufferCompatible})

}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_RUNTIME_HANDLER_H_
