// SPDX-License-Identifier: MIT
// Fused gradients of offset and mask: the gradient of a tile of columns, grad_y · kernelᵀ, is made
// in shared memory, and its dot products with the samples' corners are taken there. Only the
// gradient of x needs the gradient of the columns in device memory.

#include "cuda/deform_conv2d/fused.h"
#include "cuda/runtime/launch.cuh"
#include "cuda/runtime/matrix.cuh"
#include "cuda/runtime/pipeline.cuh"
#include "cuda/runtime/vector.cuh"
#include "cuda/sampling/sample.cuh"

namespace jax_dcn {
namespace {

// A sample, and what its gradients take besides its dot products.
template <typename T>
struct alignas(16) GradSample : SampleCorners {
  float y, x, mask;
  int64_t index;   // in `mask`, or negative where the sample does not exist
  const T* image;  // the first channel of the offset group
};

// A block takes the samples of kPixels output pixels at one tap, for one group of offsets, through
// all the group's channels, kChannels at a time: so no sum is shared with another block. A step
// multiplies kFeatures. None of these sizes has been measured yet.
template <typename T>
struct GradSamplesTile {
  static constexpr int kPixels = 64;
  static constexpr int kThreads = 256;  // of BlockProduct
  static constexpr int kVectors = 4;    // of 16 bytes of features, in a step
  static constexpr int kFeatures = kVectors * kVector<T>;
  static constexpr int kLanes = 16;  // that share the channels of a sample
  static constexpr int kChannels = kLanes * kVector<T>;

  static constexpr int kStepStride = kFeatures + kVector<T>;
  static constexpr int kGradStride = kChannels + 8;
  static constexpr int kGradY = kPixels * kStepStride;     // elements of a step
  static constexpr int kKernel = kChannels * kStepStride;  // elements of a step
  static constexpr int kCopies = kChannels / kPixels;      // of a thread, of a step's kernel
  static constexpr int kGradColumns = kPixels * kGradStride;
  static constexpr int kPipelineBytes = (kStages * (kGradY + kKernel) + kGradColumns) * sizeof(T);
  static constexpr int kSharedBytes = kPipelineBytes + kPixels * sizeof(GradSample<T>);

  using Product = BlockProduct<kPixels, kChannels>;

  static constexpr int kSamplesAtOnce = kThreads / kLanes;
  static constexpr int kRounds = kPixels / kSamplesAtOnce;
  using Dots = float[kRounds][kCorners];

  static_assert(kPixels * kVectors == kThreads, "16 bytes of a step's grad_y for each thread");
  static_assert(kSharedBytes <= kMostSharedBytes, "every GPU can hold a block");
};

// The terms of a block's sums: features are innermost, so that the gradient of a tile of columns is
// complete before the next tile is begun. A tile's channels are of one group of features.
template <typename Tile>
class FeatureSteps {
 public:
  __device__ __forceinline__ FeatureSteps(const DeformConv2dSizes& sizes, int offset_group)
      : sizes_(sizes), last_channel_((offset_group + 1) * sizes.offset_group_channels) {
    StartTile(offset_group * sizes.offset_group_channels);
  }

  __device__ __forceinline__ bool done() const { return channel_ >= last_channel_; }
  __device__ __forceinline__ bool ends_tile() const {
    return feature_ + Tile::kFeatures >= sizes_.group_features;
  }
  // The tile's first channel, and how many channels it has.
  __device__ __forceinline__ int channel() const { return channel_; }
  __device__ __forceinline__ int channels() const { return channels_; }
  __device__ __forceinline__ int group_channel() const {
    return channel_ - group_ * sizes_.group_channels;
  }
  // The step's first feature, and how many features there are from it on.
  __device__ __forceinline__ int feature() const {
    return group_ * sizes_.group_features + feature_;
  }
  __device__ __forceinline__ int features() const { return sizes_.group_features - feature_; }

  __device__ __forceinline__ void Advance() {
    const bool ended = ends_tile();
    feature_ += Tile::kFeatures;
    if (ended) StartTile(channel_ + channels_);
  }

 private:
  __device__ __forceinline__ void StartTile(int channel) {
    channel_ = channel;
    group_ = sizes_.by_group_channels.Quotient(channel);
    const int end = min((group_ + 1) * sizes_.group_channels, last_channel_);
    channels_ = min(Tile::kChannels, end - channel);
    feature_ = 0;
  }

  const DeformConv2dSizes& sizes_;
  const int last_channel_;
  int channel_, channels_, group_, feature_;
};

// One block's samples, and how its threads work on them.
template <typename T>
class GradSamplesBlock {
  using Tile = GradSamplesTile<T>;

 public:
  using Steps = FeatureSteps<Tile>;

  // Locates the samples, which all threads may read after the next barrier.
  __device__ __forceinline__ GradSamplesBlock(const DeformConv2dChunk& chunk, ChunkStart start,
                                              const DeformConv2dPrimals<T>& primals,
                                              const T* grad_y)
      : chunk_(chunk), sizes_(chunk.sizes), primals_(primals) {
    const int tile = sizes_.by_taps.Quotient(blockIdx.x);
    const int position_tile = sizes_.by_offset_groups.Quotient(tile);
    tap_ = sizes_.by_taps.Remainder(blockIdx.x, tile);
    group_ = sizes_.by_offset_groups.Remainder(tile, position_tile);
    first_position_ = position_tile * Tile::kPixels;
    if (threadIdx.x < Tile::kPixels) Samples()[threadIdx.x] = Locate(start, threadIdx.x);

    const ChunkSample sample = SampleAt(start, StepRow());
    grad_y_exists_ = sample.Exists(chunk) && IsInChunk(StepRow());
    const int64_t pixel = int64_t{sample.image} * sizes_.out_pixels + sample.pixel;
    grad_y_ = grad_y + pixel * sizes_.features + StepVector() * kVector<T>;
    kernel_ = primals.kernel + StepRow() * sizes_.features + StepVector() * kVector<T>;
  }

  __device__ __forceinline__ Steps AllSteps() const { return Steps(sizes_, group_); }

  // Starts to copy the step's parts of grad_y and of the kernel.
  __device__ __forceinline__ void Copy(const Steps& step, int stage) const {
    const int vector = StepVector() * kVector<T>;
    const bool exists = vector < step.features();
    CopyAsync(GradY(stage).At(StepRow(), vector), grad_y_ + step.feature(),
              exists && grad_y_exists_);
    const int first_row = tap_ * sizes_.group_channels + step.group_channel();
    const T* const kernel = RowsAfter(kernel_ + step.feature(), first_row, sizes_.features_bytes);
#pragma unroll
    for (int i = 0; i < Tile::kCopies; ++i) {
      const int row = i * Tile::kPixels;
      CopyAsync(Kernel(stage).At(StepRow() + row, vector),
                RowsAfter(kernel, row, sizes_.features_bytes),
                exists && StepRow() + row < step.channels());
    }
  }

  __device__ __forceinline__ void Multiply(typename Tile::Product& product, int stage) const {
    const SharedMatrix<T> grad_y = GradY(stage), kernel = Kernel(stage);
#pragma unroll
    for (int depth = 0; depth < Tile::kFeatures; depth += kFragmentDepth<T>) {
      product.template Add<T>(
          [&](uint32_t (&a)[4], int row) {
            LoadRows(a, grad_y, row, depth);
            RoundToFactors<T>(a);
          },
          [&](uint32_t (&b)[4], int column) { LoadColumnsTransposed(b, kernel, column, depth); });
    }
  }

  // Puts the gradient of the tile of columns into shared memory, where no thread reads the last
  // tile.
  __device__ __forceinline__ void Put(const typename Tile::Product& product) const {
    product.ForEachPair([&](int row, int column, float first, float second) {
      StoreSharedPair(GradColumns().At(row, column), first, second);
    });
    __syncthreads();
  }

  // dots += Σ_c g x_i over the tile's channels, of the thread's samples. Writes the tile to
  // `grad_columns` unless `grad_columns` is null.
  __device__ __forceinline__ void AddTile(const Steps& step, typename Tile::Dots& dots,
                                          T* grad_columns) const {
    const int vector = Lane() * kVector<T>;
    if (vector >= step.channels()) return;
    const int channel = step.channel() + vector;
    const int in_group = channel - group_ * sizes_.offset_group_channels;
#pragma unroll
    for (int round = 0; round < Tile::kRounds; ++round) {
      const int row = RowOf(round);
      const GradSample<T>& sample = Samples()[row];
      const Packed<T> grad = LoadShared(GradColumns().At(row, vector));
      AddDots(LoadCorners<kVector<T>>(InShared<SampleCorners>(sample), sample.image + in_group,
                                      sizes_.pixel_bytes),
              Unpack(grad), dots[round]);
      if (grad_columns == nullptr || !IsInChunk(row)) continue;
      const int32_t column_row = (first_position_ + row) * sizes_.taps + tap_;
      StoreGlobal(grad_columns + chunk_.ColumnIndex(column_row, channel), grad);
    }
  }

  // The gradients are linear in the dot products, which the lanes of a sample add up in order.
  __device__ __forceinline__ void Store(typename Tile::Dots& dots,
                                        const DeformConv2dCotangents<T>& grads) const {
#pragma unroll
    for (int round = 0; round < Tile::kRounds; ++round) {
#pragma unroll
      for (int i = 0; i < kCorners; ++i) {
        for (int lanes = Tile::kLanes / 2; lanes > 0; lanes /= 2) {
          dots[round][i] += __shfl_xor_sync(0xffffffffu, dots[round][i], lanes);
        }
      }
      const GradSample<T>& sample = Samples()[RowOf(round)];
      if (Lane() != 0 || sample.index < 0) continue;
      const BilinearSample<float> read = {{}, sample.y, sample.x};
      if (grads.mask != nullptr) {
        grads.mask[sample.index] = Combine(ValueWeights(read, 1.0f), dots[round]);
      }
      if (grads.offset == nullptr) continue;
      StorePair(grads.offset + 2 * sample.index,
                Combine(DerivativeWeights(read, sample.mask, 0.0f), dots[round]),
                Combine(DerivativeWeights(read, 0.0f, sample.mask), dots[round]));
    }
  }

 private:
  // The thread's row and vector of each step.
  static __device__ __forceinline__ int StepRow() { return threadIdx.x / Tile::kVectors; }
  static __device__ __forceinline__ int StepVector() { return threadIdx.x % Tile::kVectors; }
  // The thread's place among the lanes of a sample, and the row of its sample in a round.
  static __device__ __forceinline__ int Lane() { return threadIdx.x % Tile::kLanes; }
  static __device__ __forceinline__ int RowOf(int round) {
    return round * Tile::kSamplesAtOnce + threadIdx.x / Tile::kLanes;
  }

  __device__ __forceinline__ bool IsInChunk(int row) const {
    return first_position_ + row < chunk_.positions();
  }
  __device__ __forceinline__ ChunkSample SampleAt(ChunkStart start, int row) const {
    const int position = min(first_position_ + row, chunk_.positions() - 1);
    return {chunk_, start, (position * sizes_.offset_groups + group_) * sizes_.taps + tap_};
  }

  __device__ __forceinline__ GradSample<T> Locate(ChunkStart start, int row) const {
    const ChunkSample at = SampleAt(start, row);
    if (!at.Exists(chunk_) || !IsInChunk(row)) {
      return {NoCorners(), 0, 0, 0, -1, primals_.x};
    }
    const BilinearSample<float> read = at.Read(chunk_, primals_.offset);
    const T* const image = primals_.x + at.image * sizes_.image_elements();
    return {CornersOf(read),  read.y,
            read.x,           at.Mask(chunk_, primals_.mask),
            at.Index(chunk_), image + group_ * sizes_.offset_group_channels};
  }

  static __device__ __forceinline__ SharedMatrix<T> GradY(int stage) {
    return {SharedMemory<T>() + stage * Tile::kGradY, Tile::kStepStride};
  }
  static __device__ __forceinline__ SharedMatrix<T> Kernel(int stage) {
    return {SharedMemory<T>() + kStages * Tile::kGradY + stage * Tile::kKernel, Tile::kStepStride};
  }
  static __device__ __forceinline__ SharedMatrix<T> GradColumns() {
    return {SharedMemory<T>() + kStages * (Tile::kGradY + Tile::kKernel), Tile::kGradStride};
  }
  static __device__ __forceinline__ GradSample<T>* Samples() {
    return reinterpret_cast<GradSample<T>*>(SharedMemory<unsigned char>() + Tile::kPipelineBytes);
  }

  const DeformConv2dChunk& chunk_;
  const DeformConv2dSizes& sizes_;
  const DeformConv2dPrimals<T>& primals_;
  int tap_, group_, first_position_;
  const T *grad_y_, *kernel_;  // the elements that the thread copies, at the first feature
  bool grad_y_exists_;
};

template <typename T>
__global__ void __launch_bounds__(GradSamplesTile<T>::kThreads,
                                  ResidentBlocks(GradSamplesTile<T>::kSharedBytes))
    DeformConv2dGradSamplesKernel(const DeformConv2dPrimals<T> primals,
                                  const T* grad_y,  // [N, H_out, W_out, O]
                                  ChunkStart start, const DeformConv2dCotangents<T> grads,
                                  T* grad_columns, const DeformConv2dChunk chunk) {
  using Tile = GradSamplesTile<T>;
  const GradSamplesBlock<T> block(chunk, start, primals, grad_y);
  typename Tile::Product product;
  typename Tile::Dots dots = {};
  product.Clear();

  Copies<GradSamplesBlock<T>> copies(block);
  for (auto step = block.AllSteps(); !step.done(); step.Advance()) {
    block.Multiply(product, copies.Next());
    if (!step.ends_tile()) continue;
    block.Put(product);
    block.AddTile(step, dots, grad_columns);
    product.Clear();
  }
  WaitForCopies<0>();
  block.Store(dots, grads);
}

}  // namespace

template <typename T>
cudaError_t LaunchDeformConv2dGradSamples(cudaStream_t stream, const DeformConv2dChunk& chunk,
                                          const DeformConv2dPrimals<T>& primals, const T* grad_y,
                                          ChunkStart start, const DeformConv2dCotangents<T>& grads,
                                          T* grad_columns) {
  using Tile = GradSamplesTile<T>;
  if (chunk.samples() == 0) return cudaSuccess;
  const unsigned tiles = BlocksFor(chunk.positions(), Tile::kPixels);
  const LaunchShape shape = {tiles * chunk.sizes.offset_groups * chunk.sizes.taps, Tile::kThreads,
                             Tile::kSharedBytes};
  return Launch(DeformConv2dGradSamplesKernel<T>, shape, stream, primals, grad_y, start, grads,
                grad_columns, chunk);
}

#define JAX_DCN_INSTANTIATE(T)                                                                     \
  template cudaError_t LaunchDeformConv2dGradSamples(                                              \
      cudaStream_t, const DeformConv2dChunk&, const DeformConv2dPrimals<T>&, const T*, ChunkStart, \
      const DeformConv2dCotangents<T>&, T*);
JAX_DCN_INSTANTIATE(float)
JAX_DCN_INSTANTIATE(BFloat16)
JAX_DCN_INSTANTIATE(Float16)

}  // namespace jax_dcn
