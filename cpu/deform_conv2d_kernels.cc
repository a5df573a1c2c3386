// SPDX-License-Identifier: MIT
// The loops of deformable convolution. Compiled once for each instruction set.
//
// Forward and tangent: a tile of output pixels, a block of channels and some taps at a time,
// sampled columns are written to cache and multiplied with the kernel there.
//
// Backward: blocks of channels run in parallel, each over all pixels in order. A block owns its
// channels of the gradients of x and of the kernel, so that nothing is added to by two threads and
// sums do not depend on the number of threads. What the gradients of offset and mask need of a
// block are four dot products a sample, which a second loop sums over the blocks.

#include "cpu/deform_conv2d_kernels.h"

#include "cpu/gemm.h"
#include "cpu/simd.h"

namespace jax_dcn::JAX_DCN_ISA {
namespace {

// Depth of a product whose right panel stays in the first-level cache.
constexpr int64_t kDepth = 256;
// Most pixels of a forward tile: its columns fill about half of a second-level cache.
constexpr int64_t kForwardPixels = 192;
// Channels of a backward block: two panels, and two lines of cache in each pixel that is sampled.
constexpr int64_t kBackwardChannels = 32;
// A strip of pixels is what backward multiplies at once: its rows of `grad_y` fill about a quarter
// of a second-level cache.
constexpr int64_t kStripPixels = 192, kStripBytes = 128 << 10;
// Samples and dot products of as many pixels as fit in this are shared by the blocks.
constexpr int64_t kSharedBytes = 2 << 20;

template <typename F>
void ParallelFor(Executor& executor, int64_t items, size_t scratch_bytes, const F& f) {
  const auto body = [](const void* context, int64_t item, char* scratch) {
    (*static_cast<const F*>(context))(item, scratch);
  };
  executor.For(items, scratch_bytes, body, &f);
}

// Hands out parts of a piece of memory, or counts what would be needed.
class Arena {
 public:
  explicit Arena(char* memory = nullptr) : memory_(memory) {}

  template <typename U>
  U* Take(int64_t count) {
    U* taken = memory_ == nullptr ? nullptr : reinterpret_cast<U*>(memory_ + bytes_);
    bytes_ += RoundUp(count * static_cast<int64_t>(sizeof(U)), 64);
    return taken;
  }

  int64_t bytes() const { return bytes_; }

 private:
  char* memory_;
  int64_t bytes_ = 0;
};

// Memory of one call, shared by its threads.
class Shared {
 public:
  explicit Shared(int64_t bytes) : memory_(new char[bytes + 64]) {}
  ~Shared() { delete[] memory_; }
  Shared(const Shared&) = delete;
  Arena arena() { return Arena(memory_ + (64 - reinterpret_cast<uintptr_t>(memory_) % 64)); }

 private:
  char* memory_;
};

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// The channels that one feature group and a block have in common.
struct Piece {
  int64_t feature_group;
  Range channels;
};

// Channels [begin, end) of one offset group.
struct ChannelBlock {
  int64_t offset_group;
  Range channels;

  template <typename F>
  void ForEachPiece(const DeformConv2dProblem& problem, const F& f) const {
    const int64_t size = problem.group_channels();
    for (int64_t group = channels.begin / size; group * size < channels.end; ++group) {
      f(Piece{group, {Max(channels.begin, group * size), Min(channels.end, (group + 1) * size)}});
    }
  }
};

// All channels, in blocks of about equal size.
class ChannelBlocks {
 public:
  ChannelBlocks(const DeformConv2dProblem& problem, int64_t most, int64_t lanes)
      : group_channels_(problem.offset_group_channels()), groups_(problem.offset_groups) {
    const int64_t blocks = CeilDiv(group_channels_, most);
    size_ = RoundUp(CeilDiv(group_channels_, blocks), lanes);
    blocks_per_group_ = CeilDiv(group_channels_, size_);
  }

  int64_t count() const { return groups_ * blocks_per_group_; }
  int64_t per_group() const { return blocks_per_group_; }
  int64_t most_channels() const { return Min(size_, group_channels_); }

  ChannelBlock operator[](int64_t index) const {
    const int64_t group = index / blocks_per_group_, first = group * group_channels_;
    const int64_t begin = first + index % blocks_per_group_ * size_;
    return {group, {begin, Min(begin + size_, first + group_channels_)}};
  }

 private:
  int64_t group_channels_, groups_, size_, blocks_per_group_;
};

// ---------------------------------------------------------------------------------------- samples

// The four pixels of a sample, at the first channel of a block. Those outside are a row of zeros:
// never the image multiplied by zero, which would turn an infinity into a NaN.
template <typename T>
struct Corners {
  const T* row[kCorners];
};

template <typename T, typename A>
JAX_DCN_INLINE Corners<T> CornersOf(const BilinearSample<A>& sample, const T* image,
                                    int64_t channels, const T* zeros) {
  Corners<T> corners;
  for (int i = 0; i < kCorners; ++i) {
    const int64_t pixel = sample.corner[i];
    corners.row[i] = pixel == kOutside ? zeros : image + pixel * channels;
  }
  return corners;
}

// out = (out +) Σ_i w_i row_i
template <bool kAdd, typename T, typename A>
JAX_DCN_INLINE void Interpolate(const Corners<T>& corners, const CornerWeights<A>& weights,
                                int64_t channels, A* out) {
  const A* w = weights.corner;
  int64_t c = 0;
  for (; c + kLanes<A> <= channels; c += kLanes<A>) {
    Vector<A> value = w[0] * Load(corners.row[0] + c);
    if (kAdd) value += Load(out + c);
    for (int i = 1; i < kCorners; ++i) value += w[i] * Load(corners.row[i] + c);
    Store<A>(out + c, value);
  }
  for (; c < channels; ++c) {
    A value = w[0] * corners.row[0][c];
    if (kAdd) value += out[c];
    for (int i = 1; i < kCorners; ++i) value += w[i] * corners.row[i][c];
    out[c] = value;
  }
}

// dots_i = Σ_c row_i[c] g[c]
template <typename T, typename A>
JAX_DCN_INLINE void Dot(const Corners<T>& corners, const A* g, int64_t channels, A* dots) {
  Vector<A> sums[kCorners] = {};
  int64_t c = 0;
  for (; c + kLanes<A> <= channels; c += kLanes<A>) {
    const Vector<A> factor = Load(g + c);
    for (int i = 0; i < kCorners; ++i) sums[i] += factor * Load(corners.row[i] + c);
  }
  for (int i = 0; i < kCorners; ++i) dots[i] = Sum<A>(sums[i]);
  for (; c < channels; ++c) {
    for (int i = 0; i < kCorners; ++i) dots[i] += g[c] * corners.row[i][c];
  }
}

// row += weight g
template <typename A>
JAX_DCN_INLINE void AddScaled(A* row, A weight, const A* g, int64_t channels) {
  int64_t c = 0;
  for (; c + kLanes<A> <= channels; c += kLanes<A>) {
    Store<A>(row + c, Load(row + c) + weight * Load(g + c));
  }
  for (; c < channels; ++c) row[c] += weight * g[c];
}

template <typename T, typename A>
A MaskAt(const DeformConv2dProblem& problem, const DeformConv2dPrimals<T>& primals, int64_t pixel,
         int64_t group, int64_t tap) {
  return primals.mask == nullptr ? A(1) : primals.mask[problem.SampleIndex(pixel, group, tap)];
}

// --------------------------------------------------------------------------- forward and tangent

// An image whose samples are added to the columns: by the weights of the value, m w, or by those of
// its tangent, ṁ w + m ẇ.
template <typename T>
struct ColumnSource {
  const T* image;
  bool tangent;
};

// Columns times a kernel: a term of the result.
template <typename T>
struct ColumnProduct {
  const T* kernel;
  int source_count;
  ColumnSource<T> sources[2];
};

// y = bias + Σ products
template <typename T>
class ColumnProducts {
 public:
  using A = typename Accumulator<T>::type;

  ColumnProducts(const DeformConv2dProblem& problem, const DeformConv2dPrimals<T>& primals,
                 const DeformConv2dTangents<T>& tangents, const T* bias, T* y)
      : problem_(problem),
        primals_(primals),
        tangents_(tangents),
        bias_(bias),
        y_(y),
        blocks_(problem, kDepth, kLanes<A>),
        block_taps_(Min(problem.taps(), Max(1, kDepth / blocks_.most_channels()))) {}

  void Add(const ColumnProduct<T>& product) { products_[product_count_++] = product; }

  void Run(Executor& executor, int64_t workers) {
    const int64_t pixels = problem_.pixels();
    // As few tiles as fit in cache, but a whole number for each thread.
    const int64_t tiles = workers * CeilDiv(pixels, workers * kForwardPixels);
    tile_pixels_ = RoundUp(CeilDiv(pixels, Max(1, tiles)), kTileRows);
    const int64_t items = CeilDiv(pixels, Max(1, tile_pixels_));
    ParallelFor(executor, items, TileScratch(nullptr).bytes, [this](int64_t item, char* scratch) {
      const int64_t begin = item * tile_pixels_;
      Tile({begin, Min(begin + tile_pixels_, problem_.pixels())}, TileScratch(scratch));
    });
  }

 private:
  struct Scratch {
    BilinearSample<A>* samples;  // [tile pixels, K]
    A* columns;                  // [tile pixels, taps, channels] of a block
    A* panel;                    // [taps, channels, kPanel] of a block
    T* zeros;                    // [channels] of a block
    int64_t bytes;
  };

  Scratch TileScratch(char* memory) const {
    Arena arena(memory);
    const int64_t depth = block_taps_ * blocks_.most_channels();
    Scratch scratch;
    scratch.samples = arena.Take<BilinearSample<A>>(tile_pixels_ * problem_.taps());
    scratch.columns = arena.Take<A>(tile_pixels_ * depth);
    scratch.panel = arena.Take<A>(depth * kPanel<A>);
    scratch.zeros = arena.Take<T>(blocks_.most_channels());
    scratch.bytes = arena.bytes();
    return scratch;
  }

  void Tile(Range pixels, const Scratch& scratch) const {
    __builtin_memset(scratch.zeros, 0, blocks_.most_channels() * sizeof(T));
    FillWithBias(pixels);
    for (int64_t i = 0; i < blocks_.count(); ++i) {
      const ChannelBlock block = blocks_[i];
      if (i % blocks_.per_group() == 0) Locate(pixels, block.offset_group, scratch);
      for (int64_t tap = 0; tap < problem_.taps(); tap += block_taps_) {
        const Range taps = {tap, Min(tap + block_taps_, problem_.taps())};
        for (int p = 0; p < product_count_; ++p) {
          Sample(pixels, block, taps, products_[p], scratch);
          block.ForEachPiece(problem_, [&](const Piece& piece) {
            Multiply(pixels, block, piece, taps, products_[p].kernel, scratch);
          });
        }
      }
    }
  }

  void FillWithBias(Range pixels) const {
    const int64_t features = problem_.features;
    for (int64_t pixel = pixels.begin; pixel < pixels.end; ++pixel) {
      T* row = y_ + pixel * features;
      for (int64_t o = 0; o < features; ++o) row[o] = bias_ == nullptr ? T(0) : bias_[o];
    }
  }

  void Locate(Range pixels, int64_t group, const Scratch& scratch) const {
    BilinearSample<A>* sample = scratch.samples;
    for (int64_t pixel = pixels.begin; pixel < pixels.end; ++pixel) {
      for (int64_t tap = 0; tap < problem_.taps(); ++tap) {
        *sample++ = SampleOf(problem_, primals_.offset, pixel, group, tap);
      }
    }
  }

  void Sample(Range pixels, const ChannelBlock& block, Range taps, const ColumnProduct<T>& product,
              const Scratch& scratch) const {
    SampleFrom<false>(pixels, block, taps, product.sources[0], scratch);
    for (int i = 1; i < product.source_count; ++i) {
      SampleFrom<true>(pixels, block, taps, product.sources[i], scratch);
    }
  }

  template <bool kAdd>
  void SampleFrom(Range pixels, const ChannelBlock& block, Range taps,
                  const ColumnSource<T>& source, const Scratch& scratch) const {
    const int64_t channels = block.channels.size();
    const int64_t image_size = problem_.image_pixels() * problem_.channels;
    A* column = scratch.columns;
    for (int64_t pixel = pixels.begin; pixel < pixels.end; ++pixel) {
      const T* image = source.image + problem_.ImageOf(pixel) * image_size + block.channels.begin;
      const BilinearSample<A>* samples = scratch.samples + (pixel - pixels.begin) * problem_.taps();
      for (int64_t tap = taps.begin; tap < taps.end; ++tap, column += channels) {
        const auto corners = CornersOf(samples[tap], image, problem_.channels, scratch.zeros);
        const auto weights = Weights(source, samples[tap], pixel, block.offset_group, tap);
        Interpolate<kAdd>(corners, weights, channels, column);
      }
    }
  }

  CornerWeights<A> Weights(const ColumnSource<T>& source, const BilinearSample<A>& sample,
                           int64_t pixel, int64_t group, int64_t tap) const {
    const A mask = MaskAt<T, A>(problem_, primals_, pixel, group, tap);
    if (!source.tangent) return ValueWeights(sample, mask);
    const int64_t index = problem_.SampleIndex(pixel, group, tap);
    auto weights = ValueWeights(sample, tangents_.mask == nullptr ? A(0) : tangents_.mask[index]);
    if (tangents_.offset != nullptr) {
      const A* dot = tangents_.offset + 2 * index;
      const auto moved = DerivativeWeights(sample, mask * dot[0], mask * dot[1]);
      for (int i = 0; i < kCorners; ++i) weights.corner[i] += moved.corner[i];
    }
    return weights;
  }

  void Multiply(Range pixels, const ChannelBlock& block, const Piece& piece, Range taps,
                const T* kernel, const Scratch& scratch) const {
    const int64_t channels = block.channels.size(), piece_channels = piece.channels.size();
    const int64_t group_channels = problem_.group_channels();
    const int64_t features = problem_.features, group_features = problem_.group_features();
    const int64_t first_channel = piece.channels.begin - piece.feature_group * group_channels;
    LeftMatrix<A> columns = {scratch.columns + piece.channels.begin - block.channels.begin,
                             taps.size() * channels, taps.size(), channels, piece_channels};
    for (int64_t o = 0; o < group_features; o += kPanel<A>) {
      const int64_t width = Min(kPanel<A>, group_features - o);
      const int64_t feature = piece.feature_group * group_features + o;
      A* panel = scratch.panel;
      for (int64_t tap = taps.begin; tap < taps.end; ++tap) {
        const T* rows = kernel + (tap * group_channels + first_channel) * features + feature;
        panel = PackRows(rows, piece_channels, features, width, panel);
      }
      MultiplyPanel<A, false>(pixels.size(), columns, scratch.panel,
                              {y_ + pixels.begin * features + feature, features, width});
    }
  }

  const DeformConv2dProblem& problem_;
  const DeformConv2dPrimals<T>& primals_;
  const DeformConv2dTangents<T>& tangents_;
  const T* const bias_;
  T* const y_;
  const ChannelBlocks blocks_;
  const int64_t block_taps_;
  int64_t tile_pixels_ = 0;
  ColumnProduct<T> products_[2];
  int product_count_ = 0;
};

template <typename T>
void DeformConv2dForward(Executor& executor, const DeformConv2dProblem& problem,
                         const DeformConv2dPrimals<T>& primals, const T* bias, T* y) {
  const DeformConv2dTangents<T> none = {};
  ColumnProducts<T> products(problem, primals, none, bias, y);
  products.Add({primals.kernel, 1, {{primals.x, false}}});
  products.Run(executor, executor.workers());
}

template <typename T>
void DeformConv2dJvp(Executor& executor, const DeformConv2dProblem& problem,
                     const DeformConv2dPrimals<T>& primals, const DeformConv2dTangents<T>& tangents,
                     T* y_dot) {
  ColumnProducts<T> products(problem, primals, tangents, tangents.bias, y_dot);
  if (tangents.kernel != nullptr) products.Add({tangents.kernel, 1, {{primals.x, false}}});
  ColumnProduct<T> moved = {primals.kernel, 0, {}};
  if (tangents.x != nullptr) moved.sources[moved.source_count++] = {tangents.x, false};
  if (tangents.offset != nullptr || tangents.mask != nullptr) {
    moved.sources[moved.source_count++] = {primals.x, true};
  }
  if (moved.source_count > 0) products.Add(moved);
  products.Run(executor, executor.workers());
}

// --------------------------------------------------------------------------------------- backward

template <typename T>
class Backward {
 public:
  using A = typename Accumulator<T>::type;

  Backward(const DeformConv2dProblem& problem, const DeformConv2dPrimals<T>& primals,
           const T* grad_y, const DeformConv2dCotangents<T>& grads)
      : problem_(problem),
        primals_(primals),
        grad_y_(grad_y),
        grads_(grads),
        blocks_(problem, kBackwardChannels, kLanes<A>),
        want_dots_(grads.offset != nullptr || grads.mask != nullptr),
        want_columns_grad_(want_dots_ || grads.x != nullptr),
        strip_pixels_(StripPixels(problem)),
        shared_pixels_(SharedPixels(problem)) {}

  void Run(Executor& executor) {
    if (grads_.bias != nullptr) SumBias(executor);
    Clear(executor, grads_.x, problem_.batch * problem_.image_pixels() * problem_.channels);
    Clear(executor, grads_.kernel, KernelSize());
    if (!want_columns_grad_ && grads_.kernel == nullptr) return;

    Shared memory(Allocate(Arena()));
    Allocate(memory.arena());
    if (want_columns_grad_) PackKernel(executor);
    for (int64_t begin = 0; begin < problem_.pixels(); begin += shared_pixels_) {
      const Range pixels = {begin, Min(begin + shared_pixels_, problem_.pixels())};
      Locate(executor, pixels);
      ParallelFor(executor, blocks_.count(), BlockScratch(nullptr).bytes,
                  [this, pixels](int64_t block, char* scratch) {
                    Block(block, pixels, BlockScratch(scratch));
                  });
      if (want_dots_) SumDots(executor, pixels);
    }
  }

 private:
  struct Scratch {
    A* columns;  // [strip pixels, channels]: their gradient, then in its place the columns
    A* right;    // panels of grad_y, [feature panels, strip pixels, kPanel] for each piece
    T* zeros;    // [channels]
    int64_t bytes;
  };

  static int64_t StripPixels(const DeformConv2dProblem& problem) {
    const int64_t fit = kStripBytes / Max(1, problem.features * sizeof(A));
    return Max(1, Min(kStripPixels, fit) / kTileRows) * kTileRows;
  }

  int64_t SharedPixels(const DeformConv2dProblem& problem) const {
    const int64_t bytes = problem.taps() * (problem.offset_groups * sizeof(BilinearSample<A>) +
                                            blocks_.count() * kCorners * sizeof(A));
    return Max(1, Min(1024, kSharedBytes / bytes) / strip_pixels_) * strip_pixels_;
  }

  int64_t KernelSize() const {
    return problem_.taps() * problem_.group_channels() * problem_.features;
  }

  int64_t PiecePanels(const Piece& piece) const {
    return CeilDiv(piece.channels.size(), kPanel<A>);
  }

  int64_t FeaturePanels() const { return CeilDiv(problem_.group_features(), kPanel<A>); }

  // Floats of one tap of a block in the packed kernel.
  int64_t PackedTapSize(const ChannelBlock& block) const {
    int64_t size = 0;
    block.ForEachPiece(problem_, [&](const Piece& piece) {
      size += PiecePanels(piece) * problem_.group_features() * kPanel<A>;
    });
    return size;
  }

  int64_t Allocate(Arena arena) {
    const int64_t taps = problem_.taps(), blocks = blocks_.count();
    samples_ = arena.Take<BilinearSample<A>>(shared_pixels_ * problem_.offset_groups * taps);
    dots_ = arena.Take<A>(want_dots_ ? blocks * shared_pixels_ * taps * kCorners : 0);
    packed_offsets_ = arena.Take<int64_t>(blocks + 1);
    int64_t packed = 0;
    for (int64_t i = 0; i < blocks; ++i) packed += taps * PackedTapSize(blocks_[i]);
    packed_kernel_ = arena.Take<A>(want_columns_grad_ ? packed : 0);
    return arena.bytes();
  }

  Scratch BlockScratch(char* memory) const {
    Arena arena(memory);
    int64_t most_pieces = 0;
    for (int64_t i = 0; i < blocks_.count(); ++i) {
      int64_t pieces = 0;
      blocks_[i].ForEachPiece(problem_, [&](const Piece&) { ++pieces; });
      most_pieces = Max(most_pieces, pieces);
    }
    Scratch scratch;
    scratch.columns = arena.Take<A>(strip_pixels_ * blocks_.most_channels());
    scratch.right = arena.Take<A>(most_pieces * FeaturePanels() * strip_pixels_ * kPanel<A>);
    scratch.zeros = arena.Take<T>(blocks_.most_channels());
    scratch.bytes = arena.bytes();
    return scratch;
  }

  static void Clear(Executor& executor, T* data, int64_t size) {
    constexpr int64_t kChunk = 1 << 16;
    if (data == nullptr) return;
    ParallelFor(executor, CeilDiv(size, kChunk), 0, [=](int64_t chunk, char*) {
      const int64_t begin = chunk * kChunk;
      __builtin_memset(data + begin, 0, Min(kChunk, size - begin) * sizeof(T));
    });
  }

  void SumBias(Executor& executor) const {
    constexpr int64_t kFeatures = 64, kPixels = 256;
    const int64_t features = problem_.features;
    ParallelFor(executor, CeilDiv(features, kFeatures), 0, [&](int64_t item, char*) {
      const Range range = {item * kFeatures, Min((item + 1) * kFeatures, features)};
      A total[kFeatures] = {};
      for (int64_t begin = 0; begin < problem_.pixels(); begin += kPixels) {
        // Sums of sums: rounding errors grow with the length of each, not of both.
        A sums[kFeatures] = {};
        for (int64_t p = begin; p < Min(begin + kPixels, problem_.pixels()); ++p) {
          const T* row = grad_y_ + p * features + range.begin;
          for (int64_t o = 0; o < range.size(); ++o) sums[o] += row[o];
        }
        for (int64_t o = 0; o < range.size(); ++o) total[o] += sums[o];
      }
      for (int64_t o = 0; o < range.size(); ++o) grads_.bias[range.begin + o] = T(total[o]);
    });
  }

  // The kernel transposed, in panels: [block][tap][piece][channel panel][feature][kPanel].
  void PackKernel(Executor& executor) {
    const int64_t taps = problem_.taps();
    packed_offsets_[0] = 0;
    for (int64_t i = 0; i < blocks_.count(); ++i) {
      packed_offsets_[i + 1] = packed_offsets_[i] + taps * PackedTapSize(blocks_[i]);
    }
    ParallelFor(executor, blocks_.count() * taps, 0, [&](int64_t item, char*) {
      const int64_t tap = item % taps;
      A* panel = PackedTap(item / taps, tap);
      blocks_[item / taps].ForEachPiece(problem_, [&](const Piece& piece) {
        for (int64_t c = 0; c < piece.channels.size(); c += kPanel<A>) {
          const int64_t width = Min(kPanel<A>, piece.channels.size() - c);
          panel = PackTransposed(primals_.kernel + KernelIndex(piece, tap, c),
                                 problem_.group_features(), problem_.features, width, panel);
        }
      });
    });
  }

  A* PackedTap(int64_t block, int64_t tap) const {
    return packed_kernel_ + packed_offsets_[block] + tap * PackedTapSize(blocks_[block]);
  }

  // Of channel `c` of a piece and the first feature of its group.
  int64_t KernelIndex(const Piece& piece, int64_t tap, int64_t c) const {
    const int64_t group_channels = problem_.group_channels();
    const int64_t channel = piece.channels.begin + c - piece.feature_group * group_channels;
    return (tap * group_channels + channel) * problem_.features +
           piece.feature_group * problem_.group_features();
  }

  void Locate(Executor& executor, Range pixels) const {
    const int64_t groups = problem_.offset_groups, taps = problem_.taps();
    ParallelFor(executor, CeilDiv(pixels.size(), strip_pixels_), 0, [&](int64_t strip, char*) {
      const int64_t begin = pixels.begin + strip * strip_pixels_;
      BilinearSample<A>* sample = samples_ + (begin - pixels.begin) * groups * taps;
      for (int64_t p = begin; p < Min(begin + strip_pixels_, pixels.end); ++p) {
        for (int64_t group = 0; group < groups; ++group) {
          for (int64_t tap = 0; tap < taps; ++tap) {
            *sample++ = SampleOf(problem_, primals_.offset, p, group, tap);
          }
        }
      }
    });
  }

  void Block(int64_t index, Range pixels, const Scratch& scratch) const {
    const ChannelBlock block = blocks_[index];
    __builtin_memset(scratch.zeros, 0, block.channels.size() * sizeof(T));
    for (int64_t begin = pixels.begin; begin < pixels.end; begin += strip_pixels_) {
      const Range strip = {begin, Min(begin + strip_pixels_, pixels.end)};
      if (grads_.kernel != nullptr) PackGradY(block, strip, scratch);
      for (int64_t tap = 0; tap < problem_.taps(); ++tap) {
        if (want_columns_grad_) MultiplyByKernel(index, block, strip, tap, scratch);
        VisitSamples(index, block, pixels.begin, strip, tap, scratch);
        if (grads_.kernel != nullptr) AddToKernelGrad(block, strip, tap, scratch);
      }
    }
  }

  void PackGradY(const ChannelBlock& block, Range strip, const Scratch& scratch) const {
    const int64_t features = problem_.features, group_features = problem_.group_features();
    A* panel = scratch.right;
    block.ForEachPiece(problem_, [&](const Piece& piece) {
      for (int64_t o = 0; o < group_features; o += kPanel<A>) {
        const T* rows = grad_y_ + strip.begin * features + piece.feature_group * group_features + o;
        panel = PackRows(rows, strip.size(), features, Min(kPanel<A>, group_features - o), panel);
      }
    });
  }

  // The gradient of one tap's columns: grad_y times the transposed kernel.
  void MultiplyByKernel(int64_t index, const ChannelBlock& block, Range strip, int64_t tap,
                        const Scratch& scratch) const {
    const int64_t channels = block.channels.size(), group_features = problem_.group_features();
    const A* panel = PackedTap(index, tap);
    __builtin_memset(scratch.columns, 0, strip.size() * channels * sizeof(A));
    block.ForEachPiece(problem_, [&](const Piece& piece) {
      const LeftMatrix<A> left = {
          grad_y_ + strip.begin * problem_.features + piece.feature_group * group_features,
          problem_.features, 1, 0, group_features};
      for (int64_t c = 0; c < piece.channels.size(); c += kPanel<A>) {
        MultiplyPanel<A, false>(strip.size(), left, panel,
                                {scratch.columns + piece.channels.begin - block.channels.begin + c,
                                 channels, Min(kPanel<A>, piece.channels.size() - c)});
        panel += group_features * kPanel<A>;
      }
    });
  }

  // For each sample of one tap: its dot products, its part of the gradient of x, and its column.
  void VisitSamples(int64_t index, const ChannelBlock& block, int64_t first_pixel, Range strip,
                    int64_t tap, const Scratch& scratch) const {
    const int64_t channels = block.channels.size(), taps = problem_.taps();
    const int64_t image_size = problem_.image_pixels() * problem_.channels;
    A* column = scratch.columns;
    for (int64_t pixel = strip.begin; pixel < strip.end; ++pixel, column += channels) {
      const int64_t local = pixel - first_pixel;
      const BilinearSample<A>& sample =
          samples_[(local * problem_.offset_groups + block.offset_group) * taps + tap];
      const int64_t image = problem_.ImageOf(pixel) * image_size + block.channels.begin;
      const auto corners = CornersOf(sample, primals_.x + image, problem_.channels, scratch.zeros);
      const auto weights =
          ValueWeights(sample, MaskAt<T, A>(problem_, primals_, pixel, block.offset_group, tap));
      if (want_dots_) Dot(corners, column, channels, DotsAt(index, local, tap));
      if (grads_.x != nullptr) Scatter(sample, weights, column, channels, grads_.x + image);
      if (grads_.kernel != nullptr) Interpolate<false>(corners, weights, channels, column);
    }
  }

  void Scatter(const BilinearSample<A>& sample, const CornerWeights<A>& weights, const A* column,
               int64_t channels, T* image) const {
    for (int i = 0; i < kCorners; ++i) {
      if (sample.corner[i] == kOutside) continue;
      AddScaled<A>(image + sample.corner[i] * problem_.channels, weights.corner[i], column,
                   channels);
    }
  }

  void AddToKernelGrad(const ChannelBlock& block, Range strip, int64_t tap,
                       const Scratch& scratch) const {
    const int64_t features = problem_.features, group_features = problem_.group_features();
    const A* panel = scratch.right;
    block.ForEachPiece(problem_, [&](const Piece& piece) {
      const LeftMatrix<A> columns = {scratch.columns + piece.channels.begin - block.channels.begin,
                                     block.channels.size(), 1, 0, strip.size()};
      for (int64_t o = 0; o < group_features; o += kPanel<A>) {
        MultiplyPanel<A, true>(piece.channels.size(), columns, panel,
                               {grads_.kernel + KernelIndex(piece, tap, 0) + o, features,
                                Min(kPanel<A>, group_features - o)});
        panel += strip.size() * kPanel<A>;
      }
    });
  }

  A* DotsAt(int64_t block, int64_t local_pixel, int64_t tap) const {
    return dots_ + ((block * shared_pixels_ + local_pixel) * problem_.taps() + tap) * kCorners;
  }

  void SumDots(Executor& executor, Range pixels) const {
    ParallelFor(executor, CeilDiv(pixels.size(), strip_pixels_), 0, [&](int64_t strip, char*) {
      const int64_t begin = pixels.begin + strip * strip_pixels_;
      for (int64_t p = begin; p < Min(begin + strip_pixels_, pixels.end); ++p) {
        for (int64_t group = 0; group < problem_.offset_groups; ++group) {
          for (int64_t tap = 0; tap < problem_.taps(); ++tap) {
            SumDotsOf(p, p - pixels.begin, group, tap);
          }
        }
      }
    });
  }

  void SumDotsOf(int64_t pixel, int64_t local, int64_t group, int64_t tap) const {
    A dots[kCorners] = {};
    for (int64_t b = group * blocks_.per_group(); b < (group + 1) * blocks_.per_group(); ++b) {
      const A* part = DotsAt(b, local, tap);
      for (int i = 0; i < kCorners; ++i) dots[i] += part[i];
    }
    const BilinearSample<A>& sample =
        samples_[(local * problem_.offset_groups + group) * problem_.taps() + tap];
    const A mask = MaskAt<T, A>(problem_, primals_, pixel, group, tap);
    const int64_t index = problem_.SampleIndex(pixel, group, tap);
    if (grads_.mask != nullptr) grads_.mask[index] = Combine(ValueWeights(sample, A(1)), dots);
    if (grads_.offset != nullptr) {
      grads_.offset[2 * index] = Combine(DerivativeWeights(sample, mask, A(0)), dots);
      grads_.offset[2 * index + 1] = Combine(DerivativeWeights(sample, A(0), mask), dots);
    }
  }

  const DeformConv2dProblem& problem_;
  const DeformConv2dPrimals<T>& primals_;
  const T* const grad_y_;
  const DeformConv2dCotangents<T>& grads_;
  const ChannelBlocks blocks_;
  const bool want_dots_, want_columns_grad_;
  const int64_t strip_pixels_, shared_pixels_;
  BilinearSample<A>* samples_ = nullptr;  // [shared pixels, G, K]
  A* dots_ = nullptr;                     // [blocks, shared pixels, K, 4]
  A* packed_kernel_ = nullptr;
  int64_t* packed_offsets_ = nullptr;  // of each block in it
};

template <typename T>
void DeformConv2dBackward(Executor& executor, const DeformConv2dProblem& problem,
                          const DeformConv2dPrimals<T>& primals, const T* grad_y,
                          const DeformConv2dCotangents<T>& grads) {
  Backward<T>(problem, primals, grad_y, grads).Run(executor);
}

}  // namespace

const DeformConv2dKernels<float> kDeformConv2dFloat = {
    DeformConv2dForward<float>, DeformConv2dJvp<float>, DeformConv2dBackward<float>};
const DeformConv2dKernels<double> kDeformConv2dDouble = {
    DeformConv2dForward<double>, DeformConv2dJvp<double>, DeformConv2dBackward<double>};

}  // namespace jax_dcn::JAX_DCN_ISA
