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
    dy *= ShiftUnit(problem.geometry, RegionAlong<0>(problem, roi));
    dx *= ShiftUnit(problem.geometry, RegionAlong<1>(problem, roi));
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

// The gradient of a displacement.
template <typename A>
struct GradOffset {
  A dy, dx;
};

// Sums the gradient of a displacement for a class, over the bins that the displacement moves, and
// adds the class's part to the gradients of the masks of these bins.
template <typename T, typename A>
__device__ __forceinline__ GradOffset<A> SumBins(const DeformRoIPoolProblem& problem,
                                                 const DeformRoIPoolPrimals<T, A>& primals,
                                                 const T* grad_y, A* grad_mask, int64_t region,
                                                 int64_t group, const Bins& rows,
                                                 const Bins& columns, SharedBin<T, A>& shared,
                                                 A* partial) {
  GradOffset<A> grad = {0, 0};
  for (int row = rows.begin; row < rows.end; ++row) {
    for (int column = columns.begin; column < columns.end; ++column) {
      const int bin = row * static_cast<int>(problem.geometry.pooled_size[1]) + column;
      const auto sums = SumBin(problem, primals, grad_y, region, bin, group, shared, partial);
      const A mask = MaskOf(problem, primals.mask, region, bin);
      grad.dy += mask * sums.dy;
      grad.dx += mask * sums.dx;
      if (threadIdx.x != 0 || grad_mask == nullptr) continue;
      A* const sum = grad_mask + region * problem.bins() + bin;
      *sum = (group == 0 ? A(0) : *sum) + sums.mean;
    }
  }
  return grad;
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
      const GradOffset<A> grad =
          SumBins(problem, primals, grad_y, grads.mask, region, group, i, j, shared, partial);
      if (threadIdx.x != 0 || grads.offset == nullptr) continue;
      A* const grad_offset = grads.offset + 2 * (item * problem.classes + group);
      grad_offset[0] = grad.dy;
      grad_offset[1] = grad.dx;
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

// A bin of a region for a class.
struct ClassBin {
  int64_t region, bin, group;
};

// The bins of all regions, for the classes whose features a tile has, in the order of their sum.
class Candidates {
 public:
  __device__ __forceinline__ Candidates(const DeformRoIPoolProblem& problem, const Tile& tile)
      : bins_(problem.bins()),
        first_group_(tile.begin / problem.class_features()),
        groups_((tile.end - 1) / problem.class_features() + 1 - first_group_),
        count_(problem.regions * bins_ * groups_) {}

  __device__ __forceinline__ int64_t count() const { return count_; }
  __device__ __forceinline__ ClassBin At(int64_t index) const {
    const int64_t bin = index / groups_;
    return {bin / bins_, bin % bins_, first_group_ + index % groups_};
  }

 private:
  int64_t bins_, first_group_, groups_, count_;
};

// Whether a bin may touch a tile.
template <typename T, typename A>
__device__ __forceinline__ bool BinTouches(const DeformRoIPoolProblem& problem,
                                           const DeformRoIPoolPrimals<T, A>& primals,
                                           const Tile& tile, const ClassBin& at) {
  if (ImageOfRegion(problem, primals.rois + 5 * at.region) != tile.image) return false;
  if (problem.CellOf(at.bin) != tile.cell) return false;
  using Shared = SharedBin<T, A>;
  return MayTouch(Shared::template Axis<0>(problem, primals, at.region, at.bin, at.group),
                  tile.first[0], kTileRows) &&
         MayTouch(Shared::template Axis<1>(problem, primals, at.region, at.bin, at.group),
                  tile.first[1], kTileColumns);
}

// The shared memory of a block.
template <typename T, typename A>
struct TileMemory {
  A* sums;  // of the thread's feature, one for each pixel of the tile, `blockDim.x` apart
  int* touching;
  int* counts;  // [warps]
  SharedBin<T, A> bin;

  static size_t Bytes(const DeformRoIPoolProblem& problem, int threads) {
    return kTilePixels * threads * sizeof(A) + (threads + 2 * kMostThreads / kWarp) * sizeof(int) +
           SharedBin<T, A>::Bytes(problem);
  }

  __device__ __forceinline__ TileMemory(const DeformRoIPoolProblem& problem, char* memory)
      : sums(reinterpret_cast<A*>(memory) + threadIdx.x),
        touching(reinterpret_cast<int*>(memory + kTilePixels * blockDim.x * sizeof(A))),
        counts(touching + blockDim.x),
        bin(problem, reinterpret_cast<char*>(counts + 2 * kMostThreads / kWarp)) {}
};

// Adds to the sums of the thread's feature what a bin gives to the pixels of the tile. All threads
// of the block call.
template <typename T, typename A>
__device__ __forceinline__ void AddBin(const DeformRoIPoolProblem& problem,
                                       const DeformRoIPoolPrimals<T, A>& primals, const T* grad_y,
                                       const Tile& tile, const ClassBin& at,
                                       TileMemory<T, A>& memory) {
  const int64_t feature = tile.begin + threadIdx.x;
  memory.bin.Locate(problem, primals, at.region, at.bin, at.group);
  if (feature >= tile.end || feature / problem.class_features() != at.group) return;
  const int64_t place = (at.region * problem.bins() + at.bin) * problem.features() + feature;
  const A grad = memory.bin.Scale() * MaskOf(problem, primals.mask, at.region, at.bin) *
                 ToFloat(grad_y[place]);
  ForEachPixel(problem, memory.bin, [&](int64_t, const auto& row, const auto& column) {
    const int64_t i = row.index - tile.first[0], j = column.index - tile.first[1];
    if (i < 0 || i >= kTileRows || j < 0 || j >= kTileColumns) return;
    memory.sums[(i * kTileColumns + j) * blockDim.x] += row.weight * column.weight * grad;
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
  TileMemory<T, A> memory(problem, SharedMemory<char>());
  for (int64_t item = blockIdx.x; item < TilesOf(problem, blockDim.x); item += gridDim.x) {
    const Tile tile = TileAt(problem, item);
    const Candidates candidates(problem, tile);
    for (int pixel = 0; pixel < kTilePixels; ++pixel) memory.sums[pixel * blockDim.x] = 0;
    // A block looks at as many candidates as it has threads at once.
    for (int64_t begin = 0; begin < candidates.count(); begin += blockDim.x) {
      const int64_t own = begin + threadIdx.x;
      const bool touches =
          own < candidates.count() && BinTouches(problem, primals, tile, candidates.At(own));
      const int total = ListTouching(touches, memory.counts, memory.touching);
      for (int i = 0; i < total; ++i) {
        const ClassBin found = candidates.At(begin + memory.touching[i]);
        AddBin(problem, primals, grad_y, tile, found, memory);
      }
    }
    const int64_t feature = tile.begin + threadIdx.x;
    if (feature < tile.end) StoreTile(problem, tile, feature, memory.sums, grad_x);
  }
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
  return Launch(
      GradXKernel<T, A>,
      {GridFor(tiles), static_cast<unsigned>(threads), TileMemory<T, A>::Bytes(problem, threads)},
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
  // The kernels count in 32 bits: the bins and the displacements of a region, and their product,
  // which `BinsOf` divides; the bin after the last one included.
  int64_t bins = 1, parts = 1;
  for (int axis = 0; axis < 2; ++axis) {
    bins *= problem.geometry.pooled_size[axis] + 1;
    parts *= problem.displaced ? problem.parts[axis] : 1;
  }
  if (bins > INT32_MAX || parts > INT32_MAX || bins * parts > INT32_MAX) {
    return "a region has too many bins and displacements: take fewer, or implementation=\"xla\"";
  }
  if (TileMemory<double, double>::Bytes(problem, kMostThreads) <= kMostSharedBytes) return nullptr;
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
