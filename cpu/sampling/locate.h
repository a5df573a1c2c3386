// SPDX-License-Identifier: MIT
// Locates many samples, a vector of positions at a time.
#ifndef JAX_DCN_CPU_SAMPLING_LOCATE_H_
#define JAX_DCN_CPU_SAMPLING_LOCATE_H_

#include <cstdint>
#include <type_traits>

#include "common/sampling/locate.h"
#include "cpu/runtime/simd.h"
#include "cpu/sampling/samples.h"

namespace jax_dcn::JAX_DCN_ISA {

// Some positions in a map, and the pixels around them.
template <int kAxes, typename A>
class LocatedSamples {
 public:
  static constexpr int64_t kMost = 128;

  // The coordinate of position `i`, in pixels. The caller writes it before `Locate`.
  JAX_DCN_INLINE A& position(int axis, int64_t i) { return positions_[axis][i]; }

  void Locate(const SampledMap<kAxes>& map, int64_t count) {
    for (int64_t i = 0; i < count; i += kLanes<A>) {
      Vector<A> position[kAxes];
      for (int axis = 0; axis < kAxes; ++axis) position[axis] = Load(positions_[axis] + i);
      vectors_[i / kLanes<A>] = jax_dcn::Locate<A>(map, position);
    }
  }

  // The pixels around position `i`.
  JAX_DCN_INLINE auto operator[](int64_t i) const {
    const Located& located = vectors_[i / kLanes<A>];
    const int64_t lane = i % kLanes<A>;
    Location<kAxes, A, Flag> at;
    for (int axis = 0; axis < kAxes; ++axis) {
      at.low[axis] = located.low[axis][lane];
      at.fraction[axis] = located.fraction[axis][lane];
      at.outside_low[axis] = located.outside_low[axis][lane];
      at.outside_high[axis] = located.outside_high[axis][lane];
      at.repeats_low[axis] = located.repeats_low[axis][lane];
    }
    return at;
  }

 private:
  using Located = Location<kAxes, Vector<A>>;
  using Flag = std::conditional_t<sizeof(A) == sizeof(int64_t), int64_t, int32_t>;

  alignas(64) A positions_[kAxes][kMost];
  Located vectors_[kMost / kLanes<A>];
};

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_SAMPLING_LOCATE_H_
