// SPDX-License-Identifier: MIT
// One XLA call of deformable convolution: the problem, read from its arguments and checked, and
// where its arrays are. Shared by the handlers of every backend.
#ifndef JAX_DCN_COMMON_DEFORM_CONV2D_CALL_H_
#define JAX_DCN_COMMON_DEFORM_CONV2D_CALL_H_

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "common/deform_conv2d.h"
#include "common/handler.h"

namespace jax_dcn {

// The arrays of the operator, in the order of the attribute `wrt`.
enum Array : int64_t { kX, kKernel, kOffset, kMask, kBias, kY, kArrays };

// Every call has the operands x, kernel, offset and mask. Those that follow, and the results, are:
//   forward    bias                         -> y
//   jvp        tangents of those in `wrt`   -> tangent of y
//   backward   cotangent of y               -> cotangents of those in `wrt`
class DeformConv2dCall {
 public:
  enum Kind { kForward, kJvp, kBackward };

  // Throws Refusal where the arguments do not fit together.
  DeformConv2dCall(Kind kind, const ffi::RemainingArgs& arguments,
                   const ffi::RemainingRets& results, const ffi::Dictionary& attributes) {
    if (arguments.size() < 4) throw Refusal("expected at least 4 operands");
    ReadGeometry(attributes);
    ReadProblem(Argument(arguments, kX), Argument(arguments, kKernel), Argument(arguments, kOffset),
                Argument(arguments, kMask));
    for (int64_t i = kX; i <= kMask; ++i) {
      primals_[i] = Checked("", static_cast<Array>(i), Argument(arguments, i));
    }
    const auto wrt = kind == kForward ? std::vector<Array>() : ReadWrt(attributes);
    ReadLinear(kind == kForward ? std::vector<Array>{kBias}
               : kind == kJvp   ? wrt
                                : std::vector<Array>{kY},
               arguments);
    ReadResults(kind == kBackward ? wrt : std::vector<Array>{kY}, results);
  }

  const DeformConv2dProblem& problem() const { return problem_; }
  ffi::DataType dtype() const { return dtype_; }

  // Multiplications of one product of all columns with the kernel.
  int64_t work() const {
    return problem_.pixels() * problem_.taps() * problem_.group_channels() * problem_.features;
  }

  template <typename T>
  DeformConv2dPrimals<T> Primals() const {
    using A = typename Accumulator<T>::type;
    return {static_cast<const T*>(primals_[kX]), static_cast<const T*>(primals_[kKernel]),
            static_cast<const A*>(primals_[kOffset]), ModulatedOrNull<const A>(primals_[kMask])};
  }

  template <typename T>
  DeformConv2dTangents<T> Tangents() const {
    using A = typename Accumulator<T>::type;
    return {static_cast<const T*>(linear_[kX]), static_cast<const T*>(linear_[kKernel]),
            static_cast<const A*>(linear_[kOffset]), ModulatedOrNull<const A>(linear_[kMask]),
            static_cast<const T*>(linear_[kBias])};
  }

  template <typename T>
  DeformConv2dCotangents<T> Cotangents() const {
    using A = typename Accumulator<T>::type;
    return {static_cast<T*>(results_[kX]), static_cast<T*>(results_[kKernel]),
            static_cast<A*>(results_[kOffset]), ModulatedOrNull<A>(results_[kMask]),
            static_cast<T*>(results_[kBias])};
  }

  // Operands after the fourth, by the array that they are, or are the tangent or cotangent of.
  template <typename T>
  const T* Linear(Array array) const {
    return static_cast<const T*>(linear_[array]);
  }

  template <typename T>
  T* Result(Array array) const {
    return static_cast<T*>(results_[array]);
  }

 private:
  static const char* Name(Array array) {
    static const char* const kNames[kArrays] = {"x", "kernel", "offset", "mask", "bias", "y"};
    return kNames[array];
  }

  static ffi::AnyBuffer Argument(const ffi::RemainingArgs& arguments, int64_t index) {
    return ValueOf("operand " + std::to_string(index), arguments.get<ffi::AnyBuffer>(index));
  }

  // A mask without taps stands for none.
  template <typename A, typename V>
  A* ModulatedOrNull(V* data) const {
    return problem_.modulated ? static_cast<A*>(data) : nullptr;
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
  }

  static int64_t InRange(const char* name, int64_t value, int64_t least) {
    if (value < least || value > std::numeric_limits<int32_t>::max()) {
      throw Refusal(std::string(name) + " must be at least " + std::to_string(least) +
                    " and fit into 32 bits, got " + std::to_string(value));
    }
    return value;
  }

  void ReadProblem(const ffi::AnyBuffer& x, const ffi::AnyBuffer& kernel,
                   const ffi::AnyBuffer& offset, const ffi::AnyBuffer& mask) {
    DeformConv2dProblem& p = problem_;
    const Shape image = ShapeOf(x), weights = ShapeOf(kernel);
    ExpectRank("x", image, 4);
    ExpectRank("kernel", weights, 4);
    ExpectRank("offset", ShapeOf(offset), 6);
    ExpectRank("mask", ShapeOf(mask), 5);
    dtype_ = x.element_type();
    p.batch = image[0], p.height = image[1], p.width = image[2], p.channels = image[3];
    p.kernel_height = weights[0], p.kernel_width = weights[1], p.features = weights[3];
    p.offset_groups = ShapeOf(offset)[3];
    p.modulated = ShapeOf(mask)[4] != 0;
    const int64_t groups = p.geometry.feature_groups;
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

  Shape ShapeOfArray(Array array) const {
    const DeformConv2dProblem& p = problem_;
    switch (array) {
      case kX:
        return {p.batch, p.height, p.width, p.channels};
      case kKernel:
        return {p.kernel_height, p.kernel_width, p.group_channels(), p.features};
      case kOffset:
        return {p.batch, p.out_height, p.out_width, p.offset_groups, p.taps(), 2};
      case kMask:
        return {p.batch, p.out_height, p.out_width, p.offset_groups, p.modulated ? p.taps() : 0};
      case kBias:
        return {p.features};
      default:
        return {p.batch, p.out_height, p.out_width, p.features};
    }
  }

  void* Checked(const char* prefix, Array array, const ffi::AnyBuffer& buffer) const {
    const bool wide = array == kOffset || array == kMask;
    const ffi::DataType accumulator =
        dtype_ == ffi::DataType::F64 ? ffi::DataType::F64 : ffi::DataType::F32;
    Expect(prefix + std::string(Name(array)), buffer, ShapeOfArray(array),
           wide ? accumulator : dtype_);
    return buffer.untyped_data();
  }

  static std::vector<Array> ReadWrt(const ffi::Dictionary& attributes) {
    std::vector<Array> arrays;
    bool seen[kY] = {};
    for (int64_t index : Attribute<ffi::Span<const int64_t>>(attributes, "wrt")) {
      if (index < 0 || index >= kY || seen[index]) {
        throw Refusal("wrt must be indices of operands, each once");
      }
      seen[index] = true;
      arrays.push_back(static_cast<Array>(index));
    }
    return arrays;
  }

  void ReadLinear(const std::vector<Array>& arrays, const ffi::RemainingArgs& arguments) {
    if (arguments.size() != 4 + arrays.size()) {
      throw Refusal("expected " + std::to_string(4 + arrays.size()) + " operands, got " +
                    std::to_string(arguments.size()));
    }
    for (size_t i = 0; i < arrays.size(); ++i) {
      linear_[arrays[i]] = Checked("operand for ", arrays[i], Argument(arguments, 4 + i));
    }
  }

  void ReadResults(const std::vector<Array>& arrays, const ffi::RemainingRets& results) {
    if (results.size() != arrays.size()) {
      throw Refusal("expected " + std::to_string(arrays.size()) + " results, got " +
                    std::to_string(results.size()));
    }
    for (size_t i = 0; i < arrays.size(); ++i) {
      ffi::Result<ffi::AnyBuffer> result = ValueOf("result", results.get<ffi::AnyBuffer>(i));
      results_[arrays[i]] = Checked("result for ", arrays[i], *result);
    }
  }

  DeformConv2dProblem problem_;
  ffi::DataType dtype_;
  const void* primals_[kArrays] = {};
  const void* linear_[kArrays] = {};
  void* results_[kArrays] = {};
};

}  // namespace jax_dcn

#endif  // JAX_DCN_COMMON_DEFORM_CONV2D_CALL_H_
