#include "platform/grid_on_cpu/fibers.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#if defined(__x86_64__)
asm(R"(
.text
.globl asng_switch_stack
.hidden asng_switch_stack
.type asng_switch_stack, @function
asng_switch_stack:
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
.size asng_switch_stack, .-asng_switch_stack
)");
#endif

namespace asng::cuda_on_cpu {

namespace {
constexpr std::size_t kPageBytes = 4096, kCacheLineBytes = 64;
}  // namespace

void Context::start(void* bottom, std::size_t bytes, void (*entry)()) {
#if defined(__x86_64__)
  // As if asng_switch_stack() had been called by `entry` before its first instruction: six
  // registers, and the address to return to where the stack is aligned as at a call.
  void** top = reinterpret_cast<void**>(static_cast<unsigned char*>(bottom) + bytes) - 2;
  *top = reinterpret_cast<void*>(entry);
  top -= 6;
  std::fill_n(top, 6, nullptr);
  stack_ = top;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = bottom;
  context_.uc_stack.ss_size = bytes;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
#endif
}

Stack::Stack(std::size_t number) : bytes_(kStackBytes - number * kCacheLineBytes % kPageBytes) {
  base_ = mmap(nullptr, kStackBytes + kPageBytes, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base_ == MAP_FAILED || mprotect(base_, kPageBytes, PROT_NONE) != 0) {
    throw std::bad_alloc();
  }
}

Stack::~Stack() { munmap(base_, kStackBytes + kPageBytes); }

void* Stack::bottom() const { return static_cast<unsigned char*>(base_) + kPageBytes; }

void Stack::begin() {
#if defined(__SANITIZE_ADDRESS__)
  if (in_use_) __asan_unpoison_memory_region(bottom(), kStackBytes);
#endif
  in_use_ = true;
}

}  // namespace asng::cuda_on_cpu
