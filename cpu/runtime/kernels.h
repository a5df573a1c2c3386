// SPDX-License-Identifier: MIT
// The kernels of an operator on CPU, for every element type and instruction set.
#ifndef JAX_DCN_CPU_RUNTIME_KERNELS_H_
#define JAX_DCN_CPU_RUNTIME_KERNELS_H_

#include "common/sampling/half.h"
#include "cpu/runtime/executor.h"

namespace jax_dcn {

// The kernels of an operator for elements of type T. `Op` names the operator's types: Problem,
// Primals<T>, Tangents<T> and Cotangents<T>.
template <typename Op, typename T>
struct Kernels {
  using Problem = typename Op::Problem;
  using Primals = typename Op::template Primals<T>;

  void (*forward)(Executor&, const Problem&, const Primals&, T* y);
  void (*jvp)(Executor&, const Problem&, const Primals&, const typename Op::template Tangents<T>&,
              T* y_dot);
  void (*backward)(Executor&, const Problem&, const Primals&, const T* grad_y,
                   const typename Op::template Cotangents<T>&);
};

// The kernels of an operator for every element type: converts to Kernels<Op, T>.
template <typename Op>
struct KernelTable : Kernels<Op, float>,
                     Kernels<Op, double>,
                     Kernels<Op, BFloat16>,
                     Kernels<Op, Float16> {};

// Declares the table `name` of an operator in the namespace of each instruction set. The operator's
// kernels.cc, compiled once for each instruction set, defines the table.
#define JAX_DCN_DECLARE_KERNELS(Op, name) \
  namespace baseline {                    \
  extern const KernelTable<Op> name;      \
  }                                       \
  namespace avx2 {                        \
  extern const KernelTable<Op> name;      \
  }                                       \
  namespace avx512 {                      \
  extern const KernelTable<Op> name;      \
  }                                       \
  namespace avx512_bf16 {                 \
  extern const KernelTable<Op> name;      \
  }

}  // namespace jax_dcn

#endif  // JAX_DCN_CPU_RUNTIME_KERNELS_H_
