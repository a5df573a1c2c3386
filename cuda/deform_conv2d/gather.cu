// SPDX-License-Identifier: MIT
// The gradient of x: every pixel of x adds up the gradients of the columns that read the pixel,
// always in the same order. No thread scatters, so no sum depends on chance.

#include <algorithm>

#include "cuda/deform_conv2d/bins.h"
#include "cuda/deform_conv2d/block_samples.cuh"
#include "cuda/deform_conv2d/columns.h"
#include "cuda/runtime/launch.cuh"
#include "cuda/runtime/vector.cuh"

namespace jax_dcn {
namespace {

// Blocks for each multiprocessor, which leaves 64 registers for a thread.
constexpr unsigned kBlocks = 4;

// The destination of the gradient: `grad_x` is written, or `sums` is added to. The other is null.
template <typename T>
struct GradX {
  T* grad_x;
  Sum<T>* sums;

  template <int kSize>
  __device__ __forceinline__ void Put(int64_t index, const Unpacked<T, kSize>& values) const {
    if (sums == nullptr) {
      StoreGlobal(grad_x + index, Pack(values));
    } else {
#pragma unroll
      for (int i = 0; i < kSize; ++i) sums[index + i] += values.value[i];
    }
  }
};

// A bin's pixel of x, and the columns that its entries count from.
struct BinPlace {
  int32_t segment, image_in_chunk, group, pixel;

  __device__ __forceinline__ BinPlace(const DeformConv2dChunk& chunk, int32_t bin) {
    segment = chunk.sizes.by_image_pixels.Quotient(bin);
    pixel = chunk.sizes.by_image_pixels.Remainder(bin, segment);
    image_in_chunk = chunk.sizes.by_offset_groups.Quotient(segment);
    group = chunk.sizes.by_offset_groups.Remainder(segment, image_in_chunk);
  }

  // The index of the pixel's first channel in x.
  __device__ __forceinline__ int64_t FirstChannel(const DeformConv2dChunk& chunk,
                                                  ChunkStart start) const {
    const int64_t image = start[0] + image_in_chunk;
    return (image * chunk.sizes.image_pixels() + pixel) * chunk.sizes.channels;
  }
};

// sum += Σ w g over the entries from `first` in steps of `step`, for channels from `channel`.
template <int kSize, typename T>
__device__ __forceinline__ void AddEntries(const T* grad_columns, const Bins& bins,
                                           const BinPlace& place, const DeformConv2dChunk& chunk,
                                           int32_t channel, int32_t first, int32_t end, int step,
                                           Unpacked<T, kSize>& sum) {
  const Sum<T>* const weights = bins.WeightsOf<Sum<T>>(place.segment);
  const int32_t row_bytes = chunk.sizes.group_channels * sizeof(T);
  const int32_t first_row = place.image_in_chunk * chunk.pixels * chunk.sizes.taps;
  const T* const columns = grad_columns + chunk.ColumnIndex(first_row, channel);
#pragma unroll 4
  for (int32_t e = first; e < end; e += step) {
    const int32_t id = bins.ids[e];
    const Sum<T> weight = weights[id];
    const T* const column = RowsAfter(columns, id / kCorners, row_bytes);
    const Unpacked<T, kSize> g = Unpack(LoadConstant<kSize>(column));
#pragma unroll
    for (int i = 0; i < kSize; ++i) sum.value[i] += weight * g.value[i];
  }
}

// Some lanes serve one bin, and as many channels as the lanes hold. The blocks along y share the
// other channels.
template <typename T, int kSize>
__global__ void __launch_bounds__(kThreads, kBlocks)
    DeformConv2dSumBinsKernel(const T* grad_columns, const Bins bins, ChunkStart start,
                              const GradX<T> grad_x, const DeformConv2dChunk chunk) {
  const int64_t bin = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (bin >= bins.count) return;
  const BinPlace place(chunk, bin);
  const int32_t begin = bins.begins[bin], end = bins.ends[bin];
  const bool exists = start[0] + place.image_in_chunk < chunk.sizes.batch;
  if (!exists || end - begin > kLongBin) return;
  const int32_t group_channels = chunk.sizes.offset_group_channels;
  const int64_t first_channel = place.FirstChannel(chunk, start);
  for (int c = (blockIdx.y * blockDim.x + threadIdx.x) * kSize; c < group_channels;
       c += gridDim.y * blockDim.x * kSize) {
    const int32_t channel = place.group * group_channels + c;
    Unpacked<T, kSize> sum = {};
    AddEntries(grad_columns, bins, place, chunk, channel, begin, end, 1, sum);
    grad_x.Put(first_channel + channel, sum);
  }
}

// One block serves one long bin: its rows of lanes share the entries, and the first row adds up the
// sums.
template <typename T, int kSize>
__global__ void __launch_bounds__(kThreads, kBlocks)
    DeformConv2dSumLongBinsKernel(const T* grad_columns, const Bins bins, ChunkStart start,
                                  const GradX<T> grad_x, const DeformConv2dChunk chunk) {
  using Sums = Unpacked<T, kSize>;
  Sums* const shared = SharedMemory<Sums>();  // [rows, lanes]
  const int32_t group_channels = chunk.sizes.offset_group_channels;
  const int rows = blockDim.y, row = threadIdx.y, lanes = blockDim.x, lane = threadIdx.x;
  for (int i = blockIdx.x; i < *bins.long_count; i += gridDim.x) {
    const int32_t bin = bins.long_bins[i];
    const BinPlace place(chunk, bin);
    for (int first = 0; first < group_channels; first += lanes * kSize) {
      const int c = first + lane * kSize, channel = place.group * group_channels + c;
      Sums sum = {};
      if (c < group_channels) {
        AddEntries(grad_columns, bins, place, chunk, channel, bins.begins[bin] + row,
                   bins.ends[bin], rows, sum);
      }
      shared[row * lanes + lane] = sum;
      __syncthreads();
      if (row == 0 && c < group_channels) {
        for (int r = 1; r < rows; ++r) {
#pragma unroll
          for (int k = 0; k < kSize; ++k) sum.value[k] += shared[r * lanes + lane].value[k];
        }
        grad_x.Put(place.FirstChannel(chunk, start) + channel, sum);
      }
      __syncthreads();
    }
  }
}

template <typename T, int kSize>
cudaError_t SumBins(cudaStream_t stream, const DeformConv2dChunk& chunk, const T* grad_columns,
                    const Bins& bins, ChunkStart start, const GradX<T>& grad_x) {
  const int64_t vectors = chunk.sizes.offset_group_channels / kSize;
  const unsigned lanes = LanesFor(vectors), rows = kThreads / lanes;
  const dim3 block(lanes, rows);
  const dim3 grid(BlocksFor(bins.count, rows), std::min(BlocksFor(vectors, lanes), 64u));
  constexpr size_t kSharedBytes = kThreads * sizeof(Unpacked<T, kSize>);
  cudaError_t error = Launch(DeformConv2dSumBinsKernel<T, kSize>, {grid, block}, stream,
                             grad_columns, bins, start, grad_x, chunk);
  if (error != cudaSuccess || bins.long_capacity == 0) return error;
  return Launch(DeformConv2dSumLongBinsKernel<T, kSize>, {bins.long_blocks(), block, kSharedBytes},
                stream, grad_columns, bins, start, grad_x, chunk);
}

}  // namespace

template <typename T>
cudaError_t LaunchDeformConv2dGatherGradX(cudaStream_t stream, const DeformConv2dChunk& chunk,
                                          const DeformConv2dPrimals<T>& primals, ChunkStart start,
                                          const T* grad_columns, int32_t* scratch, T* grad_x,
                                          typename Accumulator<T>::type* sums) {
  const BinsLayout<Sum<T>> layout(chunk);
  if (layout.bins() == 0 || chunk.samples() == 0) return cudaSuccess;
  const cudaError_t error =
      LaunchFillBins(stream, chunk, primals.offset, primals.mask, start, scratch);
  if (error != cudaSuccess) return error;
  const GradX<T> target = {grad_x, sums};
  const bool vectors = AreVectors<T>(chunk.sizes, {grad_columns, grad_x, sums});
  return WithVectorSize<T>(vectors, [&](auto size) {
    return SumBins<T, size>(stream, chunk, grad_columns, layout.In(scratch), start, target);
  });
}

#define JAX_DCN_INSTANTIATE(T)                                                                     \
  template cudaError_t LaunchDeformConv2dGatherGradX(                                              \
      cudaStream_t, const DeformConv2dChunk&, const DeformConv2dPrimals<T>&, ChunkStart, const T*, \
      int32_t*, T*, Accumulator<T>::type*);
JAX_DCN_INSTANTIATE(float)
JAX_DCN_INSTANTIATE(double)
JAX_DCN_INSTANTIATE(BFloat16)
JAX_DCN_INSTANTIATE(Float16)

}  // namespace jax_dcn
