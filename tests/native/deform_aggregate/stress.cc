// SPDX-License-Identifier: MIT
// Stresses the kernels of deformable aggregation.

#include "tests/native/stress.h"

#include "cpu/deform_aggregate/kernels.h"

namespace jax_dcn {
namespace {

// A problem, and the maps that it points to.
struct Drawn {
  std::vector<AggregateMap> maps;
  DeformAggregateProblem problem = {};
};

void DrawProblem(Random& random, Drawn& drawn) {
  DeformAggregateProblem& p = drawn.problem;
  for (int64_t map = Draw(random, 1, 3); map > 0; --map) {
    const int64_t height = Draw(random, 1, 9), width = Draw(random, 1, 11);
    const int64_t samples = Draw(random, 0, 5);
    drawn.maps.push_back({height, width, p.pixels, p.samples, samples});
    p.pixels += height * width, p.samples += samples;
  }
  p.maps = drawn.maps.data(), p.map_count = drawn.maps.size();
  p.batch = Draw(random, 0, 3), p.queries = Draw(random, 0, 90), p.groups = Draw(random, 1, 4);
  p.channels = p.groups * Draw(random, 1, 70);
  p.weighted = p.samples > 0 && Draw(random, 0, 2) != 0;
  p.legacy_boundary = Draw(random, 0, 3) == 0;
  p.unit_square = Draw(random, 0, 1) == 0;
  p.whole_positions = Draw(random, 0, 3) == 0;
}

template <typename T>
struct Arrays {
  std::vector<T> x, positions, weights, y;
};

template <typename T>
Arrays<T> DrawArrays(Random& random, const DeformAggregateProblem& p) {
  const int64_t samples = p.SampleIndex(p.batch, 0, 0);
  return {DrawArray<T>(random, p.batch * p.image_size(), 1), DrawArray<T>(random, 2 * samples, 6),
          DrawArray<T>(random, p.weighted ? samples : 0, 1),
          DrawArray<T>(random, p.batch * p.queries * p.channels, 1)};
}

// Runs every kernel; `wanted` tells by its bits which tangents are given and which cotangents are
// wanted. A kernel that uses another one meets a null pointer.
template <typename T>
Results<T> Run(const Kernels<DeformAggregate, T>& kernels, Executor& executor,
               const DeformAggregateProblem& p, const Arrays<T>& at, const Arrays<T>& dot,
               int wanted) {
  const bool weights = p.weighted && wanted & 4;
  const DeformAggregatePrimals<T> primals = {at.x.data(), at.positions.data(),
                                             DataIf(p.weighted, at.weights)};
  const DeformAggregateTangents<T> tangents = {
      DataIf(wanted & 1, dot.x), DataIf(wanted & 2, dot.positions), DataIf(weights, dot.weights)};
  Arrays<T> grads = at;
  const DeformAggregateCotangents<T> cotangents = {DataIf(wanted & 1, grads.x),
                                                   DataIf(wanted & 2, grads.positions),
                                                   DataIf(weights, grads.weights)};
  std::vector<T> y(at.y.size()), y_dot(at.y.size());
  kernels.forward(executor, p, primals, y.data());
  kernels.jvp(executor, p, primals, tangents, y_dot.data());
  kernels.backward(executor, p, primals, dot.y.data(), cotangents);
  return {y, y_dot, grads.x, grads.positions, grads.weights};
}

template <typename T>
bool Agree(T, ThreadPool& pool, int seed) {
  Random random(seed);
  Drawn drawn;
  DrawProblem(random, drawn);
  Arrays<T> at = DrawArrays<T>(random, drawn.problem);
  const Arrays<T> dot = DrawArrays<T>(random, drawn.problem);
  if (Draw(random, 0, 1) == 0) Spoil(random, at.positions);
  const int wanted = seed % 2 ? 7 : static_cast<int>(Draw(random, 0, 7));
  return ThreadsAgree(pool, [&](Executor& executor) {
    return Run<T>(JAX_DCN_STRESSED::kDeformAggregate, executor, drawn.problem, at, dot, wanted);
  });
}

}  // namespace
}  // namespace jax_dcn

int main(int argc, char** argv) {
  return jax_dcn::StressMain(
      argc, argv, [](auto type, auto&... rest) { return jax_dcn::Agree(type, rest...); });
}
