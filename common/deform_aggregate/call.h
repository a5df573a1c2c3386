// SPDX-License-Identifier: MIT
// One XLA call of deformable aggregation: the problem, read from its arguments and checked, and
// where its arrays are. Shared by the handlers of every backend.
#ifndef JAX_DCN_COMMON_DEFORM_AGGREGATE_CALL_H_
#define JAX_DCN_COMMON_DEFORM_AGGREGATE_CALL_H_

#include <cstdint>
#include <limits>
#include <vector>

#include "common/deform_aggregate/problem.h"
#include "common/ffi/operator_call.h"

namespace jax_dcn {

class DeformAggregateCall : public OperatorCall {
 public:
  using Operator = DeformAggregate;

  // The arrays of the operator, in the order of the attribute `wrt`; all operands are primals.
  enum : int64_t { kX, kPositions, kWeights, kY };

  // Throws Refusal where the arguments do not fit together. `more_results` follow the results.
  DeformAggregateCall(Kind kind, const ffi::RemainingArgs& arguments,
                      const ffi::RemainingRets& results, const ffi::Dictionary& attributes,
                      size_t more_results = 0) {
    ExpectOperands(arguments, kY);
    ReadMaps(attributes);
    ReadProblem(ShapeOf(Argument(arguments, kX)), ShapeOf(Argument(arguments, kPositions)),
                ShapeOf(Argument(arguments, kWeights)));
    Read(kind, Arrays(), kY, arguments, results, attributes, more_results);
  }
  DeformAggregateCall(const DeformAggregateCall&) = delete;  // the problem points into the call

  const DeformAggregateProblem& problem() const { return problem_; }

  // Multiplications of the weighted sums.
  int64_t work() const {
    return 4 * problem_.batch * problem_.queries * problem_.samples * problem_.channels;
  }

  template <typename T>
  DeformAggregatePrimals<T> Primals() const {
    using A = typename Accumulator<T>::type;
    return {Primal<T>(kX), Primal<A>(kPositions), WeightedOrNull(Primal<A>(kWeights))};
  }

  template <typename T>
  DeformAggregateTangents<T> Tangents() const {
    using A = typename Accumulator<T>::type;
    return {Linear<T>(kX), Linear<A>(kPositions), WeightedOrNull(Linear<A>(kWeights))};
  }

  template <typename T>
  DeformAggregateCotangents<T> Cotangents() const {
    using A = typename Accumulator<T>::type;
    return {Result<T>(kX), Result<A>(kPositions), WeightedOrNull(Result<A>(kWeights))};
  }

 private:
  // Weights without samples stand for none.
  template <typename A>
  A* WeightedOrNull(A* data) const {
    return problem_.weighted ? data : nullptr;
  }

  void ReadMaps(const ffi::Dictionary& attributes) {
    using Integers = ffi::Span<const int64_t>;
    const auto shapes = Attribute<Integers>(attributes, "shapes");
    const auto points = Attribute<Integers>(attributes, "points");
    if (points.size() == 0 || shapes.size() != 2 * points.size()) {
      throw Refusal("shapes must have 2 values, and points one value, for each of the maps");
    }
    int64_t pixel = 0, sample = 0;
    for (size_t i = 0; i < points.size(); ++i) {
      const int64_t height = InRange("shapes", shapes[2 * i], 1);
      const int64_t width = InRange("shapes", shapes[2 * i + 1], 1);
      // Kernels count pixels in 32 bits.
      if (height * width > std::numeric_limits<int32_t>::max() - pixel) {
        throw Refusal("x must have less than 2**31 pixels");
      }
      maps_.push_back({height, width, pixel, sample, InRange("points", points[i], 0)});
      pixel += height * width;
      sample += points[i];
    }
    problem_.maps = maps_.data();
    problem_.map_count = maps_.size();
    problem_.pixels = pixel;
    problem_.samples = sample;
    problem_.legacy_boundary = Attribute<bool>(attributes, "legacy_boundary");
    problem_.unit_square = Attribute<bool>(attributes, "unit_square");
    problem_.whole_positions = Attribute<bool>(attributes, "whole_positions");
  }

  void ReadProblem(const Shape& x, const Shape& positions, const Shape& weights) {
    DeformAggregateProblem& p = problem_;
    ExpectRank("x", x, 3);
    ExpectRank("positions", positions, 5);
    ExpectRank("weights", weights, 4);
    p.batch = x[0], p.channels = x[2];
    p.queries = positions[1], p.groups = positions[2];
    p.weighted = weights[3] != 0;
    if (p.channels < 1) throw Refusal("x must have channels");
    if (p.groups < 1 || p.channels % p.groups != 0) {
      throw Refusal("the groups of positions must divide the channels of x");
    }
  }

  std::vector<Array> Arrays() const {
    const DeformAggregateProblem& p = problem_;
    const int64_t weights = p.weighted ? p.samples : 0;
    return {{"x", {p.batch, p.pixels, p.channels}, false, true},
            {"positions", {p.batch, p.queries, p.groups, p.samples, 2}, true, true},
            {"weights", {p.batch, p.queries, p.groups, weights}, true, true},
            {"y", {p.batch, p.queries, p.channels}, false, true}};
  }

  std::vector<AggregateMap> maps_;
  DeformAggregateProblem problem_;
};

}  // namespace jax_dcn

#endif  // JAX_DCN_COMMON_DEFORM_AGGREGATE_CALL_H_
