// SPDX-License-Identifier: MIT
// Calls the kernels of deformable convolution several times, as training or the forward pass does,
// and prints the nanoseconds of each.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "cpu/deform_conv2d/kernels.h"
#include "tests/native/stress.h"

namespace jax_dcn {
namespace {

using Arguments = std::vector<int64_t>;

DeformConv2dProblem Problem(const Arguments& a) {
  DeformConv2dProblem p = {a[0], a[1], a[2], a[3], 0, 0, a[4], a[5], a[6], a[7], a[8] != 0, {}};
  p.geometry = {{a[9], a[10]}, {{a[11], a[12]}, {a[13], a[14]}}, {a[15], a[16]}, a[17], false};
  p.out_height = p.geometry.OutputSize(0, p.height, p.kernel_height);
  p.out_width = p.geometry.OutputSize(1, p.width, p.kernel_width);
  return p;
}

struct Call {
  explicit Call(const DeformConv2dProblem& problem) : p(problem) {
    Random random(0);
    const int64_t samples = p.SampleIndex(p.pixels(), 0, 0);
    x = DrawArray<float>(random, p.batch * p.image_pixels() * p.channels, 1);
    kernel = DrawArray<float>(random, p.taps() * p.group_channels() * p.features, 1);
    offset = DrawArray<float>(random, 2 * samples, 2);
    mask = DrawArray<float>(random, p.modulated ? samples : 0, 1);
    bias = DrawArray<float>(random, p.features, 1);
    y = grad_y = DrawArray<float>(random, p.pixels() * p.features, 1);
    grad_x = x, grad_kernel = kernel, grad_offset = offset, grad_mask = mask, grad_bias = bias;
  }

  void Forward(ThreadPool& pool, int64_t workers) {
    Executor executor(pool, workers);
    kernels.forward(executor, p, primals(), y.data());
  }

  void Backward(ThreadPool& pool, int64_t workers) {
    Executor executor(pool, workers);
    kernels.backward(executor, p, primals(), grad_y.data(),
                     {grad_x.data(), grad_kernel.data(), grad_offset.data(),
                      DataIf(p.modulated, grad_mask), grad_bias.data()});
  }

  DeformConv2dPrimals<float> primals() const {
    return {x.data(), kernel.data(), offset.data(), DataIf(p.modulated, mask), bias.data()};
  }

  const Kernels<DeformConv2d, float>& kernels = JAX_DCN_ISA::kDeformConv2d;
  const DeformConv2dProblem p;
  std::vector<float> x, kernel, offset, mask, bias, y;
  std::vector<float> grad_x, grad_kernel, grad_offset, grad_mask, grad_bias, grad_y;
};

}  // namespace
}  // namespace jax_dcn

// mode, workers, threads of the pool, calls, and the numbers of the problem
int main(int argc, char** argv) {
  using namespace jax_dcn;
  const bool training = std::string(argv[1]) == "training";
  const int64_t workers = std::atoll(argv[2]);
  StandardThreadPool pool(std::atoi(argv[3]));
  Arguments numbers;
  for (int i = 5; i < argc; ++i) numbers.push_back(std::atoll(argv[i]));
  Call call(Problem(numbers));
  for (int i = 0; i < std::atoi(argv[4]); ++i) {
    const auto start = std::chrono::steady_clock::now();
    call.Forward(pool, workers);
    if (training) call.Backward(pool, workers);
    const std::chrono::nanoseconds span = std::chrono::steady_clock::now() - start;
    std::printf("call %ld\n", static_cast<long>(span.count()));
  }
}
