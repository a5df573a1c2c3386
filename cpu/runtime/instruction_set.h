// SPDX-License-Identifier: MIT
// Chooses, when the library is first used, the instruction set whose kernels run.
#ifndef JAX_DCN_CPU_RUNTIME_INSTRUCTION_SET_H_
#define JAX_DCN_CPU_RUNTIME_INSTRUCTION_SET_H_

namespace jax_dcn {

enum class InstructionSet { kBaseline, kAvx2, kAvx512, kAvx512Bf16, kAmxBf16 };

// The best instruction set that this processor has. The environment variable
// JAX_DCN_INSTRUCTION_SET can name a lesser one: "baseline", "avx2", "avx512" or "avx512_bf16". The
// Python package refuses other names.
// AMX has the kernels of AVX-512 BF16, whose products of bfloat16 then take the tiles of AMX.
InstructionSet CurrentInstructionSet();
const char* Name(InstructionSet set);

// The object called `name` of the current instruction set's namespace.
#if defined(JAX_DCN_X86)
#define JAX_DCN_KERNELS(name) baseline::name, avx2::name, avx512::name, avx512_bf16::name
#else
#define JAX_DCN_KERNELS(name) baseline::name, baseline::name, baseline::name, baseline::name
#endif

template <typename K>
const K& ForInstructionSet(const K& baseline, const K& avx2, const K& avx512,
                           const K& avx512_bf16) {
  switch (CurrentInstructionSet()) {
    case InstructionSet::kAmxBf16:
    case InstructionSet::kAvx512Bf16:
      return avx512_bf16;
    case InstructionSet::kAvx512:
      return avx512;
    case InstructionSet::kAvx2:
      return avx2;
    default:
      return baseline;
  }
}

}  // namespace jax_dcn

#endif  // JAX_DCN_CPU_RUNTIME_INSTRUCTION_SET_H_
