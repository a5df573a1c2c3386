// SPDX-License-Identifier: MIT
// XLA calls that begin with the operands x, kernel, offset and mask, without a bias.
#ifndef JAX_DCN_CUDA_DEFORM_CONV2D_PRIMALS_CALL_H_
#define JAX_DCN_CUDA_DEFORM_CONV2D_PRIMALS_CALL_H_

#include <vector>

#include "common/deform_conv2d/call.h"
#include "cuda/runtime/cursor.h"

namespace jax_dcn {

class PrimalsCall : public DeformConv2dCall {
 public:
  template <typename T>
  DeformConv2dPrimals<T> Primals() const {
    using A = typename Accumulator<T>::type;
    return {static_cast<const T*>(x_), static_cast<const T*>(kernel_),
            static_cast<const A*>(offset_), ModulatedOrNull(static_cast<const A*>(mask_))};
  }

 protected:
  PrimalsCall(Cursor& cursor, const ffi::Dictionary& attributes) {
    const ffi::AnyBuffer x = cursor.Operand(), kernel = cursor.Operand();
    const ffi::AnyBuffer offset = cursor.Operand(), mask = cursor.Operand();
    ReadGeometry(attributes);
    ReadProblem(x, kernel, offset, mask);
    arrays_ = Arrays();
    dtype_ = x.element_type();
    x_ = Checked("", arrays_[kX], x);
    kernel_ = Checked("", arrays_[kKernel], kernel);
    offset_ = Checked("", arrays_[kOffset], offset);
    mask_ = Checked("", arrays_[kMask], mask);
  }

  std::vector<OperatorCall::Array> arrays_;

 private:
  const void *x_, *kernel_, *offset_, *mask_;
};

}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_DEFORM_CONV2D_PRIMALS_CALL_H_
