// SPDX-License-Identifier: MIT
// The loops of deformable convolution, one set for each instruction set.
#ifndef JAX_DCN_CPU_DEFORM_CONV2D_KERNELS_H_
#define JAX_DCN_CPU_DEFORM_CONV2D_KERNELS_H_

#include "common/deform_conv2d/problem.h"
#include "common/sampling/half.h"
#include "cpu/runtime/executor.h"

namespace jax_dcn {

template <typename T>
struct DeformConv2dKernels {
  void (*forward)(Executor&, const DeformConv2dProblem&, const DeformConv2dPrimals<T>&,
                  const T* bias, T* y);
  void (*jvp)(Executor&, const DeformConv2dProblem&, const DeformConv2dPrimals<T>&,
              const DeformConv2dTangents<T>&, T* y_dot);
  void (*backward)(Executor&, const DeformConv2dProblem&, const DeformConv2dPrimals<T>&,
                   const T* grad_y, const DeformConv2dCotangents<T>&);
};

// One namespace for each instruction set that the build compiles cpu/deform_conv2d/kernels.cc for.
#define JAX_DCN_DECLARE_KERNELS(isa)                                \
  namespace isa {                                                   \
  extern const DeformConv2dKernels<float> kDeformConv2dFloat;       \
  extern const DeformConv2dKernels<double> kDeformConv2dDouble;     \
  extern const DeformConv2dKernels<BFloat16> kDeformConv2dBFloat16; \
  extern const DeformConv2dKernels<Float16> kDeformConv2dFloat16;   \
  }
JAX_DCN_DECLARE_KERNELS(baseline)
JAX_DCN_DECLARE_KERNELS(avx2)
JAX_DCN_DECLARE_KERNELS(avx512)
#undef JAX_DCN_DECLARE_KERNELS

}  // namespace jax_dcn

#endif  // JAX_DCN_CPU_DEFORM_CONV2D_KERNELS_H_
