// SPDX-License-Identifier: MIT
// The gradient of x of a deformable aggregation on CUDA: every pixel adds up the gradients of the
// queries whose samples read the pixel.

#include <algorithm>
#include <limits>

#include "cuda/deform_aggregate/kernels.h"
#include "cuda/deform_aggregate/sizes.h"
#include "cuda/sampling/fill.cuh"
#include "cuda/sampling/gather.cuh"

namespace jax_dcn {
namespace {

constexpr int64_t kMost = std::numeric_limits<int32_t>::max();

// Some segments, [N, G], whose bins are held at once.
struct Segments {
  DeformAggregateSizes sizes;
  int32_t first, count;

  JAX_DCN_INLINE int32_t samples() const { return count * sizes.queries * sizes.samples; }
};

// The samples of the segments, [segments, Q, T], for FillBins.
template <typename A>
struct SegmentSamples {
  using Type = A;
  struct Located {
    static constexpr bool exists = true;
    BilinearSample<A> read;
    int32_t segment, first_bin, first_id;  // the segment is counted from the first one
    int64_t index;                         // in `weights`
  };

  Segments of;
  const A *positions, *weights;

  JAX_DCN_INLINE int32_t count() const { return of.samples(); }
  __device__ __forceinline__ Located At(int32_t i) const {
    const DeformAggregateSizes& sizes = of.sizes;
    const int32_t query_in_segments = sizes.by_samples.Quotient(i);
    const int32_t sample = sizes.by_samples.Remainder(i, query_in_segments);
    const int32_t segment = sizes.by_queries.Quotient(query_in_segments);
    const int32_t query = sizes.by_queries.Remainder(query_in_segments, segment);
    const int32_t image = sizes.by_groups.Quotient(of.first + segment);
    const int32_t group = sizes.by_groups.Remainder(of.first + segment, image);
    const int64_t row = (int64_t{image} * sizes.queries + query) * sizes.groups + group;
    const int64_t index = row * sizes.samples + sample;
    const AggregateRead<A> read = sizes.ReadAt(sample, positions + 2 * index);
    return {read.sample, segment, segment * sizes.pixels + read.map.first_pixel,
            kCorners * (sample * sizes.queries + query), index};
  }
  __device__ __forceinline__ A WeightOf(const Located& at) const {
    return weights == nullptr ? A(1) : weights[at.index];
  }
};

// A bin's pixel of x, and the gradients of its image's queries.
template <typename T>
struct BinPlace {
  const DeformAggregateSizes& sizes;
  const T* grad_y;  // of the image, at the first channel of the group
  T* grad_x;        // of the pixel, the same
  int32_t segment;
  static constexpr bool exists = true;

  __device__ __forceinline__ const T* Rows(int32_t channel) const { return grad_y + channel; }
  __device__ __forceinline__ const T* Row(const T* rows, int32_t id) const {
    const int32_t in_segment = id / kCorners;  // [T, Q]
    const int32_t sample = sizes.by_queries.Quotient(in_segment);
    return RowsAfter(rows, sizes.by_queries.Remainder(in_segment, sample), sizes.pixel_bytes);
  }
  template <int kSize>
  __device__ __forceinline__ void Put(int32_t channel, const Unpacked<T, kSize>& sum) const {
    StoreGlobal(grad_x + channel, Pack(sum));
  }
};

// The gradients of y, for the kernels that sum bins.
template <typename T>
struct QueryGradients {
  using Type = T;

  Segments segments;
  const T* grad_y;
  T* grad_x;
  int32_t group_channels;

  __device__ __forceinline__ BinPlace<T> At(int32_t bin) const {
    const DeformAggregateSizes& sizes = segments.sizes;
    const int32_t segment = sizes.by_pixels.Quotient(bin);
    const int32_t pixel = sizes.by_pixels.Remainder(bin, segment);
    const int32_t image = sizes.by_groups.Quotient(segments.first + segment);
    const int32_t group = sizes.by_groups.Remainder(segments.first + segment, image);
    const int64_t query = int64_t{image} * sizes.queries;
    return {sizes, grad_y + query * sizes.channels + group * group_channels,
            grad_x + sizes.FirstChannel(image, group) + int64_t{pixel} * sizes.channels, segment};
  }
};

}  // namespace

template <typename T>
cudaError_t LaunchDeformAggregateGradX(cudaStream_t stream, const DeformAggregateProblem& problem,
                                       const DeformAggregatePrimals<T>& primals, const T* grad_y,
                                       int64_t segments, int32_t* scratch, T* grad_x) {
  const DeformAggregateSizes sizes(problem, sizeof(T));
  const int64_t all = problem.batch * problem.groups;
  if (problem.queries * problem.samples == 0) {
    return cudaMemsetAsync(grad_x, 0, problem.batch * problem.image_size() * sizeof(T), stream);
  }
  const bool vectors = AreAligned({grad_y, grad_x}) && sizes.group_channels % kVector<T> == 0;
  for (int64_t first = 0; first < all; first += segments) {
    const Segments some = {sizes, static_cast<int32_t>(first),
                           static_cast<int32_t>(std::min(segments, all - first))};
    const BinsLayout<Sum<T>> layout = SegmentBins<Sum<T>>(problem, some.count);
    const Bins bins = layout.In(scratch);
    const QueryGradients<T> gradients = {some, grad_y, grad_x, sizes.group_channels};
    const SegmentSamples<Sum<T>> samples = {some, primals.positions, primals.weights};
    cudaError_t error = FillBins(stream, samples, layout, bins);
    if (error != cudaSuccess) return error;
    error = WithVectorSize<T>(
        vectors, [&](auto size) { return LaunchGatherBins<size>(stream, bins, gradients); });
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

const char* WhyNotOnCuda(const DeformAggregateProblem& problem) {
  if (problem.map_count > kMostMaps) return "on cuda there must be at most 16 maps";
  if (problem.batch * problem.queries * problem.groups > kMost ||
      kCorners * problem.queries * problem.samples > kMost || problem.channels > kMost / 8) {
    return "on cuda the queries of all groups, the corners of the samples of a group and an image, "
           "and the bytes of a pixel must be counted in 32 bits";
  }
  return nullptr;
}

const char* WhyNotSegmentsOnCuda(const DeformAggregateProblem& problem, int64_t segments) {
  const int64_t entries = kCorners * problem.queries * problem.samples;
  if (segments <= kMost / std::max({entries, problem.pixels, int64_t{1}})) return nullptr;
  return "on cuda the corners and the pixels of all segments must be counted in 32 bits";
}

#define JAX_DCN_INSTANTIATE(T)                                                                 \
  template cudaError_t LaunchDeformAggregateGradX(cudaStream_t, const DeformAggregateProblem&, \
                                                  const DeformAggregatePrimals<T>&, const T*,  \
                                                  int64_t, int32_t*, T*);
JAX_DCN_INSTANTIATE(float)
JAX_DCN_INSTANTIATE(double)
JAX_DCN_INSTANTIATE(BFloat16)
JAX_DCN_INSTANTIATE(Float16)
#undef JAX_DCN_INSTANTIATE

}  // namespace jax_dcn
