// SPDX-License-Identifier: MIT
// Samples of images: located once for all channels, kept in shared memory, read some neighbouring
// channels at a time.
#ifndef JAX_DCN_CUDA_SAMPLING_SAMPLE_CUH_
#define JAX_DCN_CUDA_SAMPLING_SAMPLE_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "common/sampling/bilinear.h"
#include "cuda/runtime/vector.cuh"

namespace jax_dcn {

// The pixels that a sample reads: indices in an array of pixels, or kOutside.
struct alignas(16) SampleCorners {
  int32_t pixel[kCorners];
};

template <typename A>
struct alignas(16) Sample : SampleCorners {
  A weight[kCorners];
};

// The sample that reads nothing.
__device__ __forceinline__ SampleCorners NoCorners() {
  return {{kOutside, kOutside, kOutside, kOutside}};
}
template <typename A>
__device__ __forceinline__ Sample<A> NoSample() {
  return {NoCorners(), {0, 0, 0, 0}};
}
template <typename A>
__device__ __forceinline__ BilinearSample<A> Nowhere() {
  return {{kOutside, kOutside, kOutside, kOutside}, A(0), A(0)};
}

// The corners of a read of the image whose first pixel has the index `first_pixel`.
template <typename A>
__device__ __forceinline__ SampleCorners CornersOf(const BilinearSample<A>& read,
                                                   int32_t first_pixel = 0) {
  SampleCorners corners;
#pragma unroll
  for (int i = 0; i < kCorners; ++i) {
    const int32_t pixel = static_cast<int32_t>(read.corner[i]);
    corners.pixel[i] = pixel == kOutside ? pixel : first_pixel + pixel;
  }
  return corners;
}

// The sample whose value is the interpolated value times `scale`.
template <typename A>
__device__ __forceinline__ Sample<A> SampleOf(const BilinearSample<A>& read, A scale,
                                              int32_t first_pixel = 0) {
  const CornerWeights<A> weights = ValueWeights(read, scale);
  return {CornersOf(read, first_pixel),
          {weights.corner[0], weights.corner[1], weights.corner[2], weights.corner[3]}};
}

// The same channels of the four corners.
template <typename T, int kSize = kVector<T>>
struct CornerChannels {
  Packed<T, kSize> corner[kCorners];
};

// Reads kSize channels of each corner. `channels` are these channels of the first pixel, and
// neighbouring pixels are `pixel_bytes` apart. All loads are on their way before one is used.
// Corners outside the image are zeros, and are not read: an infinity multiplied by a weight of zero
// would be a NaN.
template <int kSize, typename T>
__device__ __forceinline__ CornerChannels<T, kSize> LoadCorners(const SampleCorners& sample,
                                                                const T* channels,
                                                                int32_t pixel_bytes) {
  CornerChannels<T, kSize> corners = {};
#pragma unroll
  for (int i = 0; i < kCorners; ++i) {
    if (sample.pixel[i] == kOutside) continue;
    corners.corner[i] = LoadConstant<kSize>(RowsAfter(channels, sample.pixel[i], pixel_bytes));
  }
  return corners;
}

// sum += Σ_i weight_i corner_i
template <typename T, int kSize>
__device__ __forceinline__ void AddCorners(const CornerChannels<T, kSize>& corners,
                                           const Sum<T> (&weight)[kCorners],
                                           Unpacked<T, kSize>& sum) {
#pragma unroll
  for (int i = 0; i < kCorners; ++i) {
    const Unpacked<T, kSize> values = Unpack(corners.corner[i]);
#pragma unroll
    for (int j = 0; j < kSize; ++j) sum.value[j] += weight[i] * values.value[j];
  }
}

// dots[i] += Σ_j corner_i[j] factor[j]
template <typename T, int kSize>
__device__ __forceinline__ void AddDots(const CornerChannels<T, kSize>& corners,
                                        const Unpacked<T, kSize>& factor,
                                        Sum<T> (&dots)[kCorners]) {
#pragma unroll
  for (int i = 0; i < kCorners; ++i) {
    const Unpacked<T, kSize> values = Unpack(corners.corner[i]);
#pragma unroll
    for (int j = 0; j < kSize; ++j) dots[i] += values.value[j] * factor.value[j];
  }
}

// Adds the four dot products up over `lanes` neighbouring lanes, a power of two, and writes the
// sums to `sums`. All threads of the warp call, each with its place `lane` among the neighbours.
template <typename A>
__device__ __forceinline__ void StoreSumsOverLanes(const A (&dots)[kCorners], int lane, int lanes,
                                                   A* sums) {
  constexpr unsigned kAll = 0xffffffffu;
  if (lanes < kCorners) {
#pragma unroll
    for (int i = 0; i < kCorners; ++i) {
      const A sum = lanes == 1 ? dots[i] : dots[i] + __shfl_xor_sync(kAll, dots[i], 1);
      if (lane == 0) sums[i] = sum;
    }
    return;
  }
  // Two exchanges leave each lane one of the sums, instead of four in every lane.
  const bool bottom = lane & lanes / 2, right = lane & lanes / 4;
  A left_sum = bottom ? dots[2] : dots[0], right_sum = bottom ? dots[3] : dots[1];
  left_sum += __shfl_xor_sync(kAll, bottom ? dots[0] : dots[2], lanes / 2);
  right_sum += __shfl_xor_sync(kAll, bottom ? dots[1] : dots[3], lanes / 2);
  A sum = right ? right_sum : left_sum;
  sum += __shfl_xor_sync(kAll, right ? left_sum : right_sum, lanes / 4);
  for (int distance = lanes / 8; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(kAll, sum, distance);
  }
  if (lane % (lanes / 4) == 0) sums[2 * bottom + right] = sum;
}

template <typename T, int kSize>
__device__ __forceinline__ Unpacked<T, kSize> Interpolate(const Sample<Sum<T>>& sample,
                                                          const CornerChannels<T, kSize>& corners) {
  Unpacked<T, kSize> sum = {};
  AddCorners(corners, sample.weight, sum);
  return sum;
}

}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_SAMPLING_SAMPLE_CUH_
