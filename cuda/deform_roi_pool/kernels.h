// SPDX-License-Identifier: MIT
// Launchers of deformable RoI pooling on CUDA; the twin of cpu/deform_roi_pool/kernels.h.
#ifndef JAX_DCN_CUDA_DEFORM_ROI_POOL_KERNELS_H_
#define JAX_DCN_CUDA_DEFORM_ROI_POOL_KERNELS_H_

#include <cuda_runtime.h>

#include "common/deform_roi_pool/problem.h"
#include "common/sampling/half.h"

namespace jax_dcn {

template <typename T, typename A>
cudaError_t LaunchDeformRoIPoolForward(cudaStream_t stream, const DeformRoIPoolProblem& problem,
                                       const DeformRoIPoolPrimals<T, A>& primals, T* y);

template <typename T, typename A>
cudaError_t LaunchDeformRoIPoolJvp(cudaStream_t stream, const DeformRoIPoolProblem& problem,
                                   const DeformRoIPoolPrimals<T, A>& primals,
                                   const DeformRoIPoolTangents<T, A>& tangents, T* y_dot);

template <typename T, typename A>
cudaError_t LaunchDeformRoIPoolBackward(cudaStream_t stream, const DeformRoIPoolProblem& problem,
                                        const DeformRoIPoolPrimals<T, A>& primals, const T* grad_y,
                                        const DeformRoIPoolCotangents<T, A>& grads);

// Why the kernels cannot compute a problem, or null where the kernels can.
const char* WhyNotOnCuda(const DeformRoIPoolProblem& problem);

}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_DEFORM_ROI_POOL_KERNELS_H_
