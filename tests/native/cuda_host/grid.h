// SPDX-License-Identifier: MIT
// Runs a kernel's grid on one thread of the host. Blocks run one after another; the threads of a
// block are fibers, which run until they wait for each other, in an order drawn anew each time:
// what a missing barrier leaves to chance comes out differently from run to run.
#ifndef JAX_DCN_TESTS_CUDA_HOST_GRID_H_
#define JAX_DCN_TESTS_CUDA_HOST_GRID_H_

#include <cstddef>
#include <cstdint>

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Of the thread that runs.
extern thread_local uint3 threadIdx, blockIdx;
extern thread_local dim3 blockDim, gridDim;

namespace cuda_host {

constexpr int kWarp = 32;
constexpr size_t kLargestValue = 32;  // bytes that a lane can give away at once

// Runs `body(context)` once for each thread of the grid. Returns what went wrong, or null. Threads
// that wait for others that never come are an error, and so are threads of a block that meet at
// different barriers.
const char* RunGrid(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(const void*),
                    const void* context);

// Waits for the other threads of the block that have not ended. `line` names the barrier.
void WaitForBlock(int line);

// The values that the lanes in `mask` gave; those of other lanes are NaN. Valid until the next
// exchange.
struct Values {
  alignas(16) unsigned char of_lane[kWarp][kLargestValue];
};

// Gives `value` to the other lanes in `mask`, and waits for theirs. All must come by the
// instruction at `line`, but for __syncwarp, whose lanes may come from different places.
const Values& Exchange(unsigned mask, const void* value, size_t bytes, int line);
constexpr int kAnywhere = 0;

int Lane();

// Tells that a lane moves 4, 8 or 16 bytes of shared memory by the instruction at `line`. The n-th
// time of a lane is taken for the same time as the n-th of the other lanes of its warp.
void MoveShared(const void* shared, size_t bytes, int line);

// Counts the conflicts of what the lanes of a warp move by one instruction; null where a lane moves
// nothing. Lanes that move 128 bytes are served at once. Conflicts are the accesses beyond the
// first one to the same banks.
void CountBankConflicts(const void* const* moved_by_lanes, size_t bytes);

// The block's dynamic shared memory; NaNs when the block starts.
void* SharedMemory();

// Asynchronous copies of the thread: made when they are asked for or, by chance, as late as they
// may.
void CopyLater(void* to, const void* from, size_t bytes);
void CommitCopies();
void WaitForCopies(size_t groups_left);

// True or false, by chance: for a thread of a grid, and outside of grids.
bool Toss();
bool TossOnHost();

// Marks the running block as failed; `why` outlives it.
void Fail(const char* why);

}  // namespace cuda_host

#endif  // JAX_DCN_TESTS_CUDA_HOST_GRID_H_
