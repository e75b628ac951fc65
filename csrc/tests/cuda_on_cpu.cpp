#include "cuda_on_cpu.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <cstdio>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace asng::cuda_on_cpu {

namespace {

constexpr std::size_t kStackBytes = 256 * 1024;
constexpr std::size_t kPageBytes = 4096;
constexpr unsigned int kLargestBlock = 1024;
constexpr std::size_t kLargestShared = 227 * 1024;

enum class State { kRunnable, kAtBarrier, kInWarpOperation, kDone };

// What a thread waits for and, once it may go on, what came of it.
struct Wait {
  const char* what = "";
  Location where;
  bool predicate = false;
  unsigned int mask = 0;
  int source = 0;
  std::size_t size = 0;
  unsigned char value[16] = {};
  int count = 0;
  Exchanged exchanged = {};
};

// A stack with a page below it that must not be touched, so that an overflow is a crash at once.
class Stack {
 public:
  Stack() {
    base_ = mmap(nullptr, kStackBytes + kPageBytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base_ == MAP_FAILED || mprotect(base_, kPageBytes, PROT_NONE) != 0) {
      throw std::bad_alloc();
    }
  }
  ~Stack() { munmap(base_, kStackBytes + kPageBytes); }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;

  void* bottom() const { return static_cast<unsigned char*>(base_) + kPageBytes; }
  // A thread that was abandoned leaves its guards behind.
  void clean() const {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(bottom(), kStackBytes);
#endif
  }

 private:
  void* base_;
};

struct Fiber {
  ucontext_t context;
  uint3 index;
  State state = State::kRunnable;
  Wait wait;
};

struct FreeAligned {
  void operator()(unsigned char* memory) const { ::operator delete(memory, std::align_val_t{128}); }
};

struct Grid;
thread_local Grid* active = nullptr;
thread_local bool backward = false;

std::string name(const uint3& index) {
  char text[48];
  std::snprintf(text, sizeof(text), "(%u, %u, %u)", index.x, index.y, index.z);
  return text;
}

std::string place(const Location& where) {
  return std::string(where.file_name()) + ":" + std::to_string(where.line());
}

bool same(const Wait& a, const Wait& b) {
  return a.where.line() == b.where.line() && a.where.column() == b.where.column() &&
         (a.where.file_name() == b.where.file_name() ||
          std::string_view(a.where.file_name()) == b.where.file_name());
}

std::vector<std::unique_ptr<Stack>>& stacks() {
  thread_local std::vector<std::unique_ptr<Stack>> all;
  return all;
}

struct Grid {
  const std::function<void()>& kernel;
  std::vector<Fiber> fibers;
  std::unique_ptr<unsigned char, FreeAligned> shared;
  std::size_t shared_bytes;
  ucontext_t scheduler{};
  Fiber* current = nullptr;
  std::exception_ptr error;
  std::size_t live = 0;
  std::size_t at_barrier = 0;
#if defined(__SANITIZE_ADDRESS__)
  const void* scheduler_bottom = nullptr;
  std::size_t scheduler_size = 0;
#endif

  Grid(const std::function<void()>& kernel, std::size_t threads, std::size_t shared_bytes)
      : kernel(kernel), fibers(threads), shared_bytes(shared_bytes) {
    shared.reset(static_cast<unsigned char*>(
        ::operator new(std::max<std::size_t>(shared_bytes, 1), std::align_val_t{128})));
    while (stacks().size() < threads) stacks().push_back(std::make_unique<Stack>());
  }

  static void enter() {
    Grid& grid = *active;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &grid.scheduler_bottom, &grid.scheduler_size);
#endif
    try {
      grid.kernel();
    } catch (...) {
      grid.error = std::current_exception();
    }
    grid.current->state = State::kDone;
    --grid.live;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(nullptr, grid.scheduler_bottom, grid.scheduler_size);
#endif
    setcontext(&grid.scheduler);
  }

  void resume(Fiber& fiber) {
    current = &fiber;
    threadIdx = fiber.index;
#if defined(__SANITIZE_ADDRESS__)
    void* fake_stack = nullptr;
    const Stack& stack = *stacks()[static_cast<std::size_t>(&fiber - fibers.data())];
    __sanitizer_start_switch_fiber(&fake_stack, stack.bottom(), kStackBytes);
#endif
    swapcontext(&scheduler, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
  }

  // Called by the current thread: the others have their turn.
  void yield() {
#if defined(__SANITIZE_ADDRESS__)
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, scheduler_bottom, scheduler_size);
#endif
    swapcontext(&current->context, &scheduler);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, &scheduler_bottom, &scheduler_size);
#endif
  }

  std::string describe(const Fiber& fiber) const {
    const std::string thread = "thread " + name(fiber.index);
    if (fiber.state == State::kDone) return thread + " has ended";
    return thread + " waits in " + fiber.wait.what + " at " + place(fiber.wait.where);
  }

  [[noreturn]] void diverged(const Fiber& one, const Fiber& other) const {
    throw std::runtime_error("threads diverge in block " + name(blockIdx) + ": " + describe(one) +
                             ", but " + describe(other));
  }

  void pass_barrier() {
    int count = 0;
    for (const Fiber& fiber : fibers) {
      if (!same(fiber.wait, fibers[0].wait)) diverged(fibers[0], fiber);
      count += fiber.wait.predicate ? 1 : 0;
    }
    for (Fiber& fiber : fibers) {
      fiber.wait.count = count;
      fiber.state = State::kRunnable;
    }
    at_barrier = 0;
  }

  // If all lanes that `fiber` waits for are there, lets them go on.
  void try_warp_operation(const Fiber& fiber) {
    const auto index = static_cast<std::size_t>(&fiber - fibers.data());
    const std::size_t first = index / 32 * 32;
    const std::size_t lanes = std::min<std::size_t>(32, fibers.size() - first);
    const Wait& wait = fiber.wait;
    unsigned int ballot = 0;
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      if ((wait.mask >> lane & 1u) == 0) continue;
      const Fiber& other = fibers[first + lane];
      if (other.state == State::kRunnable) return;
      if (other.state != State::kInWarpOperation || other.wait.mask != wait.mask ||
          !same(other.wait, wait)) {
        diverged(fiber, other);
      }
      ballot |= (other.wait.predicate ? 1u : 0u) << lane;
    }
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      if ((wait.mask >> lane & 1u) == 0) continue;
      Fiber& other = fibers[first + lane];
      other.wait.exchanged.ballot = ballot;
      const auto source = static_cast<std::size_t>(other.wait.source);
      if (other.wait.size > 0) {
        if (source >= lanes || (wait.mask >> source & 1u) == 0) {
          throw std::runtime_error("thread " + name(other.index) + " in block " + name(blockIdx) +
                                   " reads lane " + std::to_string(source) +
                                   ", which is not in the mask of " + wait.what + " at " +
                                   place(wait.where));
        }
        std::memcpy(other.wait.exchanged.value, fibers[first + source].wait.value, other.wait.size);
      }
      other.state = State::kRunnable;
    }
  }

  void advance(Fiber& fiber) {
    if (fiber.state != State::kRunnable) return;
    resume(fiber);
    if (error) std::rethrow_exception(error);
    if (fiber.state == State::kInWarpOperation) {
      try_warp_operation(fiber);
    } else if (at_barrier == fibers.size()) {
      pass_barrier();
    }
  }

  void start(Fiber& fiber, std::size_t number) {
    const Stack& stack = *stacks()[number];
    stack.clean();
    fiber.state = State::kRunnable;
    const auto rest = static_cast<unsigned int>(number);
    fiber.index = {rest % blockDim.x, rest / blockDim.x % blockDim.y,
                   rest / (blockDim.x * blockDim.y)};
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack.bottom();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, &Grid::enter, 0);
  }

  void run_block() {
    std::memset(shared.get(), 0xff, shared_bytes);
    const std::size_t threads = fibers.size();
    for (std::size_t i = 0; i < threads; ++i) start(fibers[i], i);
    live = threads;
    at_barrier = 0;
    while (live > 0) {
      bool stuck = true;
      for (std::size_t i = 0; i < threads; ++i) {
        Fiber& fiber = fibers[backward ? threads - 1 - i : i];
        stuck = stuck && fiber.state != State::kRunnable;
        advance(fiber);
      }
      if (!stuck) continue;
      const auto waiting = std::find_if(fibers.begin(), fibers.end(),
                                        [](const Fiber& f) { return f.state != State::kDone; });
      for (const Fiber& fiber : fibers) {
        if (fiber.state != waiting->state || !same(fiber.wait, waiting->wait)) {
          diverged(*waiting, fiber);
        }
      }
      throw std::logic_error("the grid does not advance: " + describe(*waiting));
    }
  }
};

void require(bool condition, const std::string& what) {
  if (!condition) throw std::runtime_error("the launch is invalid: " + what);
}

}  // namespace

void run(dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& kernel) {
  const std::size_t threads = std::size_t{block.x} * block.y * block.z;
  require(threads > 0 && threads <= kLargestBlock && block.z <= 64,
          "a block of " + name({block.x, block.y, block.z}));
  require(grid.x > 0 && grid.x <= 0x7fffffffu && grid.y > 0 && grid.y <= 65535 && grid.z > 0 &&
              grid.z <= 65535,
          "a grid of " + name({grid.x, grid.y, grid.z}));
  require(shared_bytes <= kLargestShared,
          std::to_string(shared_bytes) + " bytes of dynamic shared memory");
  require(active == nullptr, "kernels cannot launch kernels here");
  Grid state(kernel, threads, shared_bytes);
  gridDim = grid;
  blockDim = block;
  struct Active {
    explicit Active(Grid* grid) { active = grid; }
    ~Active() { active = nullptr; }
  } const scope(&state);
  const std::size_t blocks = std::size_t{grid.x} * grid.y * grid.z;
  for (std::size_t b = 0; b < blocks; ++b) {
    const std::size_t number = backward ? blocks - 1 - b : b;
    blockIdx = {static_cast<unsigned int>(number % grid.x),
                static_cast<unsigned int>(number / grid.x % grid.y),
                static_cast<unsigned int>(number / grid.x / grid.y)};
    state.run_block();
  }
}

void* dynamic_shared() { return active->shared.get(); }

Backward::Backward() { backward = true; }
Backward::~Backward() { backward = false; }

int lane() { return static_cast<int>((active->current - active->fibers.data()) % 32); }

int block_barrier(const char* what, bool predicate, const Location& where) {
  Fiber& fiber = *active->current;
  fiber.wait.what = what;
  fiber.wait.where = where;
  fiber.wait.predicate = predicate;
  fiber.state = State::kAtBarrier;
  ++active->at_barrier;
  active->yield();
  return fiber.wait.count;
}

Exchanged exchange(const char* what, unsigned int mask, bool predicate, int source,
                   const void* value, std::size_t size, const Location& where) {
  Fiber& fiber = *active->current;
  const auto index = static_cast<std::size_t>(active->current - active->fibers.data());
  const std::size_t lanes = std::min<std::size_t>(32, active->fibers.size() - index / 32 * 32);
  // Lanes that a block's last warp does not have may be named all the same, as with a full mask.
  const unsigned int existing = lanes == 32 ? 0xffffffffu : (1u << lanes) - 1;
  if ((mask >> (index % 32) & 1u) == 0) {
    throw std::runtime_error("thread " + name(fiber.index) + " in block " + name(blockIdx) +
                             " is not in the mask of its " + what + " at " + place(where));
  }
  fiber.wait.what = what;
  fiber.wait.where = where;
  fiber.wait.mask = mask & existing;
  fiber.wait.predicate = predicate;
  fiber.wait.source = source;
  fiber.wait.size = size;
  if (size > 0) std::memcpy(fiber.wait.value, value, size);
  fiber.state = State::kInWarpOperation;
  active->yield();
  return fiber.wait.exchanged;
}

}  // namespace asng::cuda_on_cpu
