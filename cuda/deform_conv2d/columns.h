// SPDX-License-Identifier: MIT
// Launchers of the kernels of columns: kernels that sample columns, and kernels of their gradients.
#ifndef JAX_DCN_CUDA_DEFORM_CONV2D_COLUMNS_H_
#define JAX_DCN_CUDA_DEFORM_CONV2D_COLUMNS_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "common/deform_conv2d/problem.h"
#include "cuda/deform_conv2d/chunk.h"

namespace jax_dcn {

template <typename T>
cudaError_t LaunchDeformConv2dColumns(cudaStream_t stream, const DeformConv2dChunk& chunk,
                                      const DeformConv2dPrimals<T>& primals, ChunkStart start,
                                      T* columns);

// The columns of x if the kernel moves, then the columns of the tangents of x, offset and mask if
// there is any.
template <typename T>
cudaError_t LaunchDeformConv2dColumnsJvp(cudaStream_t stream, const DeformConv2dChunk& chunk,
                                         const DeformConv2dPrimals<T>& primals,
                                         const DeformConv2dTangents<T>& tangents, bool kernel_moves,
                                         ChunkStart start, T* columns);

// The gradients of offset and mask, from the gradient of the columns. `columns`, if not null, gets
// the columns, and may be `grad_columns`.
template <typename T>
cudaError_t LaunchDeformConv2dSampleGradients(cudaStream_t stream, const DeformConv2dChunk& chunk,
                                              const DeformConv2dPrimals<T>& primals,
                                              ChunkStart start, const T* grad_columns,
                                              const DeformConv2dCotangents<T>& grads, T* columns);

// The gradient of x of the chunk's images: written to `grad_x`, or added to `sums` where the chunk
// is a part of an image. Exactly one of `grad_x` and `sums` is not null.
template <typename T>
cudaError_t LaunchDeformConv2dGatherGradX(cudaStream_t stream, const DeformConv2dChunk& chunk,
                                          const DeformConv2dPrimals<T>& primals, ChunkStart start,
                                          const T* grad_columns, int32_t* scratch, T* grad_x,
                                          typename Accumulator<T>::type* sums);

}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_DEFORM_CONV2D_COLUMNS_H_
