// SPDX-License-Identifier: MIT
// The gradients of deformable RoI pooling on CUDA: first of offset and mask, then of x. There are
// no atomics: each element is summed by one thread, or by one block, in a fixed order.

#include "cuda/deform_roi_pool/bins.cuh"
#include "cuda/deform_roi_pool/kernels.h"

namespace jax_dcn {
namespace {

// ------------------------------------------------------------------- gradients of offset and mask

// Sums over the threads of a block, in a fixed order; the first thread has the result.
template <typename A>
__device__ __forceinline__ A SumOfBlock(A value, A* partial) {  // [warps]
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value += __shfl_down_sync(0xffffffffu, value, distance);
  }
  __syncthreads();  // all have read the last sum
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = value;
  __syncthreads();
  A sum = 0;
  for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp) sum += partial[warp];
  return sum;
}

// The gradients of the mask of a bin and, before they are multiplied by the mask, of its offset.
template <typename A>
struct BinGradients {
  A mean, dy, dx;
};

// Sums the gradients of a bin over the features of a class. All threads of the block call; the
// first thread has the result.
template <typename T, typename A>
__device__ __forceinline__ BinGradients<A> SumBin(const DeformRoIPoolProblem& problem,
                                                  const DeformRoIPoolPrimals<T, A>& primals,
                                                  const T* grad_y, int64_t region, int bin,
                                                  int64_t group, SharedBin<T, A>& shared,
                                                  A* partial) {
  const A* const roi = primals.rois + 5 * region;
  const int64_t image = ImageOfRegion(problem, roi), size = problem.class_features();
  if (image < 0) return {0, 0, 0};
  shared.Locate(problem, primals, region, bin, group);
  const T* const x = primals.x + FirstFeature(problem, image, bin, group);
  grad_y += (region * problem.bins() + bin) * problem.features() + group * size;
  A mean = 0, dy = 0, dx = 0;
  for (int64_t c = threadIdx.x; c < size; c += blockDim.x) {
    const A g = ToFloat(grad_y[c]);
    ForEachPixel(problem, shared, [&](int64_t pixel, const auto& row, const auto& column) {
      const A product = g * ToFloat(x[pixel * problem.channels + c]);
      mean += row.weight * column.weight * product;
      dy += row.slope * column.weight * product;
      dx += row.weight * column.slope * product;
    });
  }
  const A scale = shared.Scale();
  mean = scale * SumOfBlock(mean, partial);
  dy = scale * SumOfBlock(dy, partial);
  dx = scale * SumOfBlock(dx, partial);
  if (shared.found[0].count > 0 && shared.found[1].count > 0) {
    const A unit = static_cast<A>(problem.geometry.offset_scale);
    dy *= unit * RegionAxisAt(problem.geometry, roi[2], roi[4]).size;
    dx *= unit * RegionAxisAt(problem.geometry, roi[1], roi[3]).size;
  }
  return {mean, dy, dx};
}

// Bins along an axis: [begin, end).
struct Bins {
  int begin, end;
};

// The bins that the displacement `part` moves, along an axis of `bins` bins and `parts`
// displacements.
__device__ __forceinline__ Bins BinsOf(int part, int parts, int bins) {
  return {(part * bins + parts - 1) / parts, ((part + 1) * bins + parts - 1) / parts};
}

// One block sums one displacement of one region, which several bins may share, at a time.
template <typename T, typename A>
__global__ void __launch_bounds__(kMostThreads, kResidentBlocks)
    GradOffsetMaskKernel(DeformRoIPoolProblem problem, DeformRoIPoolPrimals<T, A> primals,
                         const T* grad_y, DeformRoIPoolCotangents<T, A> grads) {
  SharedBin<T, A> shared(problem, SharedMemory<char>());
  A* const partial = reinterpret_cast<A*>(SharedMemory<char>() + SharedBin<T, A>::Bytes(problem));
  const int height = problem.geometry.pooled_size[0], width = problem.geometry.pooled_size[1];
  const int rows = problem.displaced ? problem.parts[0] : height;
  const int columns = problem.displaced ? problem.parts[1] : width;
  for (int64_t item = blockIdx.x; item < problem.regions * rows * columns; item += gridDim.x) {
    const int64_t region = item / (rows * columns);
    const int part = item % (rows * columns);
    const Bins i = BinsOf(part / columns, rows, height), j = BinsOf(part % columns, columns, width);
    for (int64_t group = 0; group < problem.classes; ++group) {
      A grad_y_offset = 0, grad_x_offset = 0;
      for (int row = i.begin; row < i.end; ++row) {
        for (int column = j.begin; column < j.end; ++column) {
          const int bin = row * width + column;
          const auto sums = SumBin(problem, primals, grad_y, region, bin, group, shared, partial);
          const A mask = MaskOf(problem, primals.mask, region, bin);
          grad_y_offset += mask * sums.dy;
          grad_x_offset += mask * sums.dx;
          if (threadIdx.x == 0 && grads.mask != nullptr) {
            A* const grad_mask = grads.mask + region * problem.bins() + bin;
            *grad_mask = (group == 0 ? A(0) : *grad_mask) + sums.mean;
          }
        }
      }
      if (threadIdx.x == 0 && grads.offset != nullptr) {
        A* const grad_offset = grads.offset + 2 * (item * problem.classes + group);
        grad_offset[0] = grad_y_offset;
        grad_offset[1] = grad_x_offset;
      }
    }
  }
}

// ---------------------------------------------------------------------------------- gradient of x

constexpr int kTileRows = 4, kTileColumns = 8, kTilePixels = kTileRows * kTileColumns;

// The pixels and features that one block sums.
struct Tile {
  int64_t image, cell, first[2];  // first pixel
  int64_t begin, end;             // features of the cell
};

__host__ __device__ inline int64_t TilesAlong(int64_t pixels, int64_t tile) {
  return (pixels + tile - 1) / tile;
}

__host__ __device__ inline int64_t TilesOf(const DeformRoIPoolProblem& problem, int64_t threads) {
  return problem.batch * problem.cells() * TilesAlong(problem.features(), threads) *
         TilesAlong(problem.size(0), kTileRows) * TilesAlong(problem.size(1), kTileColumns);
}

__device__ __forceinline__ Tile TileAt(const DeformRoIPoolProblem& problem, int64_t item) {
  const int64_t chunks = TilesAlong(problem.features(), blockDim.x);
  const int64_t rows = TilesAlong(problem.size(0), kTileRows);
  const int64_t columns = TilesAlong(problem.size(1), kTileColumns);
  Tile tile;
  tile.begin = item % chunks * blockDim.x;
  tile.end =
      tile.begin + blockDim.x < problem.features() ? tile.begin + blockDim.x : problem.features();
  item /= chunks;
  tile.first[1] = item % columns * kTileColumns;
  item /= columns;
  tile.first[0] = item % rows * kTileRows;
  item /= rows;
  tile.cell = item % problem.cells();
  tile.image = item / problem.cells();
  return tile;
}

// Whether samples of a bin may read one of so many pixels from `first` on. Positions that are not
// numbers read no pixel.
template <typename A>
__device__ __forceinline__ bool MayTouch(const BinAxis<A>& axis, int64_t first, int64_t pixels) {
  if (axis.end <= axis.begin) return false;
  const A one_end = axis.first + (static_cast<A>(axis.begin) + axis.phase) * axis.step;
  const A other_end = axis.first + (static_cast<A>(axis.end - 1) + axis.phase) * axis.step;
  const A low = one_end < other_end ? one_end : other_end;
  const A high = one_end < other_end ? other_end : one_end;
  return high >= static_cast<A>(first - 1) && low <= static_cast<A>(first + pixels);
}

// Whether a bin may touch a tile.
template <typename T, typename A>
__device__ __forceinline__ bool BinTouches(const DeformRoIPoolProblem& problem,
                                           const DeformRoIPoolPrimals<T, A>& primals,
                                           const Tile& tile, int64_t region, int64_t bin,
                                           int64_t group) {
  if (ImageOfRegion(problem, primals.rois + 5 * region) != tile.image) return false;
  if (problem.CellOf(bin) != tile.cell) return false;
  using Shared = SharedBin<T, A>;
  return MayTouch(Shared::template Axis<0>(problem, primals, region, bin, group), tile.first[0],
                  kTileRows) &&
         MayTouch(Shared::template Axis<1>(problem, primals, region, bin, group), tile.first[1],
                  kTileColumns);
}

template <typename T, typename A>
__device__ __forceinline__ void AddBinToTile(const DeformRoIPoolProblem& problem,
                                             const SharedBin<T, A>& bin, const Tile& tile, A grad,
                                             A* sums) {
  ForEachPixel(problem, bin, [&](int64_t, const auto& row, const auto& column) {
    const int64_t i = row.index - tile.first[0], j = column.index - tile.first[1];
    if (i < 0 || i >= kTileRows || j < 0 || j >= kTileColumns) return;
    sums[(i * kTileColumns + j) * blockDim.x] += row.weight * column.weight * grad;
  });
}

// Lists the threads of a block whose candidate touches, in order, and returns how many there are.
// All threads of the block call. `counts` are [warps].
__device__ __forceinline__ int ListTouching(bool touches, int* counts, int* touching) {
  const unsigned warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const unsigned votes = __ballot_sync(0xffffffffu, touches);
  __syncthreads();  // all have read the last list
  if (lane == 0) counts[warp] = __popc(votes);
  __syncthreads();
  int before = 0, total = 0;
  for (unsigned i = 0; i < blockDim.x / kWarp; ++i) {
    before += i < warp ? counts[i] : 0;
    total += counts[i];
  }
  if (touches) touching[before + __popc(votes & ((1u << lane) - 1))] = threadIdx.x;
  __syncthreads();
  return total;
}

// Writes the tile's sums of a feature of its cell.
template <typename T, typename A>
__device__ __forceinline__ void StoreTile(const DeformRoIPoolProblem& problem, const Tile& tile,
                                          int64_t feature, const A* sums, T* grad_x) {
  for (int pixel = 0; pixel < kTilePixels; ++pixel) {
    const int64_t row = tile.first[0] + pixel / kTileColumns;
    const int64_t column = tile.first[1] + pixel % kTileColumns;
    if (row >= problem.size(0) || column >= problem.size(1)) continue;
    const int64_t at = (tile.image * problem.size(0) + row) * problem.size(1) + column;
    grad_x[at * problem.channels + tile.cell * problem.features() + feature] =
        FromFloat<T>::Round(sums[pixel * blockDim.x]);
  }
}

// One block sums one tile at a time, over all bins in order, one thread a feature.
template <typename T, typename A>
__global__ void __launch_bounds__(kMostThreads, kResidentBlocks)
    GradXKernel(DeformRoIPoolProblem problem, DeformRoIPoolPrimals<T, A> primals, const T* grad_y,
                T* grad_x) {
  char* const memory = SharedMemory<char>();
  A* const sums = reinterpret_cast<A*>(memory) + threadIdx.x;  // [tile pixels, threads]
  int* const touching = reinterpret_cast<int*>(memory + kTilePixels * blockDim.x * sizeof(A));
  int* const counts = touching + blockDim.x;  // [warps]
  SharedBin<T, A> shared(problem, reinterpret_cast<char*>(counts + 2 * kMostThreads / kWarp));
  const int64_t size = problem.class_features();
  for (int64_t item = blockIdx.x; item < TilesOf(problem, blockDim.x); item += gridDim.x) {
    const Tile tile = TileAt(problem, item);
    const int64_t feature = tile.begin + threadIdx.x;
    const int64_t group_begin = tile.begin / size, groups = (tile.end - 1) / size + 1 - group_begin;
    for (int pixel = 0; pixel < kTilePixels; ++pixel) sums[pixel * blockDim.x] = 0;
    const int64_t candidates = problem.regions * problem.bins() * groups;
    // The bins in order: a block looks at as many as it has threads at once.
    for (int64_t begin = 0; begin < candidates; begin += blockDim.x) {
      const int64_t candidate = begin + threadIdx.x;
      const bool touches =
          candidate < candidates &&
          BinTouches(problem, primals, tile, candidate / groups / problem.bins(),
                     candidate / groups % problem.bins(), group_begin + candidate % groups);
      const int total = ListTouching(touches, counts, touching);
      for (int i = 0; i < total; ++i) {
        const int64_t found = begin + touching[i], group = group_begin + found % groups;
        const int64_t bin = found / groups % problem.bins(),
                      region = found / groups / problem.bins();
        shared.Locate(problem, primals, region, bin, group);
        if (feature >= tile.end || feature / size != group) continue;
        const A scale = shared.Scale() * MaskOf(problem, primals.mask, region, bin);
        const int64_t at = (region * problem.bins() + bin) * problem.features() + feature;
        AddBinToTile(problem, shared, tile, scale * ToFloat(grad_y[at]), sums);
      }
    }
    if (feature < tile.end) StoreTile(problem, tile, feature, sums, grad_x);
  }
}

template <typename A>
size_t GradXBytes(const DeformRoIPoolProblem& problem, int threads) {
  return kTilePixels * threads * sizeof(A) + (threads + 2 * kMostThreads / kWarp) * sizeof(int) +
         SharedBin<A, A>::Bytes(problem);
}

template <typename T, typename A>
cudaError_t LaunchGradOffsetMask(cudaStream_t stream, const DeformRoIPoolProblem& problem,
                                 const DeformRoIPoolPrimals<T, A>& primals, const T* grad_y,
                                 const DeformRoIPoolCotangents<T, A>& grads) {
  const int64_t parts = problem.displaced ? problem.parts[0] * problem.parts[1] : problem.bins();
  if (problem.regions == 0) return cudaSuccess;
  const int threads = ThreadsFor(problem.class_features());
  const size_t bytes = SharedBin<T, A>::Bytes(problem) + threads / kWarp * sizeof(A);
  return Launch(GradOffsetMaskKernel<T, A>,
                {GridFor(problem.regions * parts), static_cast<unsigned>(threads), bytes}, stream,
                problem, primals, grad_y, grads);
}

template <typename T, typename A>
cudaError_t LaunchGradX(cudaStream_t stream, const DeformRoIPoolProblem& problem,
                        const DeformRoIPoolPrimals<T, A>& primals, const T* grad_y, T* grad_x) {
  const int threads = ThreadsFor(problem.features());
  const int64_t tiles = TilesOf(problem, threads);
  if (tiles == 0) return cudaSuccess;
  return Launch(GradXKernel<T, A>,
                {GridFor(tiles), static_cast<unsigned>(threads), GradXBytes<A>(problem, threads)},
                stream, problem, primals, grad_y, grad_x);
}

}  // namespace

template <typename T, typename A>
cudaError_t LaunchDeformRoIPoolBackward(cudaStream_t stream, const DeformRoIPoolProblem& problem,
                                        const DeformRoIPoolPrimals<T, A>& primals, const T* grad_y,
                                        const DeformRoIPoolCotangents<T, A>& grads) {
  if (grads.offset != nullptr || grads.mask != nullptr) {
    const cudaError_t error = LaunchGradOffsetMask(stream, problem, primals, grad_y, grads);
    if (error != cudaSuccess) return error;
  }
  if (grads.x == nullptr) return cudaSuccess;
  return LaunchGradX(stream, problem, primals, grad_y, grads.x);
}

const char* WhyNotOnCuda(const DeformRoIPoolProblem& problem) {
  if (GradXBytes<double>(problem, kMostThreads) <= kMostSharedBytes) return nullptr;
  return "the pixels of a bin do not fit into shared memory: take fewer samples, or "
         "implementation=\"xla\"";
}

#define JAX_DCN_INSTANTIATE(T, A)                                                               \
  template cudaError_t LaunchDeformRoIPoolBackward(cudaStream_t, const DeformRoIPoolProblem&,   \
                                                   const DeformRoIPoolPrimals<T, A>&, const T*, \
                                                   const DeformRoIPoolCotangents<T, A>&);
JAX_DCN_INSTANTIATE(float, float)
JAX_DCN_INSTANTIATE(double, double)
JAX_DCN_INSTANTIATE(BFloat16, float)
JAX_DCN_INSTANTIATE(Float16, float)
#undef JAX_DCN_INSTANTIATE

}  // namespace jax_dcn
