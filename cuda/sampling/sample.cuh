// SPDX-License-Identifier: MIT
// Samples of an image: located once for all channels, kept in shared memory, read 16 bytes
// of channels at a time.
#ifndef JAX_DCN_CUDA_SAMPLING_SAMPLE_CUH_
#define JAX_DCN_CUDA_SAMPLING_SAMPLE_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "common/deform_conv2d/problem.h"
#include "cuda/runtime/packed.cuh"

namespace jax_dcn {

// Where a sample reads. An image has less than 2^31 elements.
struct alignas(16) SampleCorners {
  int32_t corner[kCorners];  // the pixel's first element in the image, or kOutside

  template <typename A>
  __device__ __forceinline__ void SetCorners(const BilinearSample<A>& read, int64_t channels) {
    for (int i = 0; i < kCorners; ++i) {
      const bool outside = read.corner[i] == kOutside;
      corner[i] = static_cast<int32_t>(outside ? kOutside : read.corner[i] * channels);
    }
  }
};

// And what it makes of that.
struct Sample : SampleCorners {
  float weight[kCorners];  // with the mask in it
};

// Outside its image, and worth nothing.
__device__ __forceinline__ SampleCorners NoCorners() {
  return {{kOutside, kOutside, kOutside, kOutside}};
}
__device__ __forceinline__ Sample NoSample() { return {NoCorners(), {0, 0, 0, 0}}; }

template <typename T>
__device__ inline Sample LocateSample(const DeformConv2dProblem& problem,
                                      const DeformConv2dPrimals<T>& primals, int64_t pixel,
                                      int group, int tap) {
  const int64_t index = problem.SampleIndex(pixel, group, tap);
  const int tap_y = tap / static_cast<int>(problem.kernel_width);
  const int tap_x = tap - tap_y * static_cast<int>(problem.kernel_width);
  const BilinearSample<float> read =
      SampleOf(problem, OutputPixelAt(problem, pixel), tap_y, tap_x, primals.offset + 2 * index);
  const auto weights = ValueWeights(read, primals.mask == nullptr ? 1.0f : primals.mask[index]);
  Sample sample;
  sample.SetCorners(read, problem.channels);
  for (int i = 0; i < kCorners; ++i) sample.weight[i] = weights.corner[i];
  return sample;
}

// The same channels of the four corners.
template <typename T>
struct CornerChannels {
  Packed<T> corner[kCorners];
};

// Reads the channels that start at `channels` in the image's first pixel. Corners outside are not
// read: they are zeros.
template <typename T>
__device__ __forceinline__ CornerChannels<T> LoadCorners(const SampleCorners& sample,
                                                         const T* channels) {
  CornerChannels<T> corners;
#pragma unroll
  for (int i = 0; i < kCorners; ++i) {
    const int32_t corner = sample.corner[i];
    corners.corner[i].bits = make_uint4(0, 0, 0, 0);
    if (corner != kOutside) corners.corner[i] = LoadGlobal(channels + corner);
  }
  return corners;
}

template <typename T>
__device__ __forceinline__ Unpacked<T> Interpolate(const Sample& sample,
                                                   const CornerChannels<T>& corners) {
  Unpacked<T> sum = {};
#pragma unroll
  for (int i = 0; i < kCorners; ++i) {
    const Unpacked<T> values = Unpack(corners.corner[i]);
#pragma unroll
    for (int j = 0; j < Packed<T>::kSize; ++j) sum.value[j] += sample.weight[i] * values.value[j];
  }
  return sum;
}

}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_SAMPLING_SAMPLE_CUH_
