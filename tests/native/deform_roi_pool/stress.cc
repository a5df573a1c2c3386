// SPDX-License-Identifier: MIT
// Stresses the kernels of deformable RoI pooling.

#include "tests/native/stress.h"

#include "cpu/deform_roi_pool/kernels.h"

namespace jax_dcn {
namespace {

DeformRoIPoolProblem DrawProblem(Random& random) {
  DeformRoIPoolProblem p;
  RoIGeometry& geometry = p.geometry;
  geometry.spatial_scale = Draw(random, 0, 9) / 4.0;
  geometry.offset_scale = Draw(random, -2, 4) / 10.0;
  geometry.aligned = Draw(random, 0, 1) != 0;
  geometry.samples = Draw(random, geometry.aligned ? 0 : 1, 4);
  geometry.group_size = Draw(random, 1, 3);
  p.displaced = Draw(random, 0, 3) != 0;
  p.modulated = Draw(random, 0, 1) != 0;
  for (int axis = 0; axis < 2; ++axis) {
    geometry.pooled_size[axis] = Draw(random, 1, 5);
    p.parts[axis] = p.displaced ? Draw(random, 1, 4) : 0;
  }
  p.classes = Draw(random, 1, 3);
  p.channels = geometry.group_size * geometry.group_size * p.classes * Draw(random, 1, 30);
  p.batch = Draw(random, 0, 3), p.height = Draw(random, 1, 17), p.width = Draw(random, 1, 21);
  p.regions = Draw(random, 0, 6);
  return p;
}

template <typename T>
struct Arrays {
  std::vector<T> x, rois, offset, mask, y;
};

template <typename T>
Arrays<T> DrawArrays(Random& random, const DeformRoIPoolProblem& p) {
  Arrays<T> arrays = {DrawArray<T>(random, p.batch * p.image_pixels() * p.channels, 1),
                      DrawArray<T>(random, p.regions * 5, 8),
                      DrawArray<T>(random, 2 * p.regions * p.parts[0] * p.parts[1] * p.classes, 2),
                      DrawArray<T>(random, p.modulated ? p.regions * p.bins() : 0, 1),
                      DrawArray<T>(random, p.regions * p.bins() * p.features(), 1)};
  for (int64_t region = 0; region < p.regions; ++region) {
    arrays.rois[5 * region] = static_cast<T>(Draw(random, -1, p.batch));
  }
  return arrays;
}

// Runs every kernel; `wanted` tells by its bits which tangents are given and which cotangents are
// wanted. A kernel that uses another one meets a null pointer.
template <typename T>
Results<T> Run(const Kernels<DeformRoIPool, T>& kernels, Executor& executor,
               const DeformRoIPoolProblem& p, const Arrays<T>& at, const Arrays<T>& dot,
               int wanted) {
  const bool offset = p.displaced && wanted & 2, mask = p.modulated && wanted & 4;
  const DeformRoIPoolPrimals<T> primals = {
      at.x.data(), at.rois.data(), DataIf(p.displaced, at.offset), DataIf(p.modulated, at.mask)};
  const DeformRoIPoolTangents<T> tangents = {DataIf(wanted & 1, dot.x), DataIf(offset, dot.offset),
                                             DataIf(mask, dot.mask)};
  Arrays<T> grads = at;
  const DeformRoIPoolCotangents<T> cotangents = {
      DataIf(wanted & 1, grads.x), DataIf(offset, grads.offset), DataIf(mask, grads.mask)};
  std::vector<T> y(at.y.size()), y_dot(at.y.size());
  kernels.forward(executor, p, primals, y.data());
  kernels.jvp(executor, p, primals, tangents, y_dot.data());
  kernels.backward(executor, p, primals, dot.y.data(), cotangents);
  return {y, y_dot, grads.x, grads.offset, grads.mask};
}

template <typename T>
bool Agree(T, ThreadPool& pool, int seed) {
  Random random(seed);
  const DeformRoIPoolProblem problem = DrawProblem(random);
  Arrays<T> at = DrawArrays<T>(random, problem);
  const Arrays<T> dot = DrawArrays<T>(random, problem);
  if (Draw(random, 0, 1) == 0) Spoil(random, at.offset);
  if (Draw(random, 0, 3) == 0) Spoil(random, at.rois);
  const int wanted = seed % 2 ? 7 : static_cast<int>(Draw(random, 0, 7));
  return ThreadsAgree(pool, [&](Executor& executor) {
    return Run<T>(JAX_DCN_STRESSED::kDeformRoIPool, executor, problem, at, dot, wanted);
  });
}

}  // namespace
}  // namespace jax_dcn

int main(int argc, char** argv) {
  return jax_dcn::StressMain(
      argc, argv, [](auto type, auto&... rest) { return jax_dcn::Agree(type, rest...); });
}
