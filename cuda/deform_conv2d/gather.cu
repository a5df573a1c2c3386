// SPDX-License-Identifier: MIT
// The gradient of x, gathered from the gradients of the columns that read each pixel.

#include "cuda/deform_conv2d/bins.h"
#include "cuda/deform_conv2d/block_samples.cuh"
#include "cuda/deform_conv2d/columns.h"
#include "cuda/sampling/fill.cuh"
#include "cuda/sampling/gather.cuh"

namespace jax_dcn {
namespace {

// The samples of a chunk, for FillBins.
template <typename A>
struct ChunkSamples {
  using Type = A;
  struct Located {
    bool exists;
    BilinearSample<A> read;
    int32_t segment, first_bin, first_id;
    ChunkSample sample;
  };

  DeformConv2dChunk chunk;
  ChunkStart start;
  const A *offset, *mask;

  JAX_DCN_INLINE int32_t count() const { return chunk.samples(); }
  __device__ __forceinline__ Located At(int32_t i) const {
    const ChunkSample sample(chunk, start, i);
    const bool exists = sample.Exists(chunk);
    const int32_t segment = sample.image_in_chunk * chunk.sizes.offset_groups + sample.group;
    return {exists,
            exists ? sample.Read(chunk, offset) : Nowhere<A>(),
            segment,
            segment * chunk.sizes.image_pixels(),
            kCorners * (sample.pixel_in_chunk * chunk.sizes.taps + sample.tap),
            sample};
  }
  __device__ __forceinline__ A WeightOf(const Located& at) const {
    return at.sample.Mask(chunk, mask);
  }
};

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
template <typename T>
struct BinPlace {
  const DeformConv2dChunk& chunk;
  const T* grad_columns;
  const GradX<T>& grad_x;
  int32_t segment, image_in_chunk, first_channel;
  int64_t first_in_x;  // index of the pixel's first channel of the group
  bool exists;

  __device__ __forceinline__ const T* Rows(int32_t channel) const {
    const int32_t first_row = image_in_chunk * chunk.pixels * chunk.sizes.taps;
    return grad_columns + chunk.ColumnIndex(first_row, first_channel + channel);
  }
  __device__ __forceinline__ const T* Row(const T* rows, int32_t id) const {
    return RowsAfter(rows, id / kCorners, chunk.sizes.group_channels * sizeof(T));
  }
  template <int kSize>
  __device__ __forceinline__ void Put(int32_t channel, const Unpacked<T, kSize>& sum) const {
    grad_x.Put(first_in_x + channel, sum);
  }
};

// The gradients of the columns of a chunk, for LaunchGatherBins.
template <typename T>
struct ColumnGradients {
  using Type = T;

  DeformConv2dChunk chunk;
  ChunkStart start;
  const T* grad_columns;
  GradX<T> grad_x;
  int32_t group_channels;

  __device__ __forceinline__ BinPlace<T> At(int32_t bin) const {
    const int32_t segment = chunk.sizes.by_image_pixels.Quotient(bin);
    const int32_t image_in_chunk = chunk.sizes.by_offset_groups.Quotient(segment);
    const int32_t image = start[0] + image_in_chunk;
    const int32_t group = chunk.sizes.by_offset_groups.Remainder(segment, image_in_chunk);
    const int64_t pixel = int64_t{image} * chunk.sizes.image_pixels() +
                          chunk.sizes.by_image_pixels.Remainder(bin, segment);
    const int32_t first_channel = group * group_channels;
    return {chunk,
            grad_columns,
            grad_x,
            segment,
            image_in_chunk,
            first_channel,
            pixel * chunk.sizes.channels + first_channel,
            image < chunk.sizes.batch};
  }
};

}  // namespace

template <typename T>
cudaError_t LaunchDeformConv2dGatherGradX(cudaStream_t stream, const DeformConv2dChunk& chunk,
                                          const DeformConv2dPrimals<T>& primals, ChunkStart start,
                                          const T* grad_columns, int32_t* scratch, T* grad_x,
                                          typename Accumulator<T>::type* sums) {
  const BinsLayout<Sum<T>> layout = ChunkBins<Sum<T>>(chunk);
  if (layout.bins() == 0 || chunk.samples() == 0) return cudaSuccess;
  const Bins bins = layout.In(scratch);
  const ChunkSamples<Sum<T>> samples = {chunk, start, primals.offset, primals.mask};
  const cudaError_t error = FillBins(stream, samples, layout, bins);
  if (error != cudaSuccess) return error;
  const ColumnGradients<T> gradients = {
      chunk, start, grad_columns, {grad_x, sums}, chunk.sizes.offset_group_channels};
  const bool vectors = AreVectors<T>(chunk.sizes, {grad_columns, grad_x, sums});
  return WithVectorSize<T>(
      vectors, [&](auto size) { return LaunchGatherBins<size>(stream, bins, gradients); });
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
