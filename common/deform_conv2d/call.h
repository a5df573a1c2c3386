// SPDX-License-Identifier: MIT
// One XLA call of deformable convolution: the problem, read from its arguments and checked, and
// where its arrays are. Shared by the handlers of every backend.
#ifndef JAX_DCN_COMMON_DEFORM_CONV2D_CALL_H_
#define JAX_DCN_COMMON_DEFORM_CONV2D_CALL_H_

#include <cstdint>

#include "common/deform_conv2d/problem.h"
#include "common/ffi/operator_call.h"

namespace jax_dcn {

// The arrays of the operator, in the order of the attribute `wrt`; kX to kMask are the primals.
enum DeformConv2dArray : int64_t { kX, kKernel, kOffset, kMask, kBias, kY };

class DeformConv2dCall : public OperatorCall {
 public:
  using Operator = DeformConv2d;
  static constexpr int64_t kY = jax_dcn::kY;

  // Throws Refusal where the arguments do not fit together.
  DeformConv2dCall(Kind kind, const ffi::RemainingArgs& arguments,
                   const ffi::RemainingRets& results, const ffi::Dictionary& attributes) {
    constexpr int64_t kPrimals = kBias;
    ExpectOperands(arguments, kPrimals);
    ReadGeometry(attributes);
    ReadProblem(Argument(arguments, kX), Argument(arguments, kKernel), Argument(arguments, kOffset),
                Argument(arguments, kMask));
    Read(kind, Arrays(), kPrimals, arguments, results, attributes);
  }

  const DeformConv2dProblem& problem() const { return problem_; }

  // Multiplications of one product of all columns with the kernel.
  int64_t work() const {
    return problem_.pixels() * problem_.taps() * problem_.group_channels() * problem_.features;
  }

  template <typename T>
  DeformConv2dPrimals<T> Primals() const {
    using A = typename Accumulator<T>::type;
    return {Primal<T>(kX), Primal<T>(kKernel), Primal<A>(kOffset),
            ModulatedOrNull(Primal<A>(kMask)), Linear<T>(kBias)};
  }

  template <typename T>
  DeformConv2dTangents<T> Tangents() const {
    using A = typename Accumulator<T>::type;
    return {Linear<T>(kX), Linear<T>(kKernel), Linear<A>(kOffset),
            ModulatedOrNull(Linear<A>(kMask)), Linear<T>(kBias)};
  }

  template <typename T>
  DeformConv2dCotangents<T> Cotangents() const {
    using A = typename Accumulator<T>::type;
    return {Result<T>(kX), Result<T>(kKernel), Result<A>(kOffset),
            ModulatedOrNull(Result<A>(kMask)), Result<T>(kBias)};
  }

 protected:
  DeformConv2dCall() = default;

  // A mask without taps stands for none.
  template <typename A>
  A* ModulatedOrNull(A* data) const {
    return problem_.modulated ? data : nullptr;
  }

  void ReadGeometry(const ffi::Dictionary& attributes) {
    using Integers = ffi::Span<const int64_t>;
    ConvGeometry& geometry = problem_.geometry;
    const auto strides = Attribute<Integers>(attributes, "strides");
    const auto padding = Attribute<Integers>(attributes, "padding");
    const auto dilation = Attribute<Integers>(attributes, "kernel_dilation");
    if (strides.size() != 2 || padding.size() != 4 || dilation.size() != 2) {
      throw Refusal("strides, padding and kernel_dilation must have 2, 4 and 2 values");
    }
    for (int axis = 0; axis < 2; ++axis) {
      geometry.strides[axis] = InRange("strides", strides[axis], 1);
      geometry.kernel_dilation[axis] = InRange("kernel_dilation", dilation[axis], 1);
      for (int side = 0; side < 2; ++side) {
        geometry.padding[axis][side] = InRange("padding", padding[2 * axis + side], 0);
      }
    }
    geometry.feature_groups =
        InRange("feature_group_count", Attribute<int64_t>(attributes, "feature_group_count"), 1);
    geometry.legacy_boundary = Attribute<bool>(attributes, "legacy_boundary");
    problem_.float32_columns = Attribute<bool>(attributes, "float32_columns");
  }

  void ReadProblem(const ffi::AnyBuffer& x, const ffi::AnyBuffer& kernel,
                   const ffi::AnyBuffer& offset, const ffi::AnyBuffer& mask) {
    DeformConv2dProblem& p = problem_;
    const Shape image = ShapeOf(x), weights = ShapeOf(kernel);
    ExpectRank("x", image, 4);
    ExpectRank("kernel", weights, 4);
    ExpectRank("offset", ShapeOf(offset), 6);
    ExpectRank("mask", ShapeOf(mask), 5);
    p.batch = image[0], p.height = image[1], p.width = image[2], p.channels = image[3];
    p.kernel_height = weights[0], p.kernel_width = weights[1], p.features = weights[3];
    p.offset_groups = ShapeOf(offset)[3];
    p.modulated = ShapeOf(mask)[4] != 0;
    const int64_t groups = p.geometry.feature_groups;
    if (p.height < 1 || p.width < 1) throw Refusal("x must have pixels");
    if (p.kernel_height < 1 || p.kernel_width < 1 || p.channels < 1 || p.features < 1) {
      throw Refusal("x and kernel must have channels, and kernel taps");
    }
    if (p.channels % groups != 0 || p.features % groups != 0) {
      throw Refusal("feature_group_count must divide the channels of x and of kernel");
    }
    if (p.offset_groups < 1 || p.channels % p.offset_groups != 0) {
      throw Refusal("the groups of offset must divide the channels of x");
    }
    p.out_height = p.geometry.OutputSize(0, p.height, p.kernel_height);
    p.out_width = p.geometry.OutputSize(1, p.width, p.kernel_width);
    if (p.out_height < 1 || p.out_width < 1) throw Refusal("x is smaller than the kernel");
  }

  std::vector<OperatorCall::Array> Arrays() const {
    const DeformConv2dProblem& p = problem_;
    const int64_t mask_taps = p.modulated ? p.taps() : 0;
    return {
        {"x", {p.batch, p.height, p.width, p.channels}, false, true},
        {"kernel", {p.kernel_height, p.kernel_width, p.group_channels(), p.features}, false, true},
        {"offset", {p.batch, p.out_height, p.out_width, p.offset_groups, p.taps(), 2}, true, true},
        {"mask", {p.batch, p.out_height, p.out_width, p.offset_groups, mask_taps}, true, true},
        {"bias", {p.features}, false, true},
        {"y", {p.batch, p.out_height, p.out_width, p.features}, false, true}};
  }

  DeformConv2dProblem problem_;
};

}  // namespace jax_dcn

#endif  // JAX_DCN_COMMON_DEFORM_CONV2D_CALL_H_
