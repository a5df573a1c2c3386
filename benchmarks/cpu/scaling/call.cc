// SPDX-License-Identifier: MIT
// Calls the kernels of deformable convolution several times, as training or the forward pass does,
// and prints the nanoseconds of each.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <string>
#include <vector>

#include "cpu/deform_conv2d/kernels.h"
#include "tests/native/stress.h"

namespace jax_dcn {
namespace {

using Arguments = std::vector<int64_t>;

// Arrays start at a line of cache, as XLA's do.
template <typename T>
struct OnLine {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};

  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLine)); }
  void deallocate(T* memory, size_t) { ::operator delete(memory, kLine); }
  bool operator==(const OnLine&) const { return true; }
  bool operator!=(const OnLine&) const { return false; }
};
using Array = std::vector<float, OnLine<float>>;

Array Draw(Random& random, int64_t size, float spread) {
  const std::vector<float> drawn = DrawArray<float>(random, size, spread);
  return Array(drawn.begin(), drawn.end());
}

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
    x = Draw(random, p.batch * p.image_pixels() * p.channels, 1);
    kernel = Draw(random, p.taps() * p.group_channels() * p.features, 1);
    offset = Draw(random, 2 * samples, 2);
    mask = Draw(random, p.modulated ? samples : 0, 1);
    bias = Draw(random, p.features, 1);
    y = grad_y = Draw(random, p.pixels() * p.features, 1);
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
                      p.modulated ? grad_mask.data() : nullptr, grad_bias.data()});
  }

  DeformConv2dPrimals<float> primals() const {
    return {x.data(), kernel.data(), offset.data(), p.modulated ? mask.data() : nullptr,
            bias.data()};
  }

  const Kernels<DeformConv2d, float>& kernels = JAX_DCN_ISA::kDeformConv2d;
  const DeformConv2dProblem p;
  Array x, kernel, offset, mask, bias, y;
  Array grad_x, grad_kernel, grad_offset, grad_mask, grad_bias, grad_y;
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
