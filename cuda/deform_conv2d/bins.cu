// SPDX-License-Identifier: MIT
// Kernels that put the samples of a chunk into bins.

#include "cuda/deform_conv2d/bins.h"
#include "cuda/runtime/launch.cuh"

namespace jax_dcn {
namespace {

constexpr unsigned kBinThreads = 256;

// The entries of one sample.
template <typename A>
struct SampleEntries {
  BilinearSample<A> read;
  int32_t segment;
  int32_t first_bin;  // of the segment
  int32_t first_id;

  __device__ SampleEntries(const DeformConv2dChunk& chunk, const ChunkSample& sample,
                           const A* offset)
      : read(sample.Read(chunk, offset)),
        segment(sample.image_in_chunk * chunk.sizes.offset_groups + sample.group),
        first_bin(segment * chunk.sizes.image_pixels()),
        first_id(kCorners * (sample.pixel_in_chunk * chunk.sizes.taps + sample.tap)) {}

  __device__ int32_t BinOf(int corner) const {
    return first_bin + static_cast<int32_t>(read.corner[corner]);
  }
};

template <typename A>
__global__ void __launch_bounds__(kBinThreads)
    CountEntriesKernel(const A* offset, const A* mask, ChunkStart start, Bins bins,
                       const DeformConv2dChunk chunk) {
  const int32_t index = blockIdx.x * kBinThreads + threadIdx.x;
  if (index >= chunk.samples()) return;
  const ChunkSample sample(chunk, start, index);
  if (!sample.Exists(chunk)) return;
  const SampleEntries<A> entries(chunk, sample, offset);
  const CornerWeights<A> weights = ValueWeights(entries.read, sample.Mask(chunk, mask));
  A* const to = bins.WeightsOf<A>(entries.segment) + entries.first_id;
  for (int i = 0; i < kCorners; ++i) {
    to[i] = weights.corner[i];
    if (entries.read.corner[i] != kOutside) atomicAdd(&bins.ends[entries.BinOf(i)], 1);
  }
}

template <typename A>
__global__ void __launch_bounds__(kBinThreads)
    PlaceEntriesKernel(const A* offset, ChunkStart start, Bins bins,
                       const DeformConv2dChunk chunk) {
  const int32_t index = blockIdx.x * kBinThreads + threadIdx.x;
  if (index >= chunk.samples()) return;
  const ChunkSample sample(chunk, start, index);
  if (!sample.Exists(chunk)) return;
  const SampleEntries<A> entries(chunk, sample, offset);
  for (int i = 0; i < kCorners; ++i) {
    if (entries.read.corner[i] == kOutside) continue;
    bins.unsorted[atomicAdd(&bins.ends[entries.BinOf(i)], 1)] = entries.first_id + i;
  }
}

}  // namespace

template <typename A>
cudaError_t LaunchFillBins(cudaStream_t stream, const DeformConv2dChunk& chunk, const A* offset,
                           const A* mask, ChunkStart start, int32_t* memory) {
  const BinsLayout<A> layout = ChunkBins<A>(chunk);
  const Bins bins = layout.In(memory);
  const LaunchShape samples = {BlocksFor(chunk.samples(), kBinThreads), kBinThreads};
  cudaError_t error = ClearBins(stream, layout, bins);
  const auto then = [&](const auto& step) {
    if (error == cudaSuccess) error = step();
  };
  then([&] {
    return Launch(CountEntriesKernel<A>, samples, stream, offset, mask, start, bins, chunk);
  });
  then([&] { return LaunchReserveBins(stream, bins); });
  then([&] { return Launch(PlaceEntriesKernel<A>, samples, stream, offset, start, bins, chunk); });
  then([&] { return LaunchSortBins(stream, bins); });
  return error;
}

template cudaError_t LaunchFillBins(cudaStream_t, const DeformConv2dChunk&, const float*,
                                    const float*, ChunkStart, int32_t*);
template cudaError_t LaunchFillBins(cudaStream_t, const DeformConv2dChunk&, const double*,
                                    const double*, ChunkStart, int32_t*);

}  // namespace jax_dcn
