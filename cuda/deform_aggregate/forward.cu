// SPDX-License-Identifier: MIT
// Deformable aggregation on CUDA, and its tangent.

#include <type_traits>

#include "cuda/deform_aggregate/kernels.h"
#include "cuda/deform_aggregate/rows.cuh"

namespace jax_dcn {
namespace {

// Blocks for each multiprocessor, which leaves 64 registers for a thread, and 80 for tangents and
// for sums in double.
template <typename T, bool kTangent>
constexpr int kBlocks = kTangent || sizeof(T) == sizeof(double) ? 3 : 4;

// A sample of x, and of its tangent: x is sampled by the weights ẇ + w ∇·q̇, its tangent by w.
template <typename A>
struct alignas(16) SampleDot : Sample<A> {
  A weight_dot[kCorners];
};

template <typename A, bool kTangent>
using LocatedSample = std::conditional_t<kTangent, SampleDot<A>, Sample<A>>;

template <typename T, typename A>
__device__ __forceinline__ void SetTangentWeights(const DeformAggregateSizes& sizes,
                                                  const DeformAggregateTangents<T>& tangents,
                                                  const AggregateRead<A>& read, A weight,
                                                  int64_t index, A (&weight_dot)[kCorners]) {
  const auto scaled =
      ValueWeights(read.sample, tangents.weights == nullptr ? A(0) : tangents.weights[index]);
  CornerWeights<A> moved = {};
  if (tangents.positions != nullptr) {
    const A* const dot = tangents.positions + 2 * index;
    const A y_dot = sizes.unit_square ? dot[1] * static_cast<A>(read.map.height) : dot[0];
    const A x_dot = sizes.unit_square ? dot[0] * static_cast<A>(read.map.width) : dot[1];
    moved = DerivativeWeights(read.sample, weight * y_dot, weight * x_dot);
  }
#pragma unroll
  for (int i = 0; i < kCorners; ++i) weight_dot[i] = scaled.corner[i] + moved.corner[i];
}

// Locates this thread's sample among the samples from `first` on, if there is one.
template <typename T, bool kTangent>
__device__ __forceinline__ void LocateSample(const DeformAggregateSizes& sizes,
                                             const DeformAggregatePrimals<T>& primals,
                                             const DeformAggregateTangents<T>& tangents,
                                             const ThreadRow& row, int32_t first,
                                             LocatedSample<Sum<T>, kTangent>* located) {
  using A = Sum<T>;
  const int32_t sample = first + threadIdx.x;
  if (sample >= sizes.samples) return;
  const int64_t index = row.SampleIndex(sizes, sample);
  const AggregateRead<A> read = sizes.ReadAt(sample, primals.positions + 2 * index);
  const A weight = primals.weights == nullptr ? A(1) : primals.weights[index];
  static_cast<Sample<A>&>(located[threadIdx.x]) =
      SampleOf(read.sample, weight, read.map.first_pixel);
  if constexpr (kTangent) {
    SetTangentWeights(sizes, tangents, read, weight, index, located[threadIdx.x].weight_dot);
  }
}

// sum += Σ_parts sum, for the parts that share the samples of a row.
template <typename T, int kSize>
__device__ __forceinline__ void AddParts(int lanes, Unpacked<T, kSize>& sum) {
  for (int distance = blockDim.x / 2; distance >= lanes; distance /= 2) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      sum.value[i] += __shfl_xor_sync(0xffffffffu, sum.value[i], distance);
    }
  }
}

// sum += the sample's value of kSize channels, which are `x` of the first pixel.
template <int kSize, typename T>
__device__ __forceinline__ void AddSample(const Sample<Sum<T>>& sample, const T* x, const T*, bool,
                                          int32_t pixel_bytes, Unpacked<T, kSize>& sum) {
  AddCorners(LoadCorners<kSize>(sample, x, pixel_bytes), sample.weight, sum);
}

// sum += the tangent of the sample's value. `x_dot` is null where x does not move.
template <int kSize, typename T>
__device__ __forceinline__ void AddSample(const SampleDot<Sum<T>>& sample, const T* x,
                                          const T* x_dot, bool samples_move, int32_t pixel_bytes,
                                          Unpacked<T, kSize>& sum) {
  if (x_dot != nullptr) {
    AddCorners(LoadCorners<kSize>(sample, x_dot, pixel_bytes), sample.weight, sum);
  }
  if (samples_move) {
    AddCorners(LoadCorners<kSize>(sample, x, pixel_bytes), sample.weight_dot, sum);
  }
}

// Sums are of two levels: the samples that are located at once, then these sums.
template <typename T, int kSize, bool kTangent>
__global__ void __launch_bounds__(kThreads, kBlocks<T, kTangent>)
    DeformAggregateSumKernel(const DeformAggregatePrimals<T> primals,
                             const DeformAggregateTangents<T> tangents, T* y, int lanes,
                             const DeformAggregateSizes sizes) {
  using Sums = Unpacked<T, kSize>;
  auto* const located = LocatedSamples<LocatedSample<Sum<T>, kTangent>>();
  const ThreadRow row(sizes, lanes);
  const int64_t group = sizes.FirstChannel(row.image, row.group);
  const bool samples_move = tangents.positions != nullptr || tangents.weights != nullptr;
  const bool located_once = sizes.samples <= static_cast<int>(blockDim.x);
  for (int32_t begin = 0; begin < sizes.group_channels; begin += lanes * kSize) {
    const int32_t channel = begin + row.lane * kSize;
    const T* const x = primals.x + group + channel;
    const T* const x_dot = tangents.x == nullptr ? nullptr : tangents.x + group + channel;
    Sums sum = {};
    for (int32_t first = 0; first < sizes.samples; first += blockDim.x) {
      if (begin == 0 || !located_once) {
        __syncwarp();  // all have read what was there
        LocateSample<T, kTangent>(sizes, primals, tangents, row, first, located);
        __syncwarp();
      }
      if (channel >= sizes.group_channels) continue;
      Sums part = {};
#pragma unroll 2
      for (int i = row.part; i < LocatedAtOnce(sizes, first); i += row.parts) {
        AddSample<kSize>(located[i], x, x_dot, samples_move, sizes.pixel_bytes, part);
      }
#pragma unroll
      for (int i = 0; i < kSize; ++i) sum.value[i] += part.value[i];
    }
    AddParts(lanes, sum);
    if (row.exists && row.part == 0 && channel < sizes.group_channels) {
      StoreGlobal(y + row.ChannelIndex(sizes, channel), Pack(sum));
    }
  }
}

template <bool kTangent, typename T>
cudaError_t LaunchSum(cudaStream_t stream, const DeformAggregateProblem& problem,
                      const DeformAggregatePrimals<T>& primals,
                      const DeformAggregateTangents<T>& tangents, T* y) {
  const DeformAggregateSizes sizes(problem, sizeof(T));
  constexpr size_t kBytes = sizeof(LocatedSample<Sum<T>, kTangent>);
  return WithVectorSize<T>(AreVectors<T>(sizes, {primals.x, tangents.x, y}), [&](auto size) {
    return LaunchRows(sizes, size, kBytes, [&](const LaunchShape& shape, int lanes) {
      return Launch(DeformAggregateSumKernel<T, size, kTangent>, shape, stream, primals, tangents,
                    y, lanes, sizes);
    });
  });
}

}  // namespace

template <typename T>
cudaError_t LaunchDeformAggregateForward(cudaStream_t stream, const DeformAggregateProblem& problem,
                                         const DeformAggregatePrimals<T>& primals, T* y) {
  return LaunchSum<false>(stream, problem, primals, DeformAggregateTangents<T>(), y);
}

template <typename T>
cudaError_t LaunchDeformAggregateJvp(cudaStream_t stream, const DeformAggregateProblem& problem,
                                     const DeformAggregatePrimals<T>& primals,
                                     const DeformAggregateTangents<T>& tangents, T* y_dot) {
  return LaunchSum<true>(stream, problem, primals, tangents, y_dot);
}

#define JAX_DCN_INSTANTIATE(T)                                                                   \
  template cudaError_t LaunchDeformAggregateForward(cudaStream_t, const DeformAggregateProblem&, \
                                                    const DeformAggregatePrimals<T>&, T*);       \
  template cudaError_t LaunchDeformAggregateJvp(cudaStream_t, const DeformAggregateProblem&,     \
                                                const DeformAggregatePrimals<T>&,                \
                                                const DeformAggregateTangents<T>&, T*);
JAX_DCN_INSTANTIATE(float)
JAX_DCN_INSTANTIATE(double)
JAX_DCN_INSTANTIATE(BFloat16)
JAX_DCN_INSTANTIATE(Float16)
#undef JAX_DCN_INSTANTIATE

}  // namespace jax_dcn
