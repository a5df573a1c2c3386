// SPDX-License-Identifier: MIT
// Stresses the kernels of deformable convolution.

#include "tests/native/stress.h"

#include "cpu/deform_conv2d/kernels.h"
#include "cpu/runtime/tiles.h"

namespace jax_dcn {
namespace {

DeformConv2dProblem DrawProblem(Random& random) {
  DeformConv2dProblem p;
  for (;;) {
    ConvGeometry& geometry = p.geometry;
    geometry.feature_groups = Draw(random, 1, 3);
    geometry.legacy_boundary = Draw(random, 0, 3) == 0;
    for (int axis = 0; axis < 2; ++axis) {
      geometry.strides[axis] = Draw(random, 1, 3);
      geometry.kernel_dilation[axis] = Draw(random, 1, 2);
      for (int side = 0; side < 2; ++side) geometry.padding[axis][side] = Draw(random, 0, 3);
    }
    p.batch = Draw(random, 0, 3);
    p.height = Draw(random, 1, 19), p.width = Draw(random, 1, 23);
    p.kernel_height = Draw(random, 1, 4), p.kernel_width = Draw(random, 1, 4);
    p.offset_groups = Draw(random, 1, 3);
    p.channels = geometry.feature_groups * p.offset_groups * Draw(random, 1, 24);
    p.features = geometry.feature_groups * Draw(random, 1, 40);
    if (Draw(random, 0, 4) == 0) geometry.feature_groups = p.features = p.channels;  // depthwise
    p.modulated = Draw(random, 0, 3) != 0;
    p.out_height = geometry.OutputSize(0, p.height, p.kernel_height);
    p.out_width = geometry.OutputSize(1, p.width, p.kernel_width);
    if (p.out_height > 0 && p.out_width > 0) return p;
  }
}

template <typename T>
struct Arrays {
  std::vector<T> x, kernel, offset, mask, bias, y;
};

template <typename T>
Arrays<T> DrawArrays(Random& random, const DeformConv2dProblem& p) {
  const int64_t samples = p.SampleIndex(p.pixels(), 0, 0);
  return {DrawArray<T>(random, p.batch * p.image_pixels() * p.channels, 1),
          DrawArray<T>(random, p.taps() * p.group_channels() * p.features, 1),
          DrawArray<T>(random, 2 * samples, 4),
          DrawArray<T>(random, p.modulated ? samples : 0, 1),
          DrawArray<T>(random, p.features, 1),
          DrawArray<T>(random, p.pixels() * p.features, 1)};
}

// Runs every kernel; `wanted` tells by its bits which tangents are given and which cotangents are
// wanted. A kernel that uses another one meets a null pointer.
template <typename T>
Results<T> Run(const Kernels<DeformConv2d, T>& kernels, Executor& executor,
               const DeformConv2dProblem& p, const Arrays<T>& at, const Arrays<T>& dot,
               int wanted) {
  const bool mask = p.modulated && wanted & 8;
  const DeformConv2dPrimals<T> primals = {at.x.data(), at.kernel.data(), at.offset.data(),
                                          DataIf(p.modulated, at.mask), at.bias.data()};
  const DeformConv2dTangents<T> tangents = {
      DataIf(wanted & 1, dot.x), DataIf(wanted & 2, dot.kernel), DataIf(wanted & 4, dot.offset),
      DataIf(mask, dot.mask), DataIf(wanted & 16, dot.bias)};
  Arrays<T> grads = at;
  const DeformConv2dCotangents<T> cotangents = {
      DataIf(wanted & 1, grads.x), DataIf(wanted & 2, grads.kernel),
      DataIf(wanted & 4, grads.offset), DataIf(mask, grads.mask), DataIf(wanted & 16, grads.bias)};
  std::vector<T> y(at.y.size()), y_dot(at.y.size());
  kernels.forward(executor, p, primals, y.data());
  kernels.jvp(executor, p, primals, tangents, y_dot.data());
  kernels.backward(executor, p, primals, dot.y.data(), cotangents);
  return {y, y_dot, grads.x, grads.kernel, grads.offset, grads.mask, grads.bias};
}

template <typename T>
bool Agree(T, ThreadPool& pool, int seed) {
  Random random(seed);
  const DeformConv2dProblem problem = DrawProblem(random);
  Arrays<T> at = DrawArrays<T>(random, problem);
  const Arrays<T> dot = DrawArrays<T>(random, problem);
  if (Draw(random, 0, 1) == 0) Spoil(random, at.offset);
  const int wanted = seed % 2 ? 31 : static_cast<int>(Draw(random, 0, 31));
  return ThreadsAgree(pool, [&](Executor& executor) {
    return Run<T>(JAX_DCN_STRESSED::kDeformConv2d, executor, problem, at, dot, wanted);
  });
}

std::vector<BFloat16> Rounded(const std::vector<float>& values) {
  std::vector<BFloat16> rounded;
  for (float value : values) rounded.push_back(FromFloat<BFloat16>::Round(value));
  return rounded;
}

template <typename T>
std::vector<double> Widened(const std::vector<T>& values, bool absolute = false) {
  std::vector<double> wide;
  for (T value : values) wide.push_back(absolute ? std::abs(ToFloat(value)) : ToFloat(value));
  return wide;
}

// Whether each element is within the error that rounding explains: of columns and of the result, to
// bfloat16. `sizes` are the sums of the absolute values of the terms.
bool Accurate(const std::vector<BFloat16>& actual, const std::vector<double>& expected,
              const std::vector<double>& sizes, bool rounded_columns) {
  const double unit = 0x1p-8, least = 1e-30, sum = 1e-5;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double columns = (rounded_columns ? unit : 0) + sum;
    const double bound = (unit + sum) * (std::abs(expected[i]) + columns * sizes[i]);
    if (!(std::abs(ToFloat(actual[i]) - expected[i]) <= bound + columns * sizes[i] + least)) {
      return false;
    }
  }
  return true;
}

// y and the gradients of x and kernel. Of absolute values: what their terms sum to in size.
template <typename T, typename A = typename Accumulator<T>::type>
Results<T> ValueAndGradients(Executor& executor, const DeformConv2dProblem& p,
                             const std::vector<T>& x, const std::vector<T>& kernel,
                             const std::vector<A>& offset, const std::vector<A>& mask,
                             const std::vector<T>& grad_y) {
  const Kernels<DeformConv2d, T>& kernels = JAX_DCN_STRESSED::kDeformConv2d;
  const DeformConv2dPrimals<T> primals = {x.data(), kernel.data(), offset.data(),
                                          DataIf(p.modulated, mask)};
  std::vector<T> y(grad_y.size()), grad_x(x.size()), grad_kernel(kernel.size());
  kernels.forward(executor, p, primals, y.data());
  kernels.backward(executor, p, primals, grad_y.data(),
                   {grad_x.data(), grad_kernel.data(), nullptr, nullptr, nullptr});
  return {y, grad_x, grad_kernel};
}

bool BFloat16IsAccurate(ThreadPool& pool, int seed) {
  Random random(seed);
  DeformConv2dProblem p = DrawProblem(random);
  Arrays<float> at = DrawArrays<float>(random, p);
  // Positions that float holds exactly, so that the samples are those of double.
  for (float& value : at.offset) value = std::round(value * 256) / 256;
  const auto x = Rounded(at.x), kernel = Rounded(at.kernel), grad_y = Rounded(at.y);
  const auto offset = Widened(at.offset), mask = Widened(at.mask);
  Executor executor(pool, 1);
  const auto exact = ValueAndGradients<double>(executor, p, Widened(x), Widened(kernel), offset,
                                               mask, Widened(grad_y));
  const auto sizes =
      ValueAndGradients<double>(executor, p, Widened(x, true), Widened(kernel, true), offset,
                                Widened(at.mask, true), Widened(grad_y, true));
  for (bool float32_columns : {false, true}) {
    p.float32_columns = float32_columns;
    const auto actual =
        ValueAndGradients<BFloat16>(executor, p, x, kernel, at.offset, at.mask, grad_y);
    for (size_t i = 0; i < actual.size(); ++i) {
      if (!Accurate(actual[i], exact[i], sizes[i], !float32_columns)) {
        std::printf("problem %d: result %zu in bfloat16 is not accurate\n", seed, i);
        return false;
      }
    }
  }
  return true;
}

}  // namespace
}  // namespace jax_dcn

int main(int argc, char** argv) {
  return jax_dcn::StressMain(argc, argv, [](auto type, auto& pool, int seed) {
#if defined(JAX_DCN_EMULATE_AVX512_BF16)
    jax_dcn::JAX_DCN_STRESSED::emulate_tiles = seed % 2;
#endif
    return jax_dcn::Agree(type, pool, seed) && jax_dcn::BFloat16IsAccurate(pool, seed);
  });
}
