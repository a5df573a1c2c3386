// SPDX-License-Identifier: MIT
// The loops of the fused kernels: a sum of matrix products over the steps of a thread block.
//
// A block has
//   AllSteps()                      its steps, in order: done(), Advance()
//   Copy(step, stage)               starts to copy the step's factors that are not sampled
// and, where a factor is sampled,
//   Locate(step)                    locates the step's samples, unless they are located already
//   Read(step)                      reads the thread's corners
//   Write(step, corners, buffer)    interpolates the corners
//   Multiply(product, buffer, stage)
#ifndef JAX_DCN_CUDA_RUNTIME_PIPELINE_CUH_
#define JAX_DCN_CUDA_RUNTIME_PIPELINE_CUH_

#include <cuda_runtime.h>

#include "cuda/runtime/instructions.cuh"

namespace jax_dcn {

constexpr int kBuffers = 2;  // of sampled factors
constexpr int kStages = 3;   // of copied factors, which take longer to arrive

// The copies of a block's factors to shared memory, two steps ahead of their use.
template <typename Block>
class Copies {
 public:
  __device__ __forceinline__ explicit Copies(const Block& block)
      : block_(block), step_(block.AllSteps()) {
    for (int stage = 0; stage < kStages - 1; ++stage) CopyTo(stage);
  }

  // Waits for the next step's factors, and returns their stage. All threads of the block call, and
  // no thread reads the factors of the step before afterwards: another copy takes their place.
  __device__ __forceinline__ int Next() {
    WaitForCopies<kStages - 2>();
    __syncthreads();
    const int stage = stage_, free = stage == 0 ? kStages - 1 : stage - 1;
    CopyTo(free);
    stage_ = stage == kStages - 1 ? 0 : stage + 1;
    return stage;
  }

 private:
  __device__ __forceinline__ void CopyTo(int stage) {
    if (!step_.done()) {
      block_.Copy(step_, stage);
      step_.Advance();
    }
    CommitCopies();
  }

  const Block& block_;
  decltype(block_.AllSteps()) step_;
  int stage_ = 0;
};

// product += Σ over the steps. While a step's product is computed, the next step's corners are on
// their way to registers. Afterwards no thread uses shared memory any more.
template <typename Block, typename Product>
__device__ __forceinline__ void SumProducts(Block& block, Product& product) {
  Copies<Block> copies(block);
  auto next = block.AllSteps();
  if (!next.done()) {
    block.Locate(next);
    block.Write(next, block.Read(next), 0);
  }
  for (int buffer = 0; !next.done(); buffer ^= 1) {
    const int stage = copies.Next();  // the sampled factor is complete, too
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
