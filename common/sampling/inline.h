// SPDX-License-Identifier: MIT
// JAX_DCN_INLINE: functions for the host and for CUDA devices.
#ifndef JAX_DCN_COMMON_SAMPLING_INLINE_H_
#define JAX_DCN_COMMON_SAMPLING_INLINE_H_

#if defined(__CUDACC__)
#define JAX_DCN_INLINE __host__ __device__ __forceinline__
#else
// The compiler always inlines the function. An emitted function could have been compiled for newer
// instructions than the processor has, and the linker keeps only one copy of each function.
#define JAX_DCN_INLINE inline __attribute__((always_inline))
#endif

#endif  // JAX_DCN_COMMON_SAMPLING_INLINE_H_
