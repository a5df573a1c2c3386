// SPDX-License-Identifier: MIT
// The gradient of x of a deformable aggregation on CUDA: every pixel adds up the gradients of the
// queries whose samples read the pixel.

#include <algorithm>
#include <limits>

#include "cuda/deform_aggregate/kernels.h"
#include "cuda/deform_aggregate/sizes.h"
#include "cuda/sampling/gather.cuh"

namespace jax_dcn {
namespace {

constexpr unsigned kBinThreads = 256;
constexpr int64_t kMost = std::numeric_limits<int32_t>::max();

// Some segments, [N, G], whose bins are held at once.
struct Segments {
  DeformAggregateSizes sizes;
  int32_t first, count;

  JAX_DCN_INLINE int32_t samples() const { return count * sizes.queries * sizes.samples; }
};

// A sample of the segments, which count their samples [segments, Q, T], and the entries of the
// sample.
template <typename A>
struct SampleEntries {
  int32_t segment, first_bin, first_id;  // the segment is counted from the first one
  int64_t index;                         // in `weights`
  AggregateRead<A> read;

  __device__ __forceinline__ SampleEntries(const Segments& of, const A* positions, int32_t i) {
    const DeformAggregateSizes& sizes = of.sizes;
    const int32_t query_in_segments = sizes.by_samples.Quotient(i);
    const int32_t sample = sizes.by_samples.Remainder(i, query_in_segments);
    segment = sizes.by_queries.Quotient(query_in_segments);
    const int32_t query = sizes.by_queries.Remainder(query_in_segments, segment);
    const int32_t image = sizes.by_groups.Quotient(of.first + segment);
    const int32_t group = sizes.by_groups.Remainder(of.first + segment, image);
    const int64_t row = (int64_t{image} * sizes.queries + query) * sizes.groups + group;
    index = row * sizes.samples + sample;
    read = sizes.ReadAt(sample, positions + 2 * index);
    first_bin = segment * sizes.pixels + read.map.first_pixel;
    first_id = kCorners * (sample * sizes.queries + query);
  }

  // Calls `f(corner, bin)` for each corner that is inside the map.
  template <typename F>
  __device__ __forceinline__ void ForEachInside(const F& f) const {
#pragma unroll
    for (int i = 0; i < kCorners; ++i) {
      const int64_t pixel = read.sample.corner[i];
      if (pixel != kOutside) f(i, first_bin + static_cast<int32_t>(pixel));
    }
  }
};

template <typename A>
__global__ void __launch_bounds__(kBinThreads)
    DeformAggregateCountEntriesKernel(const A* positions, const A* weights, Bins bins,
                                      const Segments segments) {
  const int64_t i = int64_t{blockIdx.x} * kBinThreads + threadIdx.x;
  if (i >= segments.samples()) return;
  const SampleEntries<A> entries(segments, positions, i);
  const A weight = weights == nullptr ? A(1) : weights[entries.index];
  const CornerWeights<A> corners = ValueWeights(entries.read.sample, weight);
  A* const to = bins.WeightsOf<A>(entries.segment) + entries.first_id;
#pragma unroll
  for (int corner = 0; corner < kCorners; ++corner) to[corner] = corners.corner[corner];
  entries.ForEachInside([&](int, int32_t bin) { atomicAdd(&bins.ends[bin], 1); });
}

template <typename A>
__global__ void __launch_bounds__(kBinThreads)
    DeformAggregatePlaceEntriesKernel(const A* positions, Bins bins, const Segments segments) {
  const int64_t i = int64_t{blockIdx.x} * kBinThreads + threadIdx.x;
  if (i >= segments.samples()) return;
  const SampleEntries<A> entries(segments, positions, i);
  entries.ForEachInside([&](int corner, int32_t bin) {
    bins.unsorted[atomicAdd(&bins.ends[bin], 1)] = entries.first_id + corner;
  });
}

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

template <typename A>
cudaError_t FillBins(cudaStream_t stream, const A* positions, const A* weights,
                     const BinsLayout<A>& layout, const Bins& bins, const Segments& segments) {
  const LaunchShape samples = {BlocksFor(segments.samples(), kBinThreads), kBinThreads};
  cudaError_t error = ClearBins(stream, layout, bins);
  const auto then = [&](const auto& step) {
    if (error == cudaSuccess) error = step();
  };
  then([&] {
    return Launch(DeformAggregateCountEntriesKernel<A>, samples, stream, positions, weights, bins,
                  segments);
  });
  then([&] { return LaunchReserveBins(stream, bins); });
  then([&] {
    return Launch(DeformAggregatePlaceEntriesKernel<A>, samples, stream, positions, bins, segments);
  });
  then([&] { return LaunchSortBins(stream, bins); });
  return error;
}

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
    cudaError_t error = FillBins(stream, primals.positions, primals.weights, layout, bins, some);
    if (error != cudaSuccess) return error;
    error = WithVectorSize<T>(
        vectors, [&](auto size) { return LaunchSumBins<size>(stream, bins, gradients); });
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
