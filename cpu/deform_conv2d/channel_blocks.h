// SPDX-License-Identifier: MIT
// Divides the channels of a deformable convolution into blocks that fit into cache.
#ifndef JAX_DCN_CPU_DEFORM_CONV2D_CHANNEL_BLOCKS_H_
#define JAX_DCN_CPU_DEFORM_CONV2D_CHANNEL_BLOCKS_H_

#include <cstdint>

#include "common/deform_conv2d/problem.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/simd.h"

namespace jax_dcn::JAX_DCN_ISA {

// The channels that one feature group and a block have in common.
struct Piece {
  int64_t feature_group;
  Range channels;
};

// A block: channels of one offset group, or all channels of several offset groups.
struct ChannelBlock {
  Range offset_groups;
  Range channels;

  template <typename F>
  void ForEachPiece(const DeformConv2dProblem& problem, const F& f) const {
    const int64_t size = problem.group_channels();
    for (int64_t group = channels.begin / size; group * size < channels.end; ++group) {
      f(Piece{group, {Max(channels.begin, group * size), Min(channels.end, (group + 1) * size)}});
    }
  }
};

// The division of all channels into blocks of about equal size. A block is a part of an offset
// group, of `most` channels, or `together` whole offset groups.
class ChannelBlocks {
 public:
  ChannelBlocks(const DeformConv2dProblem& problem, int64_t most, int64_t lanes,
                int64_t together = 1)
      : group_channels_(problem.offset_group_channels()),
        groups_(problem.offset_groups),
        together_(together) {
    const int64_t blocks = CeilDiv(group_channels_, most);
    size_ = together_ > 1 ? together_ * group_channels_
                          : RoundUp(CeilDiv(group_channels_, blocks), lanes);
    blocks_per_group_ = CeilDiv(group_channels_, size_);
  }

  int64_t count() const { return CeilDiv(groups_, together_) * blocks_per_group_; }
  int64_t per_group() const { return blocks_per_group_; }
  int64_t most_channels() const { return Min(size_, together_ * group_channels_); }

  ChannelBlock operator[](int64_t index) const {
    const int64_t group = index / blocks_per_group_ * together_;
    const Range groups = {group, Min(group + together_, groups_)};
    const int64_t begin = group * group_channels_ + index % blocks_per_group_ * size_;
    return {groups, {begin, Min(begin + size_, groups.end * group_channels_)}};
  }

 private:
  int64_t group_channels_, groups_, together_, size_, blocks_per_group_;
};

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_DEFORM_CONV2D_CHANNEL_BLOCKS_H_
