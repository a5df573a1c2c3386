// SPDX-License-Identifier: MIT
// The gradients of positions and weights of a deformable aggregation on CUDA.

#include "cuda/deform_aggregate/kernels.h"
#include "cuda/deform_aggregate/rows.cuh"

namespace jax_dcn {
namespace {

// Blocks for each multiprocessor, which leaves 80 registers for a thread.
constexpr int kBlocks = 3;

// A located sample: the pixels that it reads, and their dot products with the gradient of y.
template <typename A>
struct alignas(16) CornerDots : SampleCorners {
  A dot[kCorners];
};

// Writes the gradients of a sample, which are linear in its dot products.
template <typename T, typename A>
__device__ __forceinline__ void StoreGradients(const DeformAggregateSizes& sizes,
                                               const DeformAggregateCotangents<T>& grads,
                                               const AggregateRead<A>& read, A weight,
                                               int64_t index, const A (&dots)[kCorners]) {
  if (grads.weights != nullptr) {
    grads.weights[index] = Combine(ValueWeights(read.sample, A(1)), dots);
  }
  if (grads.positions == nullptr) return;
  A* const grad = grads.positions + 2 * index;
  const A y = Combine(DerivativeWeights(read.sample, weight, A(0)), dots);
  const A x = Combine(DerivativeWeights(read.sample, A(0), weight), dots);
  grad[0] = sizes.unit_square ? x * static_cast<A>(read.map.width) : y;
  grad[1] = sizes.unit_square ? y * static_cast<A>(read.map.height) : x;
}

template <typename T, int kSize>
__global__ void __launch_bounds__(kThreads, kBlocks)
    DeformAggregateGradSamplesKernel(const DeformAggregatePrimals<T> primals, const T* grad_y,
                                     const DeformAggregateCotangents<T> grads, int lanes,
                                     const DeformAggregateSizes sizes) {
  using A = Sum<T>;
  CornerDots<A>* const located = LocatedSamples<CornerDots<A>>();
  const ThreadRow row(sizes, lanes);
  const T* const x = primals.x + sizes.FirstChannel(row.image, row.group);
  const T* const grad = grad_y + row.ChannelIndex(sizes, 0);
  const int32_t channel = row.lane * kSize, step = lanes * kSize;
  Unpacked<T, kSize> first_channels = {};
  if (channel < sizes.group_channels) first_channels = Unpack(LoadConstant<kSize>(grad + channel));
  for (int32_t first = 0; first < sizes.samples; first += blockDim.x) {
    const int32_t own = first + threadIdx.x;
    const bool has_own = own < sizes.samples;
    const int64_t index = row.SampleIndex(sizes, has_own ? own : first);
    const AggregateRead<A> read =
        sizes.ReadAt(has_own ? own : first, primals.positions + 2 * index);
    const A weight = primals.weights == nullptr ? A(1) : primals.weights[index];
    __syncwarp();  // all have read what was there
    static_cast<SampleCorners&>(located[threadIdx.x]) =
        CornersOf(read.sample, read.map.first_pixel);
    __syncwarp();
    // All lanes of a warp go through the loop equally often, since they exchange their sums.
    for (int done = 0; done < LocatedAtOnce(sizes, first); done += row.parts) {
      CornerDots<A>& sample = located[done + row.part];
      A dots[kCorners] = {};
      if (channel < sizes.group_channels) {
        AddDots(LoadCorners<kSize>(sample, x + channel, sizes.pixel_bytes), first_channels, dots);
      }
      for (int32_t c = channel + step; c < sizes.group_channels; c += step) {
        AddDots(LoadCorners<kSize>(sample, x + c, sizes.pixel_bytes),
                Unpack(LoadConstant<kSize>(grad + c)), dots);
      }
      StoreSumsOverLanes(dots, row.lane, lanes, sample.dot);
    }
    __syncwarp();
    if (has_own && row.exists) {
      StoreGradients(sizes, grads, read, weight, index, located[threadIdx.x].dot);
    }
  }
}

}  // namespace

template <typename T>
cudaError_t LaunchDeformAggregateGradSamples(cudaStream_t stream,
                                             const DeformAggregateProblem& problem,
                                             const DeformAggregatePrimals<T>& primals,
                                             const T* grad_y,
                                             const DeformAggregateCotangents<T>& grads) {
  const DeformAggregateSizes sizes(problem, sizeof(T));
  constexpr size_t kBytes = sizeof(CornerDots<Sum<T>>);
  return WithVectorSize<T>(AreVectors<T>(sizes, {primals.x, grad_y}), [&](auto size) {
    return LaunchRows(sizes, size, kBytes, [&](const LaunchShape& shape, int lanes) {
      return Launch(DeformAggregateGradSamplesKernel<T, size>, shape, stream, primals, grad_y,
                    grads, lanes, sizes);
    });
  });
}

#define JAX_DCN_INSTANTIATE(T)                                                                 \
  template cudaError_t LaunchDeformAggregateGradSamples(                                       \
      cudaStream_t, const DeformAggregateProblem&, const DeformAggregatePrimals<T>&, const T*, \
      const DeformAggregateCotangents<T>&);
JAX_DCN_INSTANTIATE(float)
JAX_DCN_INSTANTIATE(double)
JAX_DCN_INSTANTIATE(BFloat16)
JAX_DCN_INSTANTIATE(Float16)
#undef JAX_DCN_INSTANTIATE

}  // namespace jax_dcn
