// Stacks, and switching from one to another: several courses of work that alternate on one thread.
#pragma once

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include <cstddef>

#if defined(__x86_64__)
// swapcontext() makes a system call each time, and under AddressSanitizer clears the shadow of a
// whole stack; a kernel switches between its threads at every barrier and shuffle.
extern "C" void asng_switch_stack(void** from, void* to);
#endif

namespace asng::cuda_on_cpu {

constexpr std::size_t kStackBytes = 256 * 1024;

// Where a fiber, or the scheduler, was when another took its turn.
class Context {
 public:
  // Starts at `entry`, which must not return, on the given stack.
  void start(void* bottom, std::size_t bytes, void (*entry)());

  void switch_to(Context& other) {
#if defined(__x86_64__)
    asng_switch_stack(&stack_, other.stack_);
#else
    swapcontext(&context_, &other.context_);
#endif
  }

 private:
#if defined(__x86_64__)
  void* stack_ = nullptr;
#else
  ucontext_t context_;
#endif
};

// A stack with a page below it that must not be touched, so that an overflow is a crash at once.
class Stack {
 public:
  explicit Stack(std::size_t number);
  ~Stack();
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;

  void* bottom() const;
  // Of stacks with other numbers a little fewer or more: if all began at the same place in a page,
  // their tops would drive each other out of the cache.
  std::size_t bytes() const { return bytes_; }
  // A thread that was abandoned has left the guards of its variables behind.
  void begin();
  void end() { in_use_ = false; }

 private:
  void* base_;
  std::size_t bytes_;
  bool in_use_ = false;
};

}  // namespace asng::cuda_on_cpu
