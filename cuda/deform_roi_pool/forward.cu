// SPDX-License-Identifier: MIT
// Deformable RoI pooling on CUDA, and its tangent. Each element is summed by one thread.

#include "cuda/deform_roi_pool/bins.cuh"
#include "cuda/deform_roi_pool/kernels.h"

namespace jax_dcn {
namespace {

// How the pixels of a bin are weighted in a sum over x: Σ (mean w + dy ∂w/∂y + dx ∂w/∂x) x.
template <typename A>
struct BinWeights {
  A mean, dy, dx;
};

template <typename T, typename A>
__device__ __forceinline__ BinWeights<A> TangentWeights(const DeformRoIPoolProblem& problem,
                                                        const DeformRoIPoolPrimals<T, A>& primals,
                                                        const DeformRoIPoolTangents<T, A>& tangents,
                                                        int64_t region, int64_t bin,
                                                        int64_t group) {
  BinWeights<A> weights = {0, 0, 0};
  if (tangents.mask != nullptr) weights.mean = MaskOf(problem, tangents.mask, region, bin);
  if (tangents.offset != nullptr) {
    const A* const dot = tangents.offset + 2 * problem.OffsetIndex(region, bin, group);
    const A* const roi = primals.rois + 5 * region;
    const A mask = MaskOf(problem, primals.mask, region, bin);
    weights.dy = mask * dot[0] * ShiftUnit(problem.geometry, RegionAlong<0>(problem, roi));
    weights.dx = mask * dot[1] * ShiftUnit(problem.geometry, RegionAlong<1>(problem, roi));
  }
  return weights;
}

// The sum over a bin's pixels, for one feature: of x by `weights`, and of the tangent of x by the
// mean's weights and `mask`. Null stands for zero.
template <bool kTangent, typename T, typename A>
__device__ __forceinline__ A SumOfPixels(const DeformRoIPoolProblem& problem,
                                         const SharedBin<T, A>& bin, const T* x,
                                         const BinWeights<A>& weights, const T* x_dot, A mask) {
  A sum = 0;
  ForEachPixel(problem, bin, [&](int64_t pixel, const auto& row, const auto& column) {
    const A value = row.weight * column.weight;
    const A moved = weights.mean * value + weights.dy * row.slope * column.weight +
                    weights.dx * row.weight * column.slope;
    const int64_t at = pixel * problem.channels;
    if (!kTangent || x != nullptr) sum += moved * ToFloat(x[at]);
    if (kTangent && x_dot != nullptr) sum += mask * value * ToFloat(x_dot[at]);
  });
  return sum;
}

// Pools one bin of one region for one class, whose features are `y`, one thread a feature.
template <typename T, typename A, bool kTangent>
__device__ __forceinline__ void PoolBin(const DeformRoIPoolProblem& problem,
                                        const DeformRoIPoolPrimals<T, A>& primals,
                                        const DeformRoIPoolTangents<T, A>& tangents, int64_t region,
                                        int64_t bin, int64_t group, SharedBin<T, A>& shared, T* y) {
  const int64_t image = ImageOfRegion(problem, primals.rois + 5 * region);
  const int64_t size = problem.class_features();
  if (image < 0) {
    for (int64_t c = threadIdx.x; c < size; c += blockDim.x) y[c] = FromFloat<T>::Round(0);
    return;
  }
  shared.Locate(problem, primals, region, bin, group);
  const int64_t first = FirstFeature(problem, image, bin, group);
  const A mask = MaskOf(problem, primals.mask, region, bin), scale = shared.Scale();
  BinWeights<A> weights = {mask, 0, 0};
  if (kTangent) weights = TangentWeights(problem, primals, tangents, region, bin, group);
  const bool x_counts = !kTangent || tangents.mask != nullptr || tangents.offset != nullptr;
  for (int64_t c = threadIdx.x; c < size; c += blockDim.x) {
    const T* const x = x_counts ? primals.x + first + c : nullptr;
    const T* const x_dot = tangents.x == nullptr ? nullptr : tangents.x + first + c;
    y[c] = FromFloat<T>::Round(scale *
                               SumOfPixels<kTangent>(problem, shared, x, weights, x_dot, mask));
  }
}

// One block pools one bin of one region at a time.
template <typename T, typename A, bool kTangent>
__global__ void __launch_bounds__(kMostThreads, kResidentBlocks)
    BinMeansKernel(DeformRoIPoolProblem problem, DeformRoIPoolPrimals<T, A> primals,
                   DeformRoIPoolTangents<T, A> tangents, T* y) {
  SharedBin<T, A> shared(problem, SharedMemory<char>());
  for (int64_t item = blockIdx.x; item < problem.regions * problem.bins(); item += gridDim.x) {
    const int64_t region = item / problem.bins(), bin = item % problem.bins();
    for (int64_t group = 0; group < problem.classes; ++group) {
      PoolBin<T, A, kTangent>(problem, primals, tangents, region, bin, group, shared,
                              y + item * problem.features() + group * problem.class_features());
    }
  }
}

template <typename T, typename A, bool kTangent>
cudaError_t LaunchBinMeans(cudaStream_t stream, const DeformRoIPoolProblem& problem,
                           const DeformRoIPoolPrimals<T, A>& primals,
                           const DeformRoIPoolTangents<T, A>& tangents, T* y) {
  const int64_t items = problem.regions * problem.bins();
  if (items == 0) return cudaSuccess;
  return Launch(BinMeansKernel<T, A, kTangent>,
                {GridFor(items), static_cast<unsigned>(ThreadsFor(problem.class_features())),
                 SharedBin<T, A>::Bytes(problem)},
                stream, problem, primals, tangents, y);
}

}  // namespace

template <typename T, typename A>
cudaError_t LaunchDeformRoIPoolForward(cudaStream_t stream, const DeformRoIPoolProblem& problem,
                                       const DeformRoIPoolPrimals<T, A>& primals, T* y) {
  return LaunchBinMeans<T, A, false>(stream, problem, primals, {}, y);
}

template <typename T, typename A>
cudaError_t LaunchDeformRoIPoolJvp(cudaStream_t stream, const DeformRoIPoolProblem& problem,
                                   const DeformRoIPoolPrimals<T, A>& primals,
                                   const DeformRoIPoolTangents<T, A>& tangents, T* y_dot) {
  return LaunchBinMeans<T, A, true>(stream, problem, primals, tangents, y_dot);
}

#define JAX_DCN_INSTANTIATE(T, A)                                                            \
  template cudaError_t LaunchDeformRoIPoolForward(cudaStream_t, const DeformRoIPoolProblem&, \
                                                  const DeformRoIPoolPrimals<T, A>&, T*);    \
  template cudaError_t LaunchDeformRoIPoolJvp(cudaStream_t, const DeformRoIPoolProblem&,     \
                                              const DeformRoIPoolPrimals<T, A>&,             \
                                              const DeformRoIPoolTangents<T, A>&, T*);
JAX_DCN_INSTANTIATE(float, float)
JAX_DCN_INSTANTIATE(double, double)
JAX_DCN_INSTANTIATE(BFloat16, float)
JAX_DCN_INSTANTIATE(Float16, float)
#undef JAX_DCN_INSTANTIATE

}  // namespace jax_dcn
