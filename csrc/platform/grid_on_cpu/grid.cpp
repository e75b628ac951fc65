#include "platform/grid_on_cpu/grid.h"

#include <bit>
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

enum class State : unsigned char { kRunnable, kAtBarrier, kInWarpOperation, kSpinning, kDone };

// What a thread waits for and, once it may continue, what it received from its warp.
struct Wait {
  const char* what = "";
  Location where;
  bool predicate = false;
  unsigned int mask = 0;
  int source = 0;
  unsigned int size = 0;
  alignas(16) unsigned char value[16] = {};
  Exchanged exchanged = {};
  Collective collective = nullptr;
  const unsigned long long* counter = nullptr;  // or else `word`, until it is odd
  const unsigned int* word = nullptr;
  unsigned long long target = 0;

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
  Stack* stack = nullptr;
  Block* block = nullptr;
  uint3 index{};
  unsigned int number = 0;  // in its block
  Wait wait;
  DelayedWork delayed;
  Copies copies;

  unsigned int lane() const { return number % 32; }
};

// What instructions ask for at most.
constexpr std::align_val_t kSharedAlignment{1024};

struct FreeAligned {
  void operator()(unsigned char* memory) const { ::operator delete(memory, kSharedAlignment); }
};

// Most of the time goes into threads that wait for each other, so what is known of all threads of a
// block or a warp is kept as they arrive.
struct Block {
  uint3 index{};
  std::span<Fiber> fibers;
  std::vector<State> states;
  std::vector<unsigned int> going;  // of each warp the lanes that are runnable or spinning
  std::unique_ptr<unsigned char, FreeAligned> shared;

  // The barrier that threads arrive at, and how many of those that are there passed true.
  std::size_t at_barrier = 0;
  const Wait* barrier = nullptr;
  bool same_barrier = true;
  int predicates = 0;
  int passed_predicates = 0;  // of the barrier before

  State state(const Fiber& fiber) const { return states[fiber.number]; }
  void set(const Fiber& fiber, State state) {
    const unsigned int lane = 1u << fiber.lane();
    unsigned int& lanes = going[fiber.number / 32];
    const bool goes = state == State::kRunnable || state == State::kSpinning;
    lanes = goes ? lanes | lane : lanes & ~lane;
    states[fiber.number] = state;
  }
  void set_all_runnable() {
    std::fill(states.begin(), states.end(), State::kRunnable);
    std::fill(going.begin(), going.end(), ~0u);
    if (fibers.size() % 32 != 0) going.back() = (1u << fibers.size() % 32) - 1;
  }
};

struct Grid;
ASNG_OF_THREAD Grid* active = nullptr;
ASNG_OF_THREAD bool backward = false;
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
  // The threads of a block take turns: a warp, and which lanes of it had none yet.
  std::size_t warp = 0;
  unsigned int left = 0;
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
      blocks[b].states.resize(threads);
      blocks[b].going.resize((threads + 31) / 32);
      blocks[b].shared.reset(static_cast<unsigned char*>(
          ::operator new(std::max<std::size_t>(shared_bytes, 1), kSharedAlignment)));
    }
    while (stacks().size() < fibers.size()) {
      stacks().push_back(std::make_unique<Stack>(stacks().size()));
    }
    for (std::size_t i = 0; i < fibers.size(); ++i) fibers[i].stack = stacks()[i].get();
  }

  static void enter() {
    Grid& grid = *active;
#if defined(__SANITIZE_ADDRESS__)
    const void* bottom = nullptr;
    std::size_t size = 0;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
    // The first of all comes from the scheduler.
    if (grid.scheduler_bottom == nullptr) {
      grid.scheduler_bottom = bottom;
      grid.scheduler_size = size;
    }
#endif
    try {
      grid.kernel();
    } catch (...) {
      grid.error = std::current_exception();
    }
    grid.current->stack->end();
    grid.current->block->set(*grid.current, State::kDone);
    --grid.live;
    grid.pass_on<true>();
  }

  // Called by the current thread, which waits or has ended: the next one has its turn, or if there
  // is none the scheduler.
  template <bool kEnds = false>
  void pass_on() {
    Context& from = current->context;
    Fiber* const next = error ? nullptr : next_of(*current->block);
#if defined(__SANITIZE_ADDRESS__)
    void* fake_stack = nullptr;
    const void* const bottom = next != nullptr ? next->stack->bottom() : scheduler_bottom;
    __sanitizer_start_switch_fiber(kEnds ? nullptr : &fake_stack, bottom,
                                   next != nullptr ? kStackBytes : scheduler_size);
#endif
    if (next != nullptr) make_current(*next);
    from.switch_to(next != nullptr ? next->context : scheduler);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
  }

  // Called by the current thread once it has said what it waits for.
  void yield() {
    settle(*current);
    pass_on();
  }

  void make_current(Fiber& fiber) {
    fiber.block->set(fiber, State::kRunnable);
    current = &fiber;
    threadIdx = fiber.index;
    blockIdx = fiber.block->index;
    dynamic = {fiber.block->shared.get(), shared_bytes};
  }

  // Called by the scheduler: threads of a block take turns, from `fiber` on.
  void resume(Fiber& fiber) {
    make_current(fiber);
#if defined(__SANITIZE_ADDRESS__)
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, fiber.stack->bottom(), kStackBytes);
#endif
    scheduler.switch_to(fiber.context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
    if (error) std::rethrow_exception(error);
  }

  std::string describe(const Fiber& fiber) const {
    const std::string thread = "thread " + name(fiber.index);
    if (fiber.block->state(fiber) == State::kDone) return thread + " has ended";
    return thread + " waits in " + fiber.wait.what + " at " + place(fiber.wait.where);
  }

  [[noreturn]] void diverged(const Fiber& one, const Fiber& other) const {
    throw std::runtime_error("threads diverge in block " + name(one.block->index) + ": " +
                             describe(one) + ", but " + describe(other));
  }

  void pass_barrier(Block& block) {
    if (!block.same_barrier) {
      for (const Fiber& fiber : block.fibers) {
        if (!same(fiber.wait, block.fibers[0].wait)) diverged(block.fibers[0], fiber);
      }
    }
    block.passed_predicates = block.predicates;
    block.at_barrier = 0;
    block.set_all_runnable();
  }

  // If all lanes that `fiber` waits for are there, lets them go on.
  void try_warp_operation(const Fiber& fiber) {
    Block& block = *fiber.block;
    const Wait& wait = fiber.wait;
    if ((wait.mask & block.going[fiber.number / 32]) != 0) return;
    Fiber* const lanes = &block.fibers[fiber.number - fiber.lane()];
    unsigned int ballot = 0;
    for (unsigned int rest = wait.mask; rest != 0; rest &= rest - 1) {
      const Fiber& other = lanes[std::countr_zero(rest)];
      if (block.state(other) != State::kInWarpOperation || other.wait.mask != wait.mask ||
          !same(other.wait, wait)) {
        diverged(fiber, other);
      }
      ballot |= (other.wait.predicate ? 1u : 0u) << other.lane();
    }
    if (wait.collective != nullptr) {
      void* arguments[32];
      for (int lane = 0; lane < 32; ++lane) {
        std::memcpy(&arguments[lane], lanes[lane].wait.value, sizeof(void*));
      }
      wait.collective(arguments);
    }
    for (unsigned int rest = wait.mask; rest != 0; rest &= rest - 1) {
      Fiber& other = lanes[std::countr_zero(rest)];
      other.wait.exchanged.ballot = ballot;
      if (other.wait.size > 0) {
        const int source = other.wait.source;
        if (source < 0 || source >= 32 || (wait.mask >> source & 1u) == 0) {
          throw std::runtime_error("thread " + name(other.index) + " in block " +
                                   name(block.index) + " reads lane " + std::to_string(source) +
                                   ", which is not in the mask of " + wait.what + " at " +
                                   place(wait.where));
        }
        std::memcpy(other.wait.exchanged.value, lanes[source].wait.value, sizeof(wait.value));
      }
      block.set(other, State::kRunnable);
    }
  }

  // Lets those go on that have waited for `fiber`, too.
  void settle(const Fiber& fiber) {
    Block& block = *fiber.block;
    if (block.state(fiber) == State::kInWarpOperation) {
      try_warp_operation(fiber);
    } else if (block.at_barrier == block.fibers.size()) {
      pass_barrier(block);
    }
  }

  void start(Fiber& fiber) {
    fiber.stack->begin();
    fiber.delayed.clear();
    fiber.copies.started.clear();
    fiber.copies.ends.clear();
    const unsigned int rest = fiber.number;
    fiber.index = {rest % blockDim.x, rest / blockDim.x % blockDim.y,
                   rest / (blockDim.x * blockDim.y)};
    fiber.context.start(fiber.stack->bottom(), fiber.stack->bytes(), &Grid::enter);
  }

  void start(Block& block, std::size_t number) {
    block.index = {static_cast<unsigned int>(number % gridDim.x),
                   static_cast<unsigned int>(number / gridDim.x % gridDim.y),
                   static_cast<unsigned int>(number / gridDim.x / gridDim.y)};
    block.at_barrier = 0;
    block.set_all_runnable();
    std::memset(block.shared.get(), 0xff, shared_bytes);
    for (std::size_t i = 0; i < block.fibers.size(); ++i) {
      Fiber& fiber = block.fibers[i];
      fiber.block = &block;
      fiber.number = static_cast<unsigned int>(i);
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
    warp = 0;
    left = ~0u;
    Fiber* const first = next_of(block);
    if (first != nullptr) resume(*first);
    return first != nullptr;
  }

  // Whose turn it is, if anyone's: one that can go on and had none. Those that go before may let
  // more go on.
  Fiber* next_of(const Block& block) {
    for (const std::size_t warps = block.going.size(); warp < warps; ++warp, left = ~0u) {
      const std::size_t number = backward ? warps - 1 - warp : warp;
      while ((block.going[number] & left) != 0) {
        const unsigned int lanes = block.going[number] & left;
        const int lane = backward ? 31 - std::countl_zero(lanes) : std::countr_zero(lanes);
        left = backward ? (1u << lane) - 1 : ~1u << lane;
        Fiber& fiber = block.fibers[32 * number + static_cast<std::size_t>(lane)];
        if (block.state(fiber) != State::kSpinning || fiber.wait.over()) return &fiber;
      }
    }
    return nullptr;
  }

  [[noreturn]] void explain() const {
    const auto waits = [](const Fiber& f) { return f.block->state(f) != State::kDone; };
    const Fiber& waiting = *std::find_if(fibers.begin(), fibers.end(), waits);
    const Block& block = *waiting.block;
    for (const Fiber& fiber : block.fibers) {
      if (block.state(fiber) != block.state(waiting) || !same(fiber.wait, waiting.wait)) {
        diverged(waiting, fiber);
      }
    }
    throw std::runtime_error("the grid does not advance: in block " + name(block.index) + ", " +
                             describe(waiting) + ", for ever");
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
    ~Active() {
      active = nullptr;
      dynamic = {};
    }
  } const scope(&state);
  for (std::size_t b = 0; b < blocks; b += resident) {
    state.run_from(backward ? blocks - resident - b : b);
  }
}

DelayedWork& delayed_work() {
  DelayedWork& delayed = active->current->delayed;
  if (delayed.empty()) delayed.emplace_back();
  return delayed;
}

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

void fail_access(bool to_shared) {
  throw std::runtime_error(to_shared ? "an access to shared memory finds other memory"
                                     : "an access to global memory finds shared memory");
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

int block_barrier(const char* what, bool predicate, const Location& where) {
  Fiber& fiber = *active->current;
  Block& block = *fiber.block;
  fiber.wait.what = what;
  fiber.wait.where = where;
  if (block.at_barrier == 0) {
    block.barrier = &fiber.wait;
    block.same_barrier = true;
    block.predicates = 0;
  }
  block.same_barrier &= same(fiber.wait, *block.barrier);
  block.predicates += predicate ? 1 : 0;
  ++block.at_barrier;
  block.set(fiber, State::kAtBarrier);
  active->yield();
  return block.passed_predicates;
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
  fiber.block->set(fiber, State::kSpinning);
  active->yield();
}

}  // namespace

void spin(const unsigned long long* counter, unsigned long long target, const Location& where) {
  spin(counter, nullptr, target, where);
}
void spin(const unsigned int* word, const Location& where) { spin(nullptr, word, 0, where); }

const Exchanged& exchange(const char* what, unsigned int mask, bool predicate, int source,
                          const void* value, std::size_t size, const Location& where) {
  Fiber& fiber = *active->current;
  const std::size_t lanes = fiber.block->fibers.size() - (fiber.number - fiber.lane());
  // Lanes that a block's last warp does not have may be named all the same, as with a full mask.
  const unsigned int existing = lanes >= 32 ? 0xffffffffu : (1u << lanes) - 1;
  if ((mask >> fiber.lane() & 1u) == 0) {
    throw std::runtime_error("thread " + name(fiber.index) + " in block " +
                             name(fiber.block->index) + " is not in the mask of its " + what +
                             " at " + place(where));
  }
  fiber.wait.what = what;
  fiber.wait.where = where;
  fiber.wait.mask = mask & existing;
  fiber.wait.predicate = predicate;
  fiber.wait.source = source;
  fiber.wait.size = static_cast<unsigned int>(size);
  fiber.wait.collective = nullptr;
  if (size > 0) std::memcpy(fiber.wait.value, value, size);
  fiber.block->set(fiber, State::kInWarpOperation);
  active->yield();
  return fiber.wait.exchanged;
}

void collect(const char* what, void* arguments, Collective collective, const Location& where) {
  Fiber& fiber = *active->current;
  if (fiber.block->fibers.size() - (fiber.number - fiber.lane()) < 32) {
    throw std::runtime_error("thread " + name(fiber.index) + " in block " +
                             name(fiber.block->index) + " has no whole warp for " + what + " at " +
                             place(where));
  }
  fiber.wait.what = what;
  fiber.wait.where = where;
  fiber.wait.mask = 0xffffffffu;
  fiber.wait.size = 0;
  fiber.wait.collective = collective;
  std::memcpy(fiber.wait.value, &arguments, sizeof(arguments));
  fiber.block->set(fiber, State::kInWarpOperation);
  active->yield();
}

}  // namespace asng::cuda_on_cpu
