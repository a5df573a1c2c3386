// SPDX-License-Identifier: MIT
// The gradient of x: every pixel of x adds up the gradients of the columns that were sampled from
// it, each time in the same order. Nothing is scattered, so that no sum depends on chance.

#include <algorithm>

#include "common/sampling/half.h"
#include "cuda/runtime/channels.cuh"
#include "cuda/deform_conv2d/bins.h"
#include "cuda/deform_conv2d/columns.h"
#include "cuda/runtime/launch.cuh"

namespace jax_dcn {
namespace {

// Not tuned: no GPU was at hand. So many blocks leave 64 registers for a thread.
constexpr unsigned kThreads = 256, kBlocks = 4;

// Where the gradient goes: written to `grad_x`, or added to `sums`. The other is null.
template <typename T>
struct GradX {
  T* grad_x;
  typename Accumulator<T>::type* sums;

  template <int kSize, typename A>
  __device__ __forceinline__ void Put(int64_t index, const A (&values)[kSize]) const {
    if (sums == nullptr) {
      Store(grad_x + index, values);
    } else {
#pragma unroll
      for (int i = 0; i < kSize; ++i) sums[index + i] += values[i];
    }
  }
};

// A bin's pixel of x, and the columns that its entries count from.
struct BinPlace {
  int32_t segment, image_in_chunk, group, pixel;

  __device__ BinPlace(const DeformConv2dChunk& chunk, int32_t bin) {
    const int32_t image_pixels = chunk.problem.image_pixels();
    segment = bin / image_pixels;
    pixel = bin - segment * image_pixels;
    image_in_chunk = segment / chunk.groups();
    group = segment - image_in_chunk * chunk.groups();
  }
};

// sums += Σ w g over the entries from `first` in steps of `step`, for channels from `channel`.
template <int kSize, typename T, typename A>
__device__ __forceinline__ void AddEntries(const T* grad_columns, const Bins& bins,
                                           const BinPlace& place, const DeformConv2dChunk& chunk,
                                           int32_t channel, int32_t first, int32_t end, int step,
                                           A (&sums)[kSize]) {
  const A* const weights = bins.WeightsOf<A>(place.segment);
  const int32_t group_channels = chunk.problem.group_channels();
  const int32_t first_row = place.image_in_chunk * chunk.pixels * chunk.taps();
  const T* const columns = grad_columns + chunk.ColumnIndex(first_row, channel);
#pragma unroll 4
  for (int32_t e = first; e < end; e += step) {
    const int32_t id = bins.ids[e];
    const A weight = weights[id];
    const auto g = Load<kSize>(columns + int64_t{id / kCorners} * group_channels);
#pragma unroll
    for (int i = 0; i < kSize; ++i) sums[i] += weight * g[i];
  }
}

// Some lanes for each bin, and for as many channels as they hold; the blocks along y share the
// others.
template <typename T, int kSize>
__global__ void __launch_bounds__(kThreads, kBlocks)
    DeformConv2dSumBinsKernel(const T* __restrict__ grad_columns, const Bins bins, ChunkStart start,
                              const GradX<T> grad_x, const DeformConv2dChunk chunk) {
  using A = typename Accumulator<T>::type;
  const int64_t bin = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (bin >= bins.count) return;
  const BinPlace place(chunk, bin);
  const int32_t image = start[0] + place.image_in_chunk;
  const int32_t begin = bins.begins[bin], end = bins.ends[bin];
  if (image >= chunk.problem.batch || end - begin > kLongBin) return;
  const int32_t group_channels = chunk.problem.offset_group_channels();
  const int64_t pixel = image * chunk.problem.image_pixels() + place.pixel;
  for (int c = (blockIdx.y * blockDim.x + threadIdx.x) * kSize; c < group_channels;
       c += gridDim.y * blockDim.x * kSize) {
    const int32_t channel = place.group * group_channels + c;
    A sums[kSize] = {};
    AddEntries(grad_columns, bins, place, chunk, channel, begin, end, 1, sums);
    grad_x.Put(pixel * chunk.problem.channels + channel, sums);
  }
}

// A block for each long bin: its rows of lanes share the entries, and the first adds up the sums.
template <typename T, int kSize>
__global__ void __launch_bounds__(kThreads, kBlocks)
    DeformConv2dSumLongBinsKernel(const T* __restrict__ grad_columns, const Bins bins,
                                  ChunkStart start, const GradX<T> grad_x,
                                  const DeformConv2dChunk chunk) {
  using A = typename Accumulator<T>::type;
  A* const shared = SharedMemory<A>();  // [rows, lanes, kSize]
  const int32_t group_channels = chunk.problem.offset_group_channels();
  const int rows = blockDim.y, row = threadIdx.y, lanes = blockDim.x, lane = threadIdx.x;
  for (int i = blockIdx.x; i < *bins.long_count; i += gridDim.x) {
    const int32_t bin = bins.long_bins[i];
    const BinPlace place(chunk, bin);
    const int64_t image = start[0] + place.image_in_chunk;
    const int64_t pixel = image * chunk.problem.image_pixels() + place.pixel;
    for (int first = 0; first < group_channels; first += lanes * kSize) {
      const int c = first + lane * kSize, channel = place.group * group_channels + c;
      A sums[kSize] = {};
      if (c < group_channels) {
        AddEntries(grad_columns, bins, place, chunk, channel, bins.begins[bin] + row,
                   bins.ends[bin], rows, sums);
      }
      A* const own = shared + (row * lanes + lane) * kSize;
      for (int k = 0; k < kSize; ++k) own[k] = sums[k];
      __syncthreads();
      if (row == 0 && c < group_channels) {
        for (int r = 1; r < rows; ++r) {
          for (int k = 0; k < kSize; ++k) sums[k] += own[r * lanes * kSize + k];
        }
        grad_x.Put(pixel * chunk.problem.channels + channel, sums);
      }
      __syncthreads();
    }
  }
}

template <typename T, int kSize>
cudaError_t SumBins(cudaStream_t stream, const DeformConv2dChunk& chunk, const T* grad_columns,
                    const Bins& bins, ChunkStart start, const GradX<T>& grad_x) {
  const int64_t vectors = chunk.problem.offset_group_channels() / kSize;
  const unsigned lanes = LanesFor(vectors), rows = kThreads / lanes;
  const dim3 block(lanes, rows);
  const dim3 grid(BlocksFor(bins.count, rows), std::min(BlocksFor(vectors, lanes), 64u));
  constexpr size_t kSharedBytes = kThreads * kSize * sizeof(typename Accumulator<T>::type);
  cudaError_t error = Launch(DeformConv2dSumBinsKernel<T, kSize>, {grid, block}, stream,
                             grad_columns, bins, start, grad_x, chunk);
  if (error != cudaSuccess || bins.long_capacity == 0) return error;
  return Launch(DeformConv2dSumLongBinsKernel<T, kSize>, {bins.long_blocks(), block, kSharedBytes},
                stream, grad_columns, bins, start, grad_x, chunk);
}

}  // namespace

template <typename A>
int64_t DeformConv2dGatherWords(const DeformConv2dChunk& chunk) {
  return BinsLayout<A>(chunk).words();
}

template <typename T>
cudaError_t LaunchDeformConv2dGatherGradX(cudaStream_t stream, const DeformConv2dChunk& chunk,
                                          const DeformConv2dPrimals<T>& primals, ChunkStart start,
                                          const T* grad_columns, int32_t* scratch, T* grad_x,
                                          typename Accumulator<T>::type* sums) {
  using A = typename Accumulator<T>::type;
  const BinsLayout<A> layout(chunk);
  if (layout.bins() == 0 || chunk.samples() == 0) return cudaSuccess;
  const cudaError_t error =
      LaunchFillBins(stream, chunk, primals.offset, primals.mask, start, scratch);
  if (error != cudaSuccess) return error;
  const GradX<T> target = {grad_x, sums};
  const bool vectors = AreVectors<T>(chunk.problem, {grad_columns, grad_x, sums});
  const auto sum = vectors ? SumBins<T, kVector<T>> : SumBins<T, 1>;
  return sum(stream, chunk, grad_columns, layout.In(scratch), start, target);
}

#define JAX_DCN_INSTANTIATE(T)                                                                     \
  template cudaError_t LaunchDeformConv2dGatherGradX(                                              \
      cudaStream_t, const DeformConv2dChunk&, const DeformConv2dPrimals<T>&, ChunkStart, const T*, \
      int32_t*, T*, Accumulator<T>::type*);
JAX_DCN_INSTANTIATE(float)
JAX_DCN_INSTANTIATE(double)
JAX_DCN_INSTANTIATE(BFloat16)
JAX_DCN_INSTANTIATE(Float16)
template int64_t DeformConv2dGatherWords<float>(const DeformConv2dChunk&);
template int64_t DeformConv2dGatherWords<double>(const DeformConv2dChunk&);

}  // namespace jax_dcn
