// SPDX-License-Identifier: MIT
// The kernel transposed and packed, for the product that makes the gradient of the columns.
#ifndef JAX_DCN_CPU_DEFORM_CONV2D_TRANSPOSED_KERNEL_H_
#define JAX_DCN_CPU_DEFORM_CONV2D_TRANSPOSED_KERNEL_H_

#include <cstdint>

#include "common/deform_conv2d/problem.h"
#include "cpu/deform_conv2d/channel_blocks.h"
#include "cpu/runtime/gemm.h"
#include "cpu/runtime/parallel.h"

namespace jax_dcn::JAX_DCN_ISA {

// The position in the kernel of channel `c` of a piece and of the first feature of its group.
inline int64_t KernelIndex(const DeformConv2dProblem& problem, const Piece& piece, int64_t tap,
                           int64_t c) {
  const int64_t group_channels = problem.group_channels();
  const int64_t channel = piece.channels.begin + c - piece.feature_group * group_channels;
  return (tap * group_channels + channel) * problem.features +
         piece.feature_group * problem.group_features();
}

// Panels in the order [block][tap][piece][channel panel][feature][kPanel].
template <typename T, typename E>
class TransposedKernel {
 public:
  using A = typename Accumulator<T>::type;
  using Element = typename Packed<E>::Element;

  TransposedKernel(const DeformConv2dProblem& problem, const ChannelBlocks& blocks, const T* kernel)
      : problem_(problem), blocks_(blocks), kernel_(kernel) {}

  void Allocate(Arena& arena) {
    const int64_t blocks = blocks_.count(), taps = problem_.taps();
    offsets_ = arena.Take<int64_t>(blocks + 1);
    int64_t size = 0;
    for (int64_t i = 0; i < blocks; ++i) size += taps * TapSize(blocks_[i]);
    packed_ = arena.Take<Element>(size);
  }

  // The items that pack the kernel; none if no gradient needs the kernel.
  auto Packing(bool wanted) {
    const int64_t taps = problem_.taps();
    if (wanted) offsets_[0] = 0;
    for (int64_t i = 0; wanted && i < blocks_.count(); ++i) {
      offsets_[i + 1] = offsets_[i] + taps * TapSize(blocks_[i]);
    }
    return Items{wanted ? blocks_.count() * taps : 0,
                 [this, taps](int64_t item, char*) { Pack(item / taps, item % taps); }};
  }

  Element* Tap(int64_t block, int64_t tap) const {
    return packed_ + offsets_[block] + tap * TapSize(blocks_[block]);
  }

 private:
  void Pack(int64_t block, int64_t tap) const {
    Element* panel = Tap(block, tap);
    blocks_[block].ForEachPiece(problem_, [&](const Piece& piece) {
      for (int64_t c = 0; c < piece.channels.size(); c += kPanel<A>) {
        const int64_t width = Min(kPanel<A>, piece.channels.size() - c);
        panel = PackTransposed(kernel_ + KernelIndex(problem_, piece, tap, c),
                               problem_.group_features(), problem_.features, width, panel);
      }
    });
  }

  int64_t TapSize(const ChannelBlock& block) const {
    int64_t panels = 0;
    block.ForEachPiece(
        problem_, [&](const Piece& piece) { panels += CeilDiv(piece.channels.size(), kPanel<A>); });
    return panels * problem_.group_features() / Packed<E>::kDepth * kPanel<A>;
  }

  const DeformConv2dProblem& problem_;
  const ChannelBlocks& blocks_;
  const T* const kernel_;
  Element* packed_ = nullptr;
  int64_t* offsets_ = nullptr;  // of each block
};

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_DEFORM_CONV2D_TRANSPOSED_KERNEL_H_
