// SPDX-License-Identifier: MIT
// Memory for the work of a call, kept for the next call.
#ifndef JAX_DCN_CPU_RUNTIME_MEMORY_H_
#define JAX_DCN_CPU_RUNTIME_MEMORY_H_

#include <cstddef>

namespace jax_dcn {

// A piece of memory, aligned to 64 bytes. The process keeps pieces that are given back, up to 64
// MiB: the system clears and maps every page of new memory, which can take as long as the call.
class Memory {
 public:
  explicit Memory(size_t bytes);
  ~Memory();
  Memory(const Memory&) = delete;

  char* data() const { return data_; }

 private:
  size_t size_;
  char* data_;
};

}  // namespace jax_dcn

#endif  // JAX_DCN_CPU_RUNTIME_MEMORY_H_
