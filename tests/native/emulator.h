// Runs CUDA kernels on the host, one block after the other, each thread of a block a fiber that
// runs from barrier to barrier. What the kernels of csrc/cuda ask of nvcc is here and nothing more.
// Every access through a Shared pointer is looked at: outside of the block's shared memory, of what
// no thread has written, or of what another thread writes or has read since the last barrier, it is
// an error; so is a barrier that some threads never reach, or wait for elsewhere. Shared memory is
// full of NaN when a block starts and has guards around it, for what goes through other pointers.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "emulated_types.h"
#include "sanitizer.h"

#define __global__
#define __host__
#define __device__
#if defined(__SANITIZE_ADDRESS__)  // as in csrc/cpu/simd.h
#define __forceinline__ inline
#else
#define __forceinline__ inline __attribute__((always_inline))
#endif
#define __launch_bounds__(...)
#define __grid_constant__
#define __syncthreads() emulator::wait(emulator::Wait::block, __FILE__, __LINE__)
#define __syncwarp() emulator::wait(emulator::Wait::warp, __FILE__, __LINE__)
#define __shfl_xor_sync(mask, value, distance) \
  emulator::shuffle_xor(mask, value, distance, __FILE__, __LINE__)

struct Index {
  unsigned x;
};
inline Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

struct Limits {  // small, so that the tests meet every loop over what does not fit
  int64_t blocks = 3;
  int64_t wave = int64_t{1} << 15;
  int64_t partials = int64_t{3} << 10;
  int64_t shared = 48 * 1024;  // bytes that a block may have
  bool tensor = true;          // tensor cores
};
inline Limits limits;
inline bool backwards = false;  // the last thread of a block runs first

constexpr int kMaxThreads = 1024;
constexpr int kWarp = 32;
constexpr size_t kStack = sanitizer::kStackFactor * 64 * 1024;
constexpr size_t kGuard = 256;
constexpr unsigned char kGuardByte = 0xA5;
constexpr size_t kMaxShared = 227 * 1024;  // of an H200
constexpr size_t kGiven = 48;              // bytes that a lane gives to the others of its warp

enum class Wait { finished, block, warp, lanes };  // lanes: at a shuffle

struct Access {
  size_t offset, bytes;
};

// Where a fiber or the scheduler goes on.
struct Place {
  ucontext_t context;  // of a fiber's start, with sanitizers of wherever it is
  jmp_buf jump;
  bool fresh = false;  // not started yet
};

struct Fiber {
  Place place;
  std::unique_ptr<char[]> stack;
  Wait wait;
  const char* file;  // of the barrier or the shuffle that it waits at
  int line;
  int shuffles;                                 // that it has come to
  unsigned char value[2][kGiven];               // given to the last two of them
  std::vector<Access> accesses;                 // since its last barrier, where they are counted
  std::vector<std::pair<void*, uint4>> copies;  // under way
};

// The last accesses to four bytes of shared memory: the barriers of the block and of the threads'
// warp that were before them, the threads, and their warp.
struct Touch {
  int barriers, warp_barriers;
  int16_t thread, warp;
};
struct Word {
  Touch written, read;
};
// Accesses of warps to shared memory, and the cycles that they take: one for each distinct four
// bytes of the bank that has the most of them, of as many threads as can have all banks to
// themselves.
struct Cycles {
  int64_t taken, least;
};
inline bool counting = false;
inline Cycles cycles;
constexpr size_t kBanks = 32;

constexpr int kNever = -1;
constexpr int16_t kSeveral = -1;
constexpr Touch kUntouched = {kNever, kNever, 0, 0};

struct Machine {
  Place scheduler;
  sanitizer::Stack scheduler_stack;
  std::vector<Fiber> fibers;
  Fiber* running = nullptr;
  std::function<void()> kernel;
  std::unique_ptr<unsigned char[]> memory{new unsigned char[kMaxShared + 2 * kGuard + 16]};
  size_t shared_bytes = 0;
  std::vector<Word> words = std::vector<Word>(kMaxShared / 4);  // of shared memory
  int barriers = 0;                                             // that the block has passed
  int warp_barriers[kMaxThreads / kWarp] = {};
  std::string error;

  // 16-byte aligned and no better, as little as a kernel may count on.
  unsigned char* shared() {
    const auto address = reinterpret_cast<uintptr_t>(memory.get() + kGuard);
    return reinterpret_cast<unsigned char*>((address + 15) / 16 * 16);
  }
};
inline Machine machine;

// The first one is the one that says most.
inline void fail(const std::string& error) {
  if (machine.error.empty()) machine.error = error;
}

// Goes on at `to`; returns when somebody goes on at `from`.
inline void go_on(Place& from, Place& to) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  swapcontext(&from.context, &to.context);  // a longjmp would have them forget the stack
#else
  // swapcontext sets the mask of signals each time: system calls that take longer than the rest
  if (_setjmp(from.jump)) return;
  if (!to.fresh) _longjmp(to.jump, 1);
  to.fresh = false;
  setcontext(&to.context);
#endif
}

inline void wait(Wait wait, const char* file, int line) {
  Fiber* fiber = machine.running;
  fiber->wait = wait;
  fiber->file = file;
  fiber->line = line;
  void* kept = nullptr;
  sanitizer::leave_stack(&kept, machine.scheduler_stack);
  go_on(fiber->place, machine.scheduler);
  machine.scheduler_stack = sanitizer::enter_stack(kept);
}

inline int this_thread() { return static_cast<int>(machine.running - machine.fibers.data()); }
inline int this_lane() { return this_thread() % kWarp; }

// What each lane of a warp gave at one place.
template <class T>
struct Given {
  int first, slot;  // the warp's first thread
  T operator[](int lane) const {
    T value;
    std::memcpy(&value, machine.fibers[static_cast<size_t>(first + lane)].value[slot], sizeof(T));
    return value;
  }
};

// Gives `value` to the other lanes of the warp. All of them have to come here.
template <class T>
Given<T> meet(const T& value, const char* file, int line) {
  static_assert(sizeof(T) <= kGiven, "a lane gives as much as there is room for");
  Fiber* fiber = machine.running;
  const int slot = fiber->shuffles++ % 2;  // a faster lane may already be at the next shuffle
  std::memcpy(fiber->value[slot], &value, sizeof(value));
  wait(Wait::lanes, file, line);
  return {this_thread() / kWarp * kWarp, slot};
}

// The value of lane (lane ^ distance).
template <class T>
T shuffle_xor(unsigned mask, T value, int distance, const char* file, int line) {
  const auto given = meet(value, file, line);
  if (mask != 0xFFFFFFFFu || distance < 1 || distance >= kWarp)
    fail("a shuffle that leaves out lanes, or leaves the warp");
  return given[(this_lane() ^ distance) % kWarp];
}

inline void* shared_memory(size_t bytes) {
  if (bytes > machine.shared_bytes) fail("more shared memory used than the launch asked for");
  return machine.shared();
}

// Looks at an access of the running thread to an aligned value; returns where it may go.
inline void* access(void* address, size_t bytes, bool write) {
  alignas(16) static unsigned char nowhere[16];
  const auto offset = static_cast<size_t>(static_cast<unsigned char*>(address) - machine.shared());
  if (offset + bytes > machine.shared_bytes || offset + bytes < bytes) {
    fail("an access outside of shared memory");
    return nowhere;
  }
  if (offset % bytes) fail("an access to shared memory that is not aligned");
  if (counting) machine.running->accesses.push_back({offset, bytes});
  const auto thread = static_cast<int16_t>(threadIdx.x);
  const auto warp = static_cast<int16_t>(thread / kWarp);
  const Touch now{machine.barriers, machine.warp_barriers[warp], thread, warp};
  // Whether another thread's access has no barrier between it and this one.
  const auto races = [&](const Touch& before) {
    return before.barriers == now.barriers && before.thread != thread &&
           (before.warp != warp || before.warp_barriers == now.warp_barriers);
  };
  for (size_t i = offset / 4; i < (offset + bytes + 3) / 4; ++i) {
    Word& word = machine.words[i];
    if (write) {
      if (races(word.written)) fail("two threads write to one place, with no barrier between them");
      if (races(word.read)) fail("a thread writes what another one reads, with no barrier between");
      word.written = now;
    } else {
      if (word.written.barriers == kNever) fail("a read of what no thread has written");
      if (races(word.written))
        fail("a thread reads what another one writes, with no barrier between");
      const bool together = races(word.read);
      const bool one_warp = word.read.warp == warp || word.read.barriers != now.barriers;
      word.read = {now.barriers, now.warp_barriers, together ? kSeveral : thread,
                   one_warp ? warp : kSeveral};
    }
  }
  return address;
}

// A pointer into shared memory.
template <class T>
class Shared {
 public:
  class Entry {
   public:
    explicit Entry(T* p) : p_(p) {}
    operator T() const { return *static_cast<T*>(access(p_, sizeof(T), false)); }
    void operator=(T x) const { *static_cast<T*>(access(p_, sizeof(T), true)) = x; }

   private:
    T* p_;
  };
  Shared(T* p) : p_(p) {}
  Entry operator[](int64_t i) const { return Entry(p_ + i); }
  // `count` neighbouring entries in one access.
  T* touch(int count, bool write) const {
    return static_cast<T*>(access(p_, static_cast<size_t>(count) * sizeof(T), write));
  }
  Shared operator+(int64_t i) const { return p_ + i; }
  void operator+=(int64_t i) { p_ += i; }

 private:
  T* p_;
};

// An asynchronous copy is seen when it is waited for, not before.
inline void copy_later(Shared<uint4> to, const uint4* from) {
  machine.running->copies.push_back({to.touch(1, true), *from});
  std::memset(machine.running->copies.back().first, 0xFF, sizeof(uint4));
}
inline void await_copies() {
  for (const auto& [to, value] : machine.running->copies) std::memcpy(to, &value, sizeof(value));
  machine.running->copies.clear();
}

// Adds what the threads of a warp, at the same barrier now, have done since the last one.
inline void count_cycles(int begin, int end) {
  const auto accesses = [](int thread) -> std::vector<Access>& {
    return machine.fibers[static_cast<size_t>(thread)].accesses;
  };
  const size_t count = accesses(begin).size();
  for (int i = begin; i < end; ++i)
    if (accesses(i).size() != count) return;  // they took different ways
  for (size_t k = 0; k < count; ++k) {
    const size_t width = accesses(begin)[k].bytes / 4 > 0 ? accesses(begin)[k].bytes / 4 : 1;
    const int together = static_cast<int>(kBanks / width);
    for (int first = begin; first < end; first += together) {
      std::vector<std::vector<size_t>> words(kBanks);
      for (int i = first; i < std::min(first + together, end); ++i)
        for (size_t w = 0; w < width; ++w) {
          const size_t word = accesses(i)[k].offset / 4 + w;
          auto& bank = words[word % kBanks];
          if (std::find(bank.begin(), bank.end(), word) == bank.end()) bank.push_back(word);
        }
      size_t most = 0;
      for (const auto& bank : words) most = std::max(most, bank.size());
      cycles.taken += static_cast<int64_t>(most);
      ++cycles.least;
    }
  }
  for (int i = begin; i < end; ++i) accesses(i).clear();
}

inline void run_fiber() {
  machine.scheduler_stack = sanitizer::enter_stack(nullptr);
  for (;;) {  // the blocks of a launch
    machine.kernel();
    wait(Wait::finished, nullptr, 0);
  }
}

// Runs the fiber up to where it waits next.
inline void resume(Fiber* fiber) {
  machine.running = fiber;
  void* kept = nullptr;
  sanitizer::leave_stack(&kept, {fiber->stack.get(), kStack});
  go_on(machine.scheduler, fiber->place);
  sanitizer::enter_stack(kept);
}

// forbid or allow for the guards of shared memory.
inline void set_guards(void (*set)(const void*, size_t)) {
  set(machine.shared() - kGuard, kGuard);
  set(machine.shared() + machine.shared_bytes, kGuard);
}

inline void start_fiber(Fiber& fiber) {
  if (!fiber.stack) fiber.stack.reset(new char[kStack]);
  sanitizer::allow(fiber.stack.get(), kStack);  // a fiber of the launch before was there
  ucontext_t& context = fiber.place.context;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber.stack.get();
  context.uc_stack.ss_size = kStack;
  context.uc_link = nullptr;  // it never ends
  makecontext(&context, run_fiber, 0);
  context.uc_stack.ss_size = 0;  // else AddressSanitizer forgets the stack at each switch
  fiber.place.fresh = true;
}

inline void start_block(int threads) {
  std::memset(machine.shared() - kGuard, kGuardByte, machine.shared_bytes + 2 * kGuard);
  std::memset(machine.shared(), 0xFF, machine.shared_bytes);  // NaN in every type
  machine.barriers = 0;
  std::fill_n(machine.warp_barriers, kMaxThreads / kWarp, 0);
  std::fill_n(machine.words.begin(), (machine.shared_bytes + 3) / 4, Word{kUntouched, kUntouched});
  for (int thread = 0; thread < threads; ++thread) {
    Fiber& fiber = machine.fibers[static_cast<size_t>(thread)];
    fiber.shuffles = 0;
    fiber.accesses.clear();
    fiber.copies.clear();
  }
  set_guards(sanitizer::forbid);
}

// Whether threads [begin, end) wait at the same place as thread `begin`.
inline bool wait_together(int begin, int end) {
  const Fiber& first = machine.fibers[static_cast<size_t>(begin)];
  for (int i = begin + 1; i < end; ++i) {
    const Fiber& fiber = machine.fibers[static_cast<size_t>(i)];
    if (fiber.wait == first.wait &&
        (fiber.wait == Wait::finished || (fiber.line == first.line && fiber.file == first.file)))
      continue;
    const auto place = [](const Fiber& at) {
      return at.wait == Wait::finished ? "its end" : "line " + std::to_string(at.line);
    };
    fail("thread " + std::to_string(begin) + " is at " + place(first) + " and thread " +
         std::to_string(i) + " at " + place(fiber));
    return false;
  }
  return true;
}

inline Wait waits_at(int thread) { return machine.fibers[static_cast<size_t>(thread)].wait; }

// Each warp up to its next barrier of the block; false when the block is finished.
inline bool advance(int threads) {
  for (int warp = 0; warp < threads; warp += kWarp) {
    const int begin = backwards ? (threads - 1 - warp) / kWarp * kWarp : warp;
    const int end = begin + kWarp < threads ? begin + kWarp : threads;
    do {
      for (int i = 0; i < end - begin; ++i) {
        const int thread = backwards ? end - 1 - i : begin + i;
        threadIdx.x = static_cast<unsigned>(thread);
        resume(&machine.fibers[static_cast<size_t>(thread)]);
      }
      if (!wait_together(begin, end)) return false;
      if (counting) count_cycles(begin, end);
      if (waits_at(begin) == Wait::warp) ++machine.warp_barriers[begin / kWarp];
    } while (waits_at(begin) == Wait::warp || waits_at(begin) == Wait::lanes);
  }
  ++machine.barriers;
  return wait_together(0, threads) && machine.fibers[0].wait != Wait::finished;
}

inline void check_guards() {
  set_guards(sanitizer::allow);
  const unsigned char* shared = machine.shared();
  for (size_t i = 0; i < kGuard; ++i)
    if (shared[machine.shared_bytes + i] != kGuardByte || *(shared - 1 - i) != kGuardByte)
      fail("written outside of shared memory");
}

// Returns null, or what went wrong.
inline const char* run(int64_t blocks, int threads, size_t shared_bytes,
                       std::function<void()> kernel) {
  machine.error.clear();
  if (blocks < 1 || blocks > INT32_MAX || threads < 1 || threads > kMaxThreads ||
      shared_bytes > static_cast<size_t>(limits.shared))
    return "invalid configuration argument";
  machine.kernel = std::move(kernel);
  machine.shared_bytes = shared_bytes;
  machine.fibers.resize(kMaxThreads);
  gridDim.x = static_cast<unsigned>(blocks);
  blockDim.x = static_cast<unsigned>(threads);
  for (int i = 0; i < threads; ++i) start_fiber(machine.fibers[static_cast<size_t>(i)]);
  for (int64_t block = 0; block < blocks && machine.error.empty(); ++block) {
    blockIdx.x = static_cast<unsigned>(block);
    start_block(threads);
    while (advance(threads)) continue;
    check_guards();
  }
  return machine.error.empty() ? nullptr : machine.error.c_str();
}

}  // namespace emulator
