// SPDX-License-Identifier: MIT
// Runs the CPU kernels on random problems, for sanitizers to watch: arrays are of exactly the size
// that the problem says, offsets reach outside and hold infinities and NaNs, and several threads
// work. Fails if the results of one thread and of several differ in a bit.

#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <queue>
#include <random>
#include <thread>
#include <vector>

#include "cpu/deform_conv2d/kernels.h"

namespace jax_dcn {
namespace {

class StandardThreadPool final : public ThreadPool {
 public:
  explicit StandardThreadPool(int threads) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Run(); });
  }
  ~StandardThreadPool() override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopped_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  int64_t num_threads() const override { return threads_.size(); }
  void Schedule(std::function<void()> task) override {
    std::lock_guard<std::mutex> lock(mutex_);
    tasks_.push(std::move(task));
    changed_.notify_one();
  }

 private:
  void Run() {
    for (;;) {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [this] { return stopped_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      auto task = std::move(tasks_.front());
      tasks_.pop();
      lock.unlock();
      task();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::queue<std::function<void()>> tasks_;
  bool stopped_ = false;
  std::vector<std::thread> threads_;
};

using Random = std::mt19937;

int64_t Draw(Random& random, int64_t least, int64_t most) {
  return std::uniform_int_distribution<int64_t>(least, most)(random);
}

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
std::vector<T> DrawArray(Random& random, int64_t size, T spread) {
  std::vector<T> array(size);
  for (T& value : array) value = std::normal_distribution<T>(0, spread)(random);
  return array;
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

template <typename T>
void Spoil(Random& random, std::vector<T>& offset) {
  const T values[] = {INFINITY, -INFINITY, NAN, T(1e30), T(-1e30), T(-1), T(1e-42), T(0)};
  for (T& value : offset) {
    if (Draw(random, 0, 9) == 0) value = values[Draw(random, 0, 7)];
  }
}

// What each subset of derivatives writes; those not in `wanted` must not be touched.
template <typename T>
Arrays<T> Run(const DeformConv2dKernels<T>& kernels, Executor& executor,
              const DeformConv2dProblem& p, const Arrays<T>& at, const Arrays<T>& dot, int wanted,
              std::vector<T>& y, std::vector<T>& y_dot) {
  const auto data = [](const std::vector<T>& array, bool want) {
    return want ? array.data() : nullptr;
  };
  const DeformConv2dPrimals<T> primals = {at.x.data(), at.kernel.data(), at.offset.data(),
                                          p.modulated ? at.mask.data() : nullptr};
  const DeformConv2dTangents<T> tangents = {
      data(dot.x, wanted & 1), data(dot.kernel, wanted & 2), data(dot.offset, wanted & 4),
      data(dot.mask, p.modulated && wanted & 8), data(dot.bias, wanted & 16)};
  Arrays<T> grads = at;
  const auto result = [](std::vector<T>& array, bool want) {
    return want ? array.data() : nullptr;
  };
  const DeformConv2dCotangents<T> cotangents = {
      result(grads.x, wanted & 1), result(grads.kernel, wanted & 2),
      result(grads.offset, wanted & 4), result(grads.mask, p.modulated && wanted & 8),
      result(grads.bias, wanted & 16)};
  y.resize(at.y.size()), y_dot.resize(at.y.size());
  kernels.forward(executor, p, primals, at.bias.data(), y.data());
  kernels.jvp(executor, p, primals, tangents, y_dot.data());
  kernels.backward(executor, p, primals, dot.y.data(), cotangents);
  return grads;
}

template <typename T>
bool SameBits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || !std::memcmp(a.data(), b.data(), a.size() * sizeof(T)));
}

template <typename T>
bool SameBits(const Arrays<T>& a, const Arrays<T>& b) {
  return SameBits(a.x, b.x) && SameBits(a.kernel, b.kernel) && SameBits(a.offset, b.offset) &&
         SameBits(a.mask, b.mask) && SameBits(a.bias, b.bias);
}

template <typename T>
bool Stress(const DeformConv2dKernels<T>& kernels, ThreadPool& pool, int seed) {
  Random random(seed);
  const DeformConv2dProblem problem = DrawProblem(random);
  Arrays<T> at = DrawArrays<T>(random, problem);
  const Arrays<T> dot = DrawArrays<T>(random, problem);
  if (Draw(random, 0, 1) == 0) Spoil(random, at.offset);
  const int wanted = seed % 2 ? 31 : static_cast<int>(Draw(random, 0, 31));
  Executor one(pool, 1), many(pool, pool.num_threads());
  std::vector<T> y[2], y_dot[2];
  const Arrays<T> serial = Run(kernels, one, problem, at, dot, wanted, y[0], y_dot[0]);
  const Arrays<T> parallel = Run(kernels, many, problem, at, dot, wanted, y[1], y_dot[1]);
  return SameBits(serial, parallel) && SameBits(y[0], y[1]) && SameBits(y_dot[0], y_dot[1]);
}

int Main(int problems) {
  StandardThreadPool pool(4);
  for (int seed = 0; seed < problems; ++seed) {
    const bool same = seed % 3 ? Stress(JAX_DCN_STRESSED::kDeformConv2dFloat, pool, seed)
                               : Stress(JAX_DCN_STRESSED::kDeformConv2dDouble, pool, seed);
    if (!same) {
      std::printf("problem %d: the number of threads changed the result\n", seed);
      return 1;
    }
  }
  std::printf("%d problems\n", problems);
  return 0;
}

}  // namespace
}  // namespace jax_dcn

int main(int argc, char** argv) { return jax_dcn::Main(argc > 1 ? std::atoi(argv[1]) : 100); }
