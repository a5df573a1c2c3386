// SPDX-License-Identifier: MIT
#include "cpu/runtime/instruction_set.h"

#if defined(JAX_DCN_X86)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#include <cstdlib>
#include <string>

namespace jax_dcn {
namespace {

#if defined(JAX_DCN_X86)
// Asked of the processor: the compiler's function does not know the name in every compiler.
bool HasF16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}

// Whether the processor multiplies tiles of bfloat16, and the system lets this process use them.
bool MayUseTiles() {
#if defined(__linux__)
  constexpr unsigned kTile = 1u << 24, kBFloat16 = 1u << 22;
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  return (edx & kTile) && (edx & kBFloat16) && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

// Without tiles, Intel's processors take longer for products of bfloat16 than of float32 (measured
// on a Xeon with AMX).
InstructionSet BestOfAvx512() {
  if (!__builtin_cpu_supports("avx512bf16")) return InstructionSet::kAvx512;
  if (MayUseTiles()) return InstructionSet::kAmxBf16;
  return __builtin_cpu_is("intel") ? InstructionSet::kAvx512 : InstructionSet::kAvx512Bf16;
}
#endif

InstructionSet BestOfProcessor() {
#if defined(JAX_DCN_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
    return BestOfAvx512();
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && HasF16c()) {
    return InstructionSet::kAvx2;
  }
#endif
  return InstructionSet::kBaseline;
}

InstructionSet Choose() {
  const InstructionSet best = BestOfProcessor();
  const char* wish = std::getenv("JAX_DCN_INSTRUCTION_SET");
  for (InstructionSet set : {InstructionSet::kBaseline, InstructionSet::kAvx2,
                             InstructionSet::kAvx512, InstructionSet::kAvx512Bf16}) {
    if (wish != nullptr && std::string(wish) == Name(set) && set < best) return set;
  }
  return best;
}

}  // namespace

InstructionSet CurrentInstructionSet() {
  static const InstructionSet set = Choose();
  return set;
}

const char* Name(InstructionSet set) {
  switch (set) {
    case InstructionSet::kAmxBf16:
      return "amx_bf16";
    case InstructionSet::kAvx512Bf16:
      return "avx512_bf16";
    case InstructionSet::kAvx512:
      return "avx512";
    case InstructionSet::kAvx2:
      return "avx2";
    default:
      return "baseline";
  }
}

}  // namespace jax_dcn
