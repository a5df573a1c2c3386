// SPDX-License-Identifier: MIT
// Stacks of execution that are switched by hand.
#ifndef JAX_DCN_TESTS_CUDA_HOST_FIBER_H_
#define JAX_DCN_TESTS_CUDA_HOST_FIBER_H_

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace cuda_host {

#if defined(__x86_64__)

// The C library's switch asks the kernel about signals each time, which takes ten times as long.
asm(R"(
.text
.local cuda_host_switch
.type cuda_host_switch, @function
cuda_host_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_host_switch, .-cuda_host_switch
)");
extern "C" void cuda_host_switch(void** from, void* to);

class Context {
 public:
  // Makes a context that starts with `function()`, which must not return.
  void Start(char* stack, size_t bytes, void (*function)()) {
    const uintptr_t top = reinterpret_cast<uintptr_t>(stack + bytes) / 16 * 16;
    void** const slots = reinterpret_cast<void**>(top) - 8;  // six registers, and where to go
    slots[6] = reinterpret_cast<void*>(function);
    stack_pointer_ = slots;
  }

  static void Switch(Context* from, Context* to) {
    cuda_host_switch(&from->stack_pointer_, to->stack_pointer_);
  }

 private:
  void* stack_pointer_;
};

#else

class Context {
 public:
  void Start(char* stack, size_t bytes, void (*function)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = bytes;
    context_.uc_link = nullptr;
    makecontext(&context_, function, 0);
  }

  static void Switch(Context* from, Context* to) { swapcontext(&from->context_, &to->context_); }

 private:
  ucontext_t context_;
};

#endif

}  // namespace cuda_host

#endif  // JAX_DCN_TESTS_CUDA_HOST_FIBER_H_
