// SPDX-License-Identifier: MIT
// Fills the bins with the entries of samples. Every sample is located twice: its entries are
// counted first, and put into the bins after these have been given room.
//
// An operator supplies `Samples`:
//   Type                            of coordinates and weights
//   count()                         how many samples there are
//   At(i)                           -> Located, a sample
//   Located::exists                 whether the sample has entries; if not, no other member is read
//   Located::read                   the BilinearSample
//   Located::first_bin              the bin of the pixel that corners count from
//   Located::segment                of the entries
//   Located::first_id               the id of the first corner
//   WeightOf(located)               the factor of the sample's value
#ifndef JAX_DCN_CUDA_SAMPLING_FILL_CUH_
#define JAX_DCN_CUDA_SAMPLING_FILL_CUH_

#include "common/sampling/bilinear.h"
#include "cuda/runtime/launch.cuh"
#include "cuda/runtime/vector.cuh"
#include "cuda/sampling/bins.h"

namespace jax_dcn {
namespace {

constexpr unsigned kFillThreads = 256;

// Calls `f(corner, bin)` for each corner that is a pixel.
template <typename At, typename F>
__device__ __forceinline__ void ForEachEntry(const At& at, const F& f) {
#pragma unroll
  for (int i = 0; i < kCorners; ++i) {
    const int64_t pixel = at.read.corner[i];
    if (pixel != kOutside) f(i, at.first_bin + static_cast<int32_t>(pixel));
  }
}

// Writes the weights of four corners, 16 bytes at a time.
template <typename A>
__device__ __forceinline__ void StoreWeights(A* to, const CornerWeights<A>& weights) {
#pragma unroll
  for (int i = 0; i < kCorners; i += kVector<A>) {
    Unpacked<A> some;
#pragma unroll
    for (int j = 0; j < kVector<A>; ++j) some.value[j] = weights.corner[i + j];
    StoreGlobal(to + i, Pack(some));
  }
}

template <typename Samples>
__global__ void __launch_bounds__(kFillThreads)
    CountEntriesKernel(const Samples samples, const Bins bins) {
  const int32_t i = blockIdx.x * kFillThreads + threadIdx.x;
  if (i >= samples.count()) return;
  const auto at = samples.At(i);
  if (!at.exists) return;
  StoreWeights(bins.WeightsOf<typename Samples::Type>(at.segment) + at.first_id,
               ValueWeights(at.read, samples.WeightOf(at)));
  ForEachEntry(at, [&](int, int32_t bin) { atomicAdd(&bins.ends[bin], 1); });
}

template <typename Samples>
__global__ void __launch_bounds__(kFillThreads)
    PlaceEntriesKernel(const Samples samples, const Bins bins) {
  const int32_t i = blockIdx.x * kFillThreads + threadIdx.x;
  if (i >= samples.count()) return;
  const auto at = samples.At(i);
  if (!at.exists) return;
  ForEachEntry(at, [&](int corner, int32_t bin) {
    bins.unsorted[atomicAdd(&bins.ends[bin], 1)] = at.first_id + corner;
  });
}

template <typename Samples>
cudaError_t FillBins(cudaStream_t stream, const Samples& samples,
                     const BinsLayout<typename Samples::Type>& layout, const Bins& bins) {
  const LaunchShape shape = {BlocksFor(samples.count(), kFillThreads), kFillThreads};
  cudaError_t error = ClearBins(stream, layout, bins);
  if (error == cudaSuccess) {
    error = Launch(CountEntriesKernel<Samples>, shape, stream, samples, bins);
  }
  if (error == cudaSuccess) error = LaunchReserveBins(stream, bins);
  if (error == cudaSuccess) {
    error = Launch(PlaceEntriesKernel<Samples>, shape, stream, samples, bins);
  }
  return error;
}

}  // namespace
}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_SAMPLING_FILL_CUH_
