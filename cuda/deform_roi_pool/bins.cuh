// SPDX-License-Identifier: MIT
// The bins of regions and the pixels that bins read, for the kernels of deformable RoI pooling.
#ifndef JAX_DCN_CUDA_DEFORM_ROI_POOL_BINS_CUH_
#define JAX_DCN_CUDA_DEFORM_ROI_POOL_BINS_CUH_

#include "common/deform_roi_pool/problem.h"
#include "common/sampling/half.h"
#include "cuda/runtime/launch.cuh"

namespace jax_dcn {

// The most features that a block sums at once, each by one thread.
constexpr int kMostThreads = 128;
// Two threads of different warps find the pixels of the two axes.
constexpr int kLeastThreads = 2 * kWarp;
// The least number of blocks of a multiprocessor: a thread has registers for all its values.
constexpr int kResidentBlocks = 4;

inline int ThreadsFor(int64_t features) {
  if (features >= kMostThreads) return kMostThreads;
  return features <= kLeastThreads ? kLeastThreads : 3 * kWarp;
}

// Blocks for so many items. A block takes an item, then the item that is a grid's size later.
inline unsigned GridFor(int64_t items) {
  constexpr int64_t kMostBlocks = 1 << 30;
  return static_cast<unsigned>(items < kMostBlocks ? items : kMostBlocks);
}

// A region along one axis, in pixels of x.
template <int kAxis, typename A>
__device__ __forceinline__ RegionAxis<A> RegionAlong(const DeformRoIPoolProblem& problem,
                                                     const A* roi) {
  return RegionAxisAt(problem.geometry, roi[2 - kAxis], roi[4 - kAxis]);
}

// The pixels that a bin of a region reads for a class, in the shared memory of a block.
template <typename T, typename A>
struct SharedBin {
  AxisPixel<A>* pixels[2];
  AxisPixels<A>* found;  // [2]

  static __host__ __device__ size_t Bytes(const DeformRoIPoolProblem& problem) {
    return (problem.MostPixels(0) + problem.MostPixels(1)) * sizeof(AxisPixel<A>) +
           2 * sizeof(AxisPixels<A>);
  }

  __device__ __forceinline__ SharedBin(const DeformRoIPoolProblem& problem, char* memory) {
    found = reinterpret_cast<AxisPixels<A>*>(memory);
    pixels[0] = reinterpret_cast<AxisPixel<A>*>(found + 2);
    pixels[1] = pixels[0] + problem.MostPixels(0);
  }

  // All threads of the block call, and may read the pixels afterwards.
  __device__ __forceinline__ void Locate(const DeformRoIPoolProblem& problem,
                                         const DeformRoIPoolPrimals<T, A>& primals, int64_t region,
                                         int64_t bin, int64_t group) {
    __syncthreads();  // all have read what was there
    // The axis is a constant, so that arrays indexed by the axis stay out of local memory.
    if (threadIdx.x == 0) Find<0>(problem, primals, region, bin, group);
    if (threadIdx.x == kWarp) Find<1>(problem, primals, region, bin, group);
    __syncthreads();
  }

  template <int kAxis>
  __device__ __forceinline__ void Find(const DeformRoIPoolProblem& problem,
                                       const DeformRoIPoolPrimals<T, A>& primals, int64_t region,
                                       int64_t bin, int64_t group) {
    found[kAxis] = PixelsOf(problem.geometry, Axis<kAxis>(problem, primals, region, bin, group),
                            problem.size(kAxis), pixels[kAxis]);
  }

  template <int kAxis>
  static __device__ __forceinline__ BinAxis<A> Axis(const DeformRoIPoolProblem& problem,
                                                    const DeformRoIPoolPrimals<T, A>& primals,
                                                    int64_t region, int64_t bin, int64_t group) {
    const A* const roi = primals.rois + 5 * region;
    const A* const offset = primals.offset == nullptr
                                ? nullptr
                                : primals.offset + 2 * problem.OffsetIndex(region, bin, group);
    return BinAxisAt(problem.geometry, kAxis, problem.size(kAxis), RegionAlong<kAxis>(problem, roi),
                     problem.BinOf(kAxis, bin), offset);
  }

  __device__ __forceinline__ A Scale() const { return MeanScale(found[0], found[1]); }
};

// Calls `f(pixel, row, column)` for each pixel of the bin.
template <typename T, typename A, typename F>
__device__ __forceinline__ void ForEachPixel(const DeformRoIPoolProblem& problem,
                                             const SharedBin<T, A>& bin, const F& f) {
  for (int64_t i = 0; i < bin.found[0].count; ++i) {
    const AxisPixel<A> row = bin.pixels[0][i];
    for (int64_t j = 0; j < bin.found[1].count; ++j) {
      const AxisPixel<A> column = bin.pixels[1][j];
      f(row.index * problem.size(1) + column.index, row, column);
    }
  }
}

// Index in x of the first feature of a class, in the image and the cell that a bin reads.
__device__ __forceinline__ int64_t FirstFeature(const DeformRoIPoolProblem& problem, int64_t image,
                                                int64_t bin, int64_t group) {
  return image * problem.image_pixels() * problem.channels +
         problem.CellOf(bin) * problem.features() + group * problem.class_features();
}

template <typename A>
__device__ __forceinline__ A MaskOf(const DeformRoIPoolProblem& problem, const A* mask,
                                    int64_t region, int64_t bin) {
  return mask == nullptr ? A(1) : mask[region * problem.bins() + bin];
}

}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_DEFORM_ROI_POOL_BINS_CUH_
