// SPDX-License-Identifier: MIT
// One XLA call of deformable RoI pooling: the problem, read from its arguments and checked, and
// where its arrays are. Shared by the handlers of every backend.
#ifndef JAX_DCN_COMMON_DEFORM_ROI_POOL_CALL_H_
#define JAX_DCN_COMMON_DEFORM_ROI_POOL_CALL_H_

#include <cmath>
#include <cstdint>
#include <vector>

#include "common/deform_roi_pool/problem.h"
#include "common/ffi/operator_call.h"

namespace jax_dcn {

class DeformRoIPoolCall : public OperatorCall {
 public:
  using Operator = DeformRoIPool;

  // The arrays of the operator, in the order of the attribute `wrt`; all operands are primals.
  enum : int64_t { kX, kRois, kOffset, kMask, kY };

  // Throws Refusal where the arguments do not fit together.
  DeformRoIPoolCall(Kind kind, const ffi::RemainingArgs& arguments,
                    const ffi::RemainingRets& results, const ffi::Dictionary& attributes) {
    ExpectOperands(arguments, kY);
    ReadGeometry(attributes);
    ReadProblem(ShapeOf(Argument(arguments, kX)), ShapeOf(Argument(arguments, kRois)),
                ShapeOf(Argument(arguments, kOffset)), ShapeOf(Argument(arguments, kMask)));
    Read(kind, Arrays(), kY, arguments, results, attributes);
  }

  const DeformRoIPoolProblem& problem() const { return problem_; }

  // Multiplications, if every sample read pixels of its own.
  int64_t work() const {
    const int64_t samples = problem_.geometry.samples > 0 ? problem_.geometry.samples : 4;
    return problem_.regions * problem_.bins() * problem_.features() * samples * samples;
  }

  template <typename T, typename A = typename Accumulator<T>::type>
  DeformRoIPoolPrimals<T> Primals() const {
    return {Primal<T>(kX), Primal<A>(kRois), DisplacedOrNull(Primal<A>(kOffset)),
            ModulatedOrNull(Primal<A>(kMask))};
  }

  template <typename T, typename A = typename Accumulator<T>::type>
  DeformRoIPoolTangents<T> Tangents() const {
    return {Linear<T>(kX), DisplacedOrNull(Linear<A>(kOffset)), ModulatedOrNull(Linear<A>(kMask))};
  }

  template <typename T, typename A = typename Accumulator<T>::type>
  DeformRoIPoolCotangents<T> Cotangents() const {
    return {Result<T>(kX), DisplacedOrNull(Result<A>(kOffset)), ModulatedOrNull(Result<A>(kMask))};
  }

 private:
  // An offset without parts stands for none.
  template <typename A>
  A* DisplacedOrNull(A* data) const {
    return problem_.displaced ? data : nullptr;
  }

  // A mask without bins stands for none.
  template <typename A>
  A* ModulatedOrNull(A* data) const {
    return problem_.modulated ? data : nullptr;
  }

  void ReadGeometry(const ffi::Dictionary& attributes) {
    RoIGeometry& geometry = problem_.geometry;
    geometry.spatial_scale = Finite("spatial_scale", attributes);
    geometry.offset_scale = Finite("offset_scale", attributes);
    const auto pooled = Attribute<ffi::Span<const int64_t>>(attributes, "pooled_size");
    if (pooled.size() != 2) throw Refusal("pooled_size must have 2 values");
    for (int axis = 0; axis < 2; ++axis) {
      geometry.pooled_size[axis] = InRange("pooled_size", pooled[axis], 1);
    }
    constexpr int64_t kMostSamples = 1 << 12;  // the pixels of their grid are kept in memory
    geometry.samples = InRange("samples", Attribute<int64_t>(attributes, "samples"), 0);
    if (geometry.samples > kMostSamples) {
      throw Refusal("samples must be at most " + std::to_string(kMostSamples));
    }
    geometry.group_size = InRange("group_size", Attribute<int64_t>(attributes, "group_size"), 1);
    geometry.aligned = Attribute<bool>(attributes, "aligned");
    if (geometry.samples == 0 && !geometry.aligned) {
      throw Refusal("samples must be at least 1 unless aligned");
    }
  }

  static double Finite(const char* name, const ffi::Dictionary& attributes) {
    const double value = Attribute<double>(attributes, name);
    if (!std::isfinite(value)) throw Refusal(std::string(name) + " must be finite");
    return value;
  }

  void ReadProblem(const Shape& x, const Shape& rois, const Shape& offset, const Shape& mask) {
    DeformRoIPoolProblem& p = problem_;
    ExpectRank("x", x, 4);
    ExpectRank("rois", rois, 2);
    ExpectRank("offset", offset, 5);
    ExpectRank("mask", mask, 3);
    p.batch = x[0], p.height = x[1], p.width = x[2], p.channels = x[3];
    p.regions = rois[0];
    p.parts[0] = offset[1], p.parts[1] = offset[2], p.classes = offset[3];
    p.displaced = p.parts[0] != 0 && p.parts[1] != 0;
    p.modulated = mask[1] != 0;
    if (p.height < 1 || p.width < 1 || p.channels < 1) {
      throw Refusal("x must have pixels and channels");
    }
    constexpr int64_t kMostPixels = 1 << 24;  // along an axis: float32 counts no further
    if (p.height > kMostPixels || p.width > kMostPixels) {
      throw Refusal("x must have at most 2^24 pixels along an axis");
    }
    if (p.channels % p.cells() != 0) {
      throw Refusal("the square of group_size must divide the channels of x");
    }
    if (p.classes < 1 || p.features() % p.classes != 0) {
      throw Refusal("the classes of offset must divide the features");
    }
  }

  std::vector<Array> Arrays() const {
    const DeformRoIPoolProblem& p = problem_;
    const int64_t height = p.geometry.pooled_size[0], width = p.geometry.pooled_size[1];
    return {{"x", {p.batch, p.height, p.width, p.channels}, false, true},
            {"rois", {p.regions, 5}, true, false},
            {"offset", {p.regions, p.parts[0], p.parts[1], p.classes, 2}, true, true},
            {"mask", {p.regions, p.modulated ? height : 0, p.modulated ? width : 0}, true, true},
            {"y", {p.regions, height, width, p.features()}, false, true}};
  }

  DeformRoIPoolProblem problem_;
};

}  // namespace jax_dcn

#endif  // JAX_DCN_COMMON_DEFORM_ROI_POOL_CALL_H_
