// SPDX-License-Identifier: MIT
#include "cpu/runtime/instruction_set.h"

#if defined(JAX_DCN_X86)
#include <cpuid.h>
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
#endif

InstructionSet BestOfProcessor() {
#if defined(JAX_DCN_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
    return __builtin_cpu_supports("avx512bf16") ? InstructionSet::kAvx512Bf16
                                                : InstructionSet::kAvx512;
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
  for (InstructionSet set :
       {InstructionSet::kBaseline, InstructionSet::kAvx2, InstructionSet::kAvx512}) {
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
