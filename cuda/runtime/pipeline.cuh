// SPDX-License-Identifier: MIT
// The loop of the fused kernels: a sum of matrix products, one factor of which is sampled.
#ifndef JAX_DCN_CUDA_RUNTIME_PIPELINE_CUH_
#define JAX_DCN_CUDA_RUNTIME_PIPELINE_CUH_

#include <cuda_runtime.h>

#include "cuda/runtime/instructions.cuh"

namespace jax_dcn {

constexpr int kBuffers = 2;  // of sampled factors
constexpr int kStages = 3;   // of copied factors, which take longer to arrive

// product += Σ over the steps of a thread block's work. Each step, while its product is computed,
// the next one's corners are on their way to registers, and the other factor of the one after to
// shared memory. A block has
//   AllSteps()                      its steps, in order: done(), Advance()
//   Copy(step, stage)               starts to copy the factor that is not sampled
//   Locate(step)                    locates the step's samples, unless they are located already
//   Read(step)                      reads the thread's corners
//   Write(step, corners, buffer)    interpolates them
//   Multiply(product, buffer, stage)
// Afterwards all threads have done with shared memory.
template <typename Block, typename Product>
__device__ __forceinline__ void SumProducts(Block& block, Product& product) {
  auto copied = block.AllSteps();
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (!copied.done()) block.Copy(copied, stage), copied.Advance();
    CommitCopies();
  }
  auto next = block.AllSteps();
  if (!next.done()) {
    block.Locate(next);
    block.Write(next, block.Read(next), 0);
  }
  for (int buffer = 0, stage = 0; !next.done(); buffer ^= 1, stage = (stage + 1) % kStages) {
    WaitForCopies<kStages - 2>();
    // Now this step's factors are complete, and nobody reads those of the step before.
    __syncthreads();
    if (!copied.done()) block.Copy(copied, (stage + kStages - 1) % kStages), copied.Advance();
    CommitCopies();

    next.Advance();
    decltype(block.Read(next)) corners;
    if (!next.done()) {
      block.Locate(next);
      corners = block.Read(next);
    }
    block.Multiply(product, buffer, stage);
    if (!next.done()) block.Write(next, corners, buffer ^ 1);
  }
  WaitForCopies<0>();
  __syncthreads();
}

}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_RUNTIME_PIPELINE_CUH_
