// SPDX-License-Identifier: MIT
// Launchers of deformable aggregation on CUDA; the twin of cpu/deform_aggregate/kernels.h.
#ifndef JAX_DCN_CUDA_DEFORM_AGGREGATE_KERNELS_H_
#define JAX_DCN_CUDA_DEFORM_AGGREGATE_KERNELS_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "common/deform_aggregate/problem.h"
#include "common/sampling/bilinear.h"
#include "cuda/sampling/bins.h"

namespace jax_dcn {

template <typename T>
cudaError_t LaunchDeformAggregateForward(cudaStream_t stream, const DeformAggregateProblem& problem,
                                         const DeformAggregatePrimals<T>& primals, T* y);

template <typename T>
cudaError_t LaunchDeformAggregateJvp(cudaStream_t stream, const DeformAggregateProblem& problem,
                                     const DeformAggregatePrimals<T>& primals,
                                     const DeformAggregateTangents<T>& tangents, T* y_dot);

// The gradients of positions and weights.
template <typename T>
cudaError_t LaunchDeformAggregateGradSamples(cudaStream_t stream,
                                             const DeformAggregateProblem& problem,
                                             const DeformAggregatePrimals<T>& primals,
                                             const T* grad_y,
                                             const DeformAggregateCotangents<T>& grads);

// The gradient of x: `segments` images' groups at a time, whose bins lie in `scratch`.
template <typename T>
cudaError_t LaunchDeformAggregateGradX(cudaStream_t stream, const DeformAggregateProblem& problem,
                                       const DeformAggregatePrimals<T>& primals, const T* grad_y,
                                       int64_t segments, int32_t* scratch, T* grad_x);

// The bins of some segments: a segment is a group of an image. The id of an entry counts the
// corners of the segment, [T, Q, corners]: the ids of a map's samples follow each other.
template <typename A>
BinsLayout<A> SegmentBins(const DeformAggregateProblem& problem, int64_t segments) {
  return {segments, problem.pixels, kCorners * problem.queries * problem.samples};
}

// Why the kernels cannot compute a problem, or null where the kernels can.
const char* WhyNotOnCuda(const DeformAggregateProblem& problem);

// The same of the gradient of x, with the bins of so many segments at once.
const char* WhyNotSegmentsOnCuda(const DeformAggregateProblem& problem, int64_t segments);

}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_DEFORM_AGGREGATE_KERNELS_H_
