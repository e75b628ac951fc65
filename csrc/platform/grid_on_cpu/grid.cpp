#include "platform/grid_on_cpu/grid.h"

#include <cstdio>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "platform/grid_on_cpu/fibers.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace asng::cuda_on_cpu {

namespace {

constexpr unsigned int kLargestBlock = 1024;
constexpr std::size_t kPlainShared = 48 * 1024;
constexpr std::size_t kLargestResident = 16 * 1024;

enum class State { kRunnable, kAtBarrier, kInWarpOperation, kSpinning, kDone };

// What a thread waits for and, once it may continue, what it received.
struct Wait {
  const char* what = "";
  Location where;
  bool predicate = false;
  unsigned int mask = 0;
  int source = 0;
  std::size_t size = 0;
  unsigned char value[16] = {};
  const unsigned long long* counter = nullptr;  // or else `word`, until it is odd
  const unsigned int* word = nullptr;
  unsigned long long target = 0;
  int count = 0;
  Exchanged exchanged = {};

  // Of a wait for other blocks.
  bool over() const { return counter != nullptr ? *counter >= target : *word % 2 == 1; }
};

struct Block;

// What a thread has started to copy, and where each closed group ends.
struct Copies {
  struct Copy {
    void* to;
    const void* from;
    std::size_t bytes;
  };
  std::vector<Copy> started;
  std::vector<std::size_t> ends;

  void make_first(std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      const Copy& copy = started[i];
      if (copy.from == nullptr) {
        std::memset(copy.to, 0, copy.bytes);
      } else {
        std::memcpy(copy.to, copy.from, copy.bytes);
      }
    }
    started.erase(started.begin(), started.begin() + static_cast<std::ptrdiff_t>(count));
    for (std::size_t& end : ends) end -= std::min(end, count);
  }
};

struct Fiber {
  Context context;
  Block* block = nullptr;
  uint3 index{};
  State state = State::kRunnable;
  Wait wait;
  DelayedWork delayed = DelayedWork(1);
  Copies copies;
};

// What instructions ask for at most.
constexpr std::align_val_t kSharedAlignment{1024};

struct FreeAligned {
  void operator()(unsigned char* memory) const { ::operator delete(memory, kSharedAlignment); }
};

struct Block {
  uint3 index{};
  std::span<Fiber> fibers;
  std::unique_ptr<unsigned char, FreeAligned> shared;
  std::size_t at_barrier = 0;

  std::size_t number(const Fiber& fiber) const {
    return static_cast<std::size_t>(&fiber - fibers.data());
  }
};

struct Grid;
thread_local Grid* active = nullptr;
thread_local bool backward = false;
thread_local bool launches_only = false;
thread_local std::size_t largest_shared = kLargestShared;

// What kernels have opted in to; as on a device, for all threads.
std::mutex opted_in_mutex;
std::unordered_map<const void*, std::size_t>& opted_in() {
  static std::unordered_map<const void*, std::size_t> bytes;
  return bytes;
}

std::size_t allowed_shared(const void* function) {
  const std::lock_guard lock(opted_in_mutex);
  const auto found = opted_in().find(function);
  return found == opted_in().end() ? kPlainShared : std::max(kPlainShared, found->second);
}

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
  std::vector<Fiber> fibers;  // of the blocks that alternate
  std::vector<Block> blocks;
  std::size_t shared_bytes;
  Context scheduler;
  Fiber* current = nullptr;
  std::exception_ptr error;
  std::size_t live = 0;
#if defined(__SANITIZE_ADDRESS__)
  const void* scheduler_bottom = nullptr;
  std::size_t scheduler_size = 0;
#endif

  Grid(const std::function<void()>& kernel, std::size_t resident, std::size_t threads,
       std::size_t shared_bytes)
      : kernel(kernel), fibers(resident * threads), blocks(resident), shared_bytes(shared_bytes) {
    for (std::size_t b = 0; b < resident; ++b) {
      blocks[b].fibers = std::span(fibers).subspan(b * threads, threads);
      blocks[b].shared.reset(static_cast<unsigned char*>(
          ::operator new(std::max<std::size_t>(shared_bytes, 1), kSharedAlignment)));
    }
    while (stacks().size() < fibers.size()) stacks().push_back(std::make_unique<Stack>());
  }

  Stack& stack_of(const Fiber& fiber) const {
    return *stacks()[static_cast<std::size_t>(&fiber - fibers.data())];
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
    grid.stack_of(*grid.current).end();
    grid.current->state = State::kDone;
    --grid.live;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(nullptr, grid.scheduler_bottom, grid.scheduler_size);
#endif
    grid.current->context.switch_to(grid.scheduler);
  }

  void resume(Fiber& fiber) {
    current = &fiber;
    threadIdx = fiber.index;
    blockIdx = fiber.block->index;
#if defined(__SANITIZE_ADDRESS__)
    void* fake_stack = nullptr;
    const Stack& stack = stack_of(fiber);
    __sanitizer_start_switch_fiber(&fake_stack, stack.bottom(), kStackBytes);
#endif
    scheduler.switch_to(fiber.context);
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
    current->context.switch_to(scheduler);
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
    throw std::runtime_error("threads diverge in block " + name(one.block->index) + ": " +
                             describe(one) + ", but " + describe(other));
  }

  void pass_barrier(Block& block) {
    int count = 0;
    for (const Fiber& fiber : block.fibers) {
      if (!same(fiber.wait, block.fibers[0].wait)) diverged(block.fibers[0], fiber);
      count += fiber.wait.predicate ? 1 : 0;
    }
    for (Fiber& fiber : block.fibers) {
      fiber.wait.count = count;
      fiber.state = State::kRunnable;
    }
    block.at_barrier = 0;
  }

  // If all lanes that `fiber` waits for are there, lets them go on.
  void try_warp_operation(const Fiber& fiber) {
    const std::span<Fiber> fibers = fiber.block->fibers;
    const std::size_t first = fiber.block->number(fiber) / 32 * 32;
    const std::size_t lanes = std::min<std::size_t>(32, fibers.size() - first);
    const Wait& wait = fiber.wait;
    unsigned int ballot = 0;
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      if ((wait.mask >> lane & 1u) == 0) continue;
      const Fiber& other = fibers[first + lane];
      if (other.state == State::kRunnable || other.state == State::kSpinning) return;
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
          throw std::runtime_error("thread " + name(other.index) + " in block " +
                                   name(fiber.block->index) + " reads lane " +
                                   std::to_string(source) + ", which is not in the mask of " +
                                   wait.what + " at " + place(wait.where));
        }
        std::memcpy(other.wait.exchanged.value, fibers[first + source].wait.value, other.wait.size);
      }
      other.state = State::kRunnable;
    }
  }

  static bool can_go_on(const Fiber& fiber) {
    return fiber.state == State::kRunnable ||
           (fiber.state == State::kSpinning && fiber.wait.over());
  }

  void advance(Fiber& fiber) {
    fiber.state = State::kRunnable;
    resume(fiber);
    if (error) std::rethrow_exception(error);
    if (fiber.state == State::kInWarpOperation) {
      try_warp_operation(fiber);
    } else if (fiber.block->at_barrier == fiber.block->fibers.size()) {
      pass_barrier(*fiber.block);
    }
  }

  void start(Fiber& fiber) {
    Stack& stack = stack_of(fiber);
    stack.begin();
    fiber.state = State::kRunnable;
    fiber.delayed.assign(1, {});
    fiber.copies.started.clear();
    fiber.copies.ends.clear();
    const auto rest = static_cast<unsigned int>(fiber.block->number(fiber));
    fiber.index = {rest % blockDim.x, rest / blockDim.x % blockDim.y,
                   rest / (blockDim.x * blockDim.y)};
    fiber.context.start(stack.bottom(), kStackBytes, &Grid::enter);
  }

  void start(Block& block, std::size_t number) {
    block.index = {static_cast<unsigned int>(number % gridDim.x),
                   static_cast<unsigned int>(number / gridDim.x % gridDim.y),
                   static_cast<unsigned int>(number / gridDim.x / gridDim.y)};
    block.at_barrier = 0;
    std::memset(block.shared.get(), 0xff, shared_bytes);
    for (Fiber& fiber : block.fibers) {
      fiber.block = &block;
      start(fiber);
    }
  }

  // Blocks from `first` on, as many as alternate. Each runs as far as it can before the next, so
  // that a block that does not wait for the others misses what they write.
  void run_from(std::size_t first) {
    for (std::size_t b = 0; b < blocks.size(); ++b) start(blocks[b], first + b);
    live = fibers.size();
    while (live > 0) {
      bool stuck = true;
      for (std::size_t b = 0; b < blocks.size(); ++b) {
        while (run_once(blocks[backward ? blocks.size() - 1 - b : b])) stuck = false;
      }
      if (stuck) explain();
    }
  }

  // Gives every thread of a block that can go on its turn; returns whether there was one.
  bool run_once(Block& block) {
    bool any = false;
    const std::size_t threads = block.fibers.size();
    for (std::size_t i = 0; i < threads; ++i) {
      Fiber& fiber = block.fibers[backward ? threads - 1 - i : i];
      if (can_go_on(fiber)) {
        any = true;
        advance(fiber);
      }
    }
    return any;
  }

  [[noreturn]] void explain() const {
    const auto waits = [](const Fiber& f) { return f.state != State::kDone; };
    const Fiber& waiting = *std::find_if(fibers.begin(), fibers.end(), waits);
    for (const Fiber& fiber : waiting.block->fibers) {
      if (fiber.state != waiting.state || !same(fiber.wait, waiting.wait)) {
        diverged(waiting, fiber);
      }
    }
    throw std::runtime_error("the grid does not advance: in block " + name(waiting.block->index) +
                             ", " + describe(waiting) + ", for ever");
  }
};

void require(bool condition, const std::string& what) {
  if (!condition) throw std::runtime_error("the launch is invalid: " + what);
}

}  // namespace

void run(const void* function, dim3 grid, dim3 block, std::size_t shared_bytes,
         const std::function<void()>& kernel, Blocks how) {
  const std::size_t threads = std::size_t{block.x} * block.y * block.z;
  require(threads > 0 && threads <= kLargestBlock && block.z <= 64,
          "a block of " + name({block.x, block.y, block.z}));
  require(grid.x > 0 && grid.x <= 0x7fffffffu && grid.y > 0 && grid.y <= 65535 && grid.z > 0 &&
              grid.z <= 65535,
          "a grid of " + name({grid.x, grid.y, grid.z}));
  require(shared_bytes <= allowed_shared(function), std::to_string(shared_bytes) +
                                                        " bytes of dynamic shared memory, of " +
                                                        std::to_string(allowed_shared(function)));
  require(active == nullptr, "kernels cannot launch kernels here");
  const std::size_t blocks = std::size_t{grid.x} * grid.y * grid.z;
  const std::size_t resident = how == Blocks::kTogether ? blocks : 1;
  require(resident * threads <= kLargestResident,
          std::to_string(resident) + " blocks that wait for each other");
  if (launches_only) return;
  Grid state(kernel, resident, threads, shared_bytes);
  gridDim = grid;
  blockDim = block;
  struct Active {
    explicit Active(Grid* grid) { active = grid; }
    ~Active() { active = nullptr; }
  } const scope(&state);
  for (std::size_t b = 0; b < blocks; b += resident) {
    state.run_from(backward ? blocks - resident - b : b);
  }
}

DelayedWork& delayed_work() { return active->current->delayed; }

void start_copy(void* to, const void* from, std::size_t bytes) {
  check_shared(to);
  std::memset(to, 0xff, bytes);
  active->current->copies.started.push_back({to, from, bytes});
}
void close_copies() {
  Copies& copies = active->current->copies;
  copies.ends.push_back(copies.started.size());
}
void wait_for_copies() {
  Copies& copies = active->current->copies;
  copies.make_first(copies.started.size());
  copies.ends.clear();
}
void wait_for_closed_copies(std::size_t open) {
  Copies& copies = active->current->copies;
  if (copies.ends.size() <= open) return;
  const auto last = static_cast<std::ptrdiff_t>(copies.ends.size() - open);
  const std::size_t count = copies.ends[static_cast<std::size_t>(last) - 1];
  copies.ends.erase(copies.ends.begin(), copies.ends.begin() + last);
  copies.make_first(count);
}

void* dynamic_shared() { return active->current->block->shared.get(); }

namespace {

bool in_dynamic_shared(const void* address) {
  const unsigned char* begin = active->current->block->shared.get();
  return std::less_equal<>()(begin, address) &&
         std::less<>()(address, static_cast<const void*>(begin + active->shared_bytes));
}

}  // namespace

void check_global(const void* address) {
  if (in_dynamic_shared(address)) {
    throw std::runtime_error("an access to global memory finds shared memory");
  }
}

void check_shared(const void* address) {
  if (active->shared_bytes > 0 && !in_dynamic_shared(address)) {
    throw std::runtime_error("an access to shared memory finds other memory");
  }
}

void opt_in(const void* function, std::size_t bytes) {
  require(bytes <= largest_shared, std::to_string(bytes) + " bytes of dynamic shared memory");
  const std::lock_guard lock(opted_in_mutex);
  opted_in()[function] = bytes;
}

std::size_t largest_shared_bytes() { return largest_shared; }
SharedLimit::SharedLimit(std::size_t bytes) { largest_shared = bytes; }
SharedLimit::~SharedLimit() { largest_shared = kLargestShared; }

void fill_zero(void* memory, std::size_t bytes) {
  if (!launches_only) std::memset(memory, 0, bytes);
}
void copy_memory(void* to, const void* from, std::size_t bytes) {
  if (!launches_only) std::memcpy(to, from, bytes);
}

LaunchesOnly::LaunchesOnly(std::size_t largest) {
  launches_only = true;
  largest_shared = largest;
}
LaunchesOnly::~LaunchesOnly() {
  launches_only = false;
  largest_shared = kLargestShared;
}

StaticShared::StaticShared(const Location& where) {
  if (active->shared_bytes > 0 || active->blocks.size() > 1) {
    throw std::runtime_error("static shared memory at " + place(where) +
                             (active->blocks.size() > 1 ? " of blocks that run at the same time"
                                                        : " beside dynamic shared memory"));
  }
}

Backward::Backward() { backward = true; }
Backward::~Backward() { backward = false; }

int lane() {
  const Fiber& fiber = *active->current;
  return static_cast<int>(fiber.block->number(fiber) % 32);
}

int block_barrier(const char* what, bool predicate, const Location& where) {
  Fiber& fiber = *active->current;
  fiber.wait.what = what;
  fiber.wait.where = where;
  fiber.wait.predicate = predicate;
  fiber.state = State::kAtBarrier;
  ++fiber.block->at_barrier;
  active->yield();
  return fiber.wait.count;
}

namespace {

void spin(const unsigned long long* counter, const unsigned int* word, unsigned long long target,
          const Location& where) {
  Fiber& fiber = *active->current;
  fiber.wait.what = "a wait for other blocks";
  fiber.wait.where = where;
  fiber.wait.counter = counter;
  fiber.wait.word = word;
  fiber.wait.target = target;
  // Going on at once where that is allowed shows what is not there yet.
  if (fiber.wait.over()) return;
  fiber.state = State::kSpinning;
  active->yield();
}

}  // namespace

void spin(const unsigned long long* counter, unsigned long long target, const Location& where) {
  spin(counter, nullptr, target, where);
}
void spin(const unsigned int* word, const Location& where) { spin(nullptr, word, 0, where); }

Exchanged exchange(const char* what, unsigned int mask, bool predicate, int source,
                   const void* value, std::size_t size, const Location& where) {
  Fiber& fiber = *active->current;
  const std::size_t index = fiber.block->number(fiber);
  const std::size_t lanes = std::min<std::size_t>(32, fiber.block->fibers.size() - index / 32 * 32);
  // Lanes that a block's last warp does not have may be named all the same, as with a full mask.
  const unsigned int existing = lanes == 32 ? 0xffffffffu : (1u << lanes) - 1;
  if ((mask >> (index % 32) & 1u) == 0) {
    throw std::runtime_error("thread " + name(fiber.index) + " in block " +
                             name(fiber.block->index) + " is not in the mask of its " + what +
                             " at " + place(where));
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
