// SPDX-License-Identifier: MIT
// The inverse of sampling: for each pixel, the samples that read it, in a fixed order.
//
// A segment is a set of pixels and the samples that read these pixels alone, such as an image and a
// group of its channels. A bin is a pixel of a segment: bins are [segments, pixels]. An entry is a
// corner of a sample. The id of an entry counts the corners of the segment.
//
// `fill.cuh` counts the entries of each bin, reserves room, and writes entries to the bins in any
// order. `gather.cuh` sorts each bin by id, and sums it. Chance decides where a bin lies and which
// entry was written first. Chance does not decide what a bin holds.
#ifndef JAX_DCN_CUDA_SAMPLING_BINS_H_
#define JAX_DCN_CUDA_SAMPLING_BINS_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "common/sampling/inline.h"

namespace jax_dcn {

// An ordinary bin of a 3x3 kernel has some 36 entries. A bin with more entries than kLongBin is
// long: a block sorts and sums a long bin, where some lanes of a warp serve an ordinary bin.
constexpr int kLongBin = 256;
// The most blocks that share the long bins: as many as a large GPU holds at once.
constexpr int32_t kLongBinBlocks = 1024;

struct Bins {
  int32_t count, long_capacity;
  int32_t segment_entries;  // ids are less
  void* weights;            // of the entries, [segments, ids], in the type of coordinates
  int32_t* unsorted;        // ids by bin, as they come
  int32_t* ids;             // ids by bin, in order
  int32_t* begins;          // of the bins, in `ids`
  int32_t* ends;            // of the bins; at first the numbers of entries
  int32_t* long_bins;
  int32_t* reserved;  // entries that have room
  int32_t* long_count;

  // Blocks that sort and sum long bins: no more than there can be long bins. They are the first
  // blocks of a grid, since long bins take longest.
  JAX_DCN_INLINE unsigned long_blocks() const {
    return static_cast<unsigned>(long_capacity < kLongBinBlocks ? long_capacity : kLongBinBlocks);
  }

  template <typename A>
  JAX_DCN_INLINE A* WeightsOf(int32_t segment) const {
    return static_cast<A*>(weights) + int64_t{segment} * segment_entries;
  }
};

// The memory for bins in words of 4 bytes, and where each array lies in the memory.
template <typename A>
class BinsLayout {
 public:
  BinsLayout(int64_t segments, int64_t segment_pixels, int64_t segment_entries)
      : bins_(segments * segment_pixels),
        entries_(segments * segment_entries),
        segment_entries_(segment_entries) {}

  int64_t bins() const { return bins_; }
  int64_t words() const {
    return (kWeightWords + 2) * entries_ + 2 * bins_ + long_capacity() + kCounters;
  }
  // The counters and the counts of the bins must be zero before the first kernel.
  int64_t cleared_words() const { return kCounters + bins_; }

  Bins In(int32_t* memory) const {
    Bins bins;
    bins.count = static_cast<int32_t>(bins_);
    bins.long_capacity = static_cast<int32_t>(long_capacity());
    bins.segment_entries = static_cast<int32_t>(segment_entries_);
    bins.weights = memory;
    bins.unsorted = memory + kWeightWords * entries_;
    bins.ids = bins.unsorted + entries_;
    bins.begins = bins.ids + entries_;
    bins.long_bins = bins.begins + bins_;
    bins.reserved = bins.long_bins + long_capacity();
    bins.long_count = bins.reserved + 1;
    bins.ends = bins.reserved + kCounters;
    return bins;
  }

 private:
  static constexpr int64_t kWeightWords = sizeof(A) / sizeof(int32_t), kCounters = 2;

  int64_t long_capacity() const { return entries_ / (kLongBin + 1); }

  int64_t bins_, entries_, segment_entries_;
};

// Sets the counts of the bins to zero.
template <typename A>
cudaError_t ClearBins(cudaStream_t stream, const BinsLayout<A>& layout, const Bins& bins) {
  return cudaMemsetAsync(bins.reserved, 0, sizeof(int32_t) * layout.cleared_words(), stream);
}

// Reserves room for the entries that have been counted.
cudaError_t LaunchReserveBins(cudaStream_t stream, const Bins& bins);

}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_SAMPLING_BINS_H_
