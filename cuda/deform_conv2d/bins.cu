// SPDX-License-Identifier: MIT
// Kernels that find, for each pixel of x, the samples that read it.

#include "cuda/deform_conv2d/bins.h"
#include "cuda/runtime/launch.cuh"

namespace jax_dcn {
namespace {

constexpr unsigned kBinThreads = 256;
constexpr unsigned kBinWarps = kBinThreads / kWarp;

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

// The sum over the lanes up to this one, of a warp whose threads all take part.
__device__ __forceinline__ int32_t WarpInclusiveSum(int32_t value) {
  const int lane = threadIdx.x % kWarp;
  for (int step = 1; step < kWarp; step *= 2) {
    const int32_t other = __shfl_up_sync(0xffffffffu, value, step);
    if (lane >= step) value += other;
  }
  return value;
}

// One thread serves one bin. The bins of a warp lie side by side.
__global__ void __launch_bounds__(kBinThreads) ReserveBinsKernel(Bins bins) {
  const int64_t bin = int64_t{blockIdx.x} * kBinThreads + threadIdx.x;
  const bool exists = bin < bins.count;
  const int32_t entries = exists ? bins.ends[bin] : 0;
  const int32_t sum = WarpInclusiveSum(entries);
  int32_t begin = 0;
  if (threadIdx.x % kWarp == kWarp - 1) begin = atomicAdd(bins.reserved, sum);
  begin = __shfl_sync(0xffffffffu, begin, kWarp - 1) + sum - entries;
  if (!exists) return;
  bins.begins[bin] = bins.ends[bin] = begin;
  if (entries > kLongBin) bins.long_bins[atomicAdd(bins.long_count, 1)] = bin;
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

// One warp sorts one bin that is not long: an entry's place is the number of smaller ids.
__device__ __forceinline__ void SortBin(const Bins& bins, int64_t bin) {
  if (bin >= bins.count) return;
  const int32_t begin = bins.begins[bin], end = bins.ends[bin];
  if (end - begin > kLongBin) return;
  for (int32_t i = begin + threadIdx.x % kWarp; i < end; i += kWarp) {
    const int32_t id = bins.unsorted[i];
    int32_t place = begin;
    for (int32_t j = begin; j < end; ++j) place += bins.unsorted[j] < id;
    bins.ids[place] = id;
  }
}

// Each thread owns some words of the bitmap. The words of neighbouring threads lie in different
// banks of shared memory.
constexpr int kOwnedWords = 8;
constexpr int kBitmapStride = kOwnedWords + 1;
constexpr int kBitmapWords = kBinThreads * kBitmapStride;
constexpr int kBitmapBits = kBinThreads * kOwnedWords * 32;

// One block sorts one long bin. The ids of a bin differ, so the block marks them in a bitmap, one
// part of all ids after the other, and reads the bitmap in order. The time grows with the number of
// ids, not with the square of the number.
__device__ __forceinline__ void SortLongBins(const Bins& bins) {
  unsigned* const bitmap = SharedMemory<unsigned>();
  int32_t* const warp_sums = reinterpret_cast<int32_t*>(bitmap + kBitmapWords);
  const int thread = threadIdx.x, warp = thread / kWarp, count = *bins.long_count;
  unsigned* const own = bitmap + thread * kBitmapStride;
  for (int i = blockIdx.x; i < count; i += bins.long_blocks()) {
    const int32_t begin = bins.begins[bins.long_bins[i]], end = bins.ends[bins.long_bins[i]];
    int32_t place = begin;
    for (int64_t first = 0; first < bins.segment_entries; first += kBitmapBits) {
      for (int w = 0; w < kOwnedWords; ++w) own[w] = 0;
      __syncthreads();
      for (int32_t e = begin + thread; e < end; e += kBinThreads) {
        const int64_t bit = bins.unsorted[e] - first;
        if (bit < 0 || bit >= kBitmapBits) continue;
        const int word = static_cast<int>(bit / 32);
        // Ids differ, so that adding a bit sets it.
        atomicAdd(&bitmap[word / kOwnedWords * kBitmapStride + word % kOwnedWords],
                  1u << static_cast<int>(bit % 32));
      }
      __syncthreads();
      int32_t marked = 0;
      for (int w = 0; w < kOwnedWords; ++w) marked += __popc(own[w]);
      const int32_t sum = WarpInclusiveSum(marked);
      if (thread % kWarp == kWarp - 1) warp_sums[warp] = sum;
      __syncthreads();
      int32_t own_place = place + sum - marked;
      for (unsigned w = 0; w < kBinWarps; ++w) {
        if (static_cast<int>(w) < warp) own_place += warp_sums[w];
        place += warp_sums[w];
      }
      for (int w = 0; w < kOwnedWords; ++w) {
        const int32_t word_id = static_cast<int32_t>(first) + 32 * (thread * kOwnedWords + w);
        for (unsigned bits = own[w]; bits != 0; bits &= bits - 1) {
          bins.ids[own_place++] = word_id + __ffs(static_cast<int>(bits)) - 1;
        }
      }
    }
  }
}

__global__ void __launch_bounds__(kBinThreads) SortBinsKernel(Bins bins) {
  if (blockIdx.x < bins.long_blocks()) {
    SortLongBins(bins);
  } else {
    const int64_t block = blockIdx.x - bins.long_blocks();
    SortBin(bins, block * kBinWarps + threadIdx.x / kWarp);
  }
}

}  // namespace

template <typename A>
cudaError_t LaunchFillBins(cudaStream_t stream, const DeformConv2dChunk& chunk, const A* offset,
                           const A* mask, ChunkStart start, int32_t* memory) {
  const BinsLayout<A> layout(chunk);
  const Bins bins = layout.In(memory);
  const LaunchShape samples = {BlocksFor(chunk.samples(), kBinThreads), kBinThreads};
  constexpr size_t kBitmapBytes = (kBitmapWords + kBinWarps) * sizeof(unsigned);
  cudaError_t error = cudaMemsetAsync(bins.reserved, 0, 4 * layout.cleared_words(), stream);
  const auto then = [&](auto kernel, const LaunchShape& shape, const auto&... arguments) {
    if (error == cudaSuccess) error = Launch(kernel, shape, stream, arguments...);
  };
  then(CountEntriesKernel<A>, samples, offset, mask, start, bins, chunk);
  then(ReserveBinsKernel, {BlocksFor(layout.bins(), kBinThreads), kBinThreads}, bins);
  then(PlaceEntriesKernel<A>, samples, offset, start, bins, chunk);
  const unsigned sorting = bins.long_blocks() + BlocksFor(layout.bins(), kBinWarps);
  then(SortBinsKernel, {sorting, kBinThreads, kBitmapBytes}, bins);
  return error;
}

template cudaError_t LaunchFillBins(cudaStream_t, const DeformConv2dChunk&, const float*,
                                    const float*, ChunkStart, int32_t*);
template cudaError_t LaunchFillBins(cudaStream_t, const DeformConv2dChunk&, const double*,
                                    const double*, ChunkStart, int32_t*);

}  // namespace jax_dcn
