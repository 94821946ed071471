// Runs CUDA kernels on the host, one block after the other, each thread of a block as a fiber that
// runs from barrier to barrier. Of CUDA it has what the kernels of csrc/cuda use, and nothing more.
//
// Every access through a Shared pointer is checked. It is an error to leave the block's shared
// memory, to read what no thread has written, and to touch what another thread has written since
// the last barrier, or to write what it has read since then; and also a barrier that some threads
// never reach, or wait for elsewhere. Shared memory is full of NaN when a block starts, and has
// guards around it that show writes through other pointers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "emulated_types.h"
#include "fibers.h"

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

struct Limits {  // small, so that the tests meet every loop over the rest that does not fit
  int64_t blocks = 3;
  int64_t wave = int64_t{1} << 15;
  int64_t partials = int64_t{3} << 10;
  int64_t shared = 48 * 1024;  // bytes that a block may have
  bool tensor = true;          // whether there are tensor cores
};
inline Limits limits;
inline bool backwards = false;  // whether the last thread of a block runs first

constexpr int kMaxThreads = 1024;
constexpr int kWarp = 32;
constexpr size_t kGuard = 256;
constexpr unsigned char kGuardByte = 0xA5;
constexpr size_t kMaxShared = 227 * 1024;  // of an H200
constexpr size_t kGiven = 48;  // bytes that a lane can give to the others of its warp at once

enum class Wait { finished, block, warp, lanes };  // lanes: at a shuffle

struct Access {
  size_t offset, bytes;
};

struct Thread : Fiber {
  Wait wait;
  const char* file;  // of the barrier or the shuffle that it waits at
  int line;
  int shuffles;                                 // how many it has come to
  unsigned char value[2][kGiven];               // what it gave at the last two of them
  std::vector<Access> accesses;                 // since its last barrier, if they are counted
  std::vector<std::pair<void*, uint4>> copies;  // asynchronous ones, in flight
};

// The last accesses to a word (four bytes) of shared memory: how many barriers of the block and of
// the thread's warp came before them, the thread, and its warp.
struct Touch {
  int barriers, warp_barriers;
  int16_t thread, warp;
};
struct Word {
  Touch written, read;
};
// The cycles that warps' accesses to shared memory take, with bank conflicts and without. An access
// is split so that its threads could have all banks to themselves; each part then takes as many
// cycles as the most distinct words that fall into one bank.
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
  std::vector<Thread> threads;
  Thread* running = nullptr;
  std::function<void()> kernel;
  std::unique_ptr<unsigned char[]> memory{new unsigned char[kMaxShared + 2 * kGuard + 16]};
  size_t shared_bytes = 0;
  std::vector<Word> words = std::vector<Word>(kMaxShared / 4);  // of shared memory
  int barriers = 0;                                             // of the block so far
  int warp_barriers[kMaxThreads / kWarp] = {};
  std::string error;

  // Aligned to 16 bytes only, which is as much as a kernel may count on.
  unsigned char* shared() {
    const auto address = reinterpret_cast<uintptr_t>(memory.get() + kGuard);
    return reinterpret_cast<unsigned char*>((address + 15) / 16 * 16);
  }
};
inline Machine machine;

// Keeps the first error: those that follow are often its consequences.
inline void fail(const std::string& error) {
  if (machine.error.empty()) machine.error = error;
}

inline void wait(Wait wait, const char* file, int line) {
  Thread* thread = machine.running;
  thread->wait = wait;
  thread->file = file;
  thread->line = line;
  pause(*thread);
}

inline int this_thread() { return static_cast<int>(machine.running - machine.threads.data()); }
inline int this_lane() { return this_thread() % kWarp; }

// What each lane of a warp gave at one shuffle.
template <class T>
struct Given {
  int first, slot;  // the warp's first thread
  T operator[](int lane) const {
    T value;
    std::memcpy(&value, machine.threads[static_cast<size_t>(first + lane)].value[slot], sizeof(T));
    return value;
  }
};

// Gives `value` to the other lanes of the warp, all of which have to come here, and gets theirs.
template <class T>
Given<T> meet(const T& value, const char* file, int line) {
  static_assert(sizeof(T) <= kGiven, "a lane gives as much as there is room for");
  Thread* thread = machine.running;
  const int slot = thread->shuffles++ % 2;  // a faster lane may already be at the next shuffle
  std::memcpy(thread->value[slot], &value, sizeof(value));
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

// Checks an access of the running thread to an aligned value; returns where it may go.
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
  // Whether no barrier lies between an earlier access by another thread and this one.
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
  // One access to `count` neighbouring entries.
  T* touch(int count, bool write) const {
    return static_cast<T*>(access(p_, static_cast<size_t>(count) * sizeof(T), write));
  }
  Shared operator+(int64_t i) const { return p_ + i; }
  void operator+=(int64_t i) { p_ += i; }

 private:
  T* p_;
};

// An asynchronous copy can be seen once it has been awaited; until then NaN is there.
inline void copy_later(Shared<uint4> to, const uint4* from) {
  machine.running->copies.push_back({to.touch(1, true), *from});
  std::memset(machine.running->copies.back().first, 0xFF, sizeof(uint4));
}
inline void await_copies() {
  for (const auto& [to, value] : machine.running->copies) std::memcpy(to, &value, sizeof(value));
  machine.running->copies.clear();
}

// Counts the accesses since the last barrier of threads [begin, end), a warp that is at a barrier.
inline void count_cycles(int begin, int end) {
  const auto accesses = [](int thread) -> std::vector<Access>& {
    return machine.threads[static_cast<size_t>(thread)].accesses;
  };
  const size_t count = accesses(begin).size();
  for (int i = begin; i < end; ++i)
    if (accesses(i).size() != count) return;  // the threads took different branches
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

// The body of a thread's fiber.
inline void run_thread() {
  enter_fiber();
  for (;;) {  // the blocks of a launch, one after the other
    machine.kernel();
    wait(Wait::finished, nullptr, 0);
  }
}

// Calls `set`, sanitizer::forbid or allow, for the guards of shared memory.
inline void set_guards(void (*set)(const void*, size_t)) {
  set(machine.shared() - kGuard, kGuard);
  set(machine.shared() + machine.shared_bytes, kGuard);
}

inline void start_block(int threads) {
  std::memset(machine.shared() - kGuard, kGuardByte, machine.shared_bytes + 2 * kGuard);
  std::memset(machine.shared(), 0xFF, machine.shared_bytes);  // NaN in every type
  machine.barriers = 0;
  std::fill_n(machine.warp_barriers, kMaxThreads / kWarp, 0);
  std::fill_n(machine.words.begin(), (machine.shared_bytes + 3) / 4, Word{kUntouched, kUntouched});
  for (int thread = 0; thread < threads; ++thread) {
    Thread& started = machine.threads[static_cast<size_t>(thread)];
    started.shuffles = 0;
    started.accesses.clear();
    started.copies.clear();
  }
  set_guards(sanitizer::forbid);
}

// Whether threads [begin, end) wait at the same place as thread `begin`.
inline bool wait_together(int begin, int end) {
  const Thread& first = machine.threads[static_cast<size_t>(begin)];
  for (int i = begin + 1; i < end; ++i) {
    const Thread& other = machine.threads[static_cast<size_t>(i)];
    if (other.wait == first.wait &&
        (other.wait == Wait::finished || (other.line == first.line && other.file == first.file)))
      continue;
    const auto place = [](const Thread& at) {
      return at.wait == Wait::finished ? "its end" : "line " + std::to_string(at.line);
    };
    fail("thread " + std::to_string(begin) + " is at " + place(first) + " and thread " +
         std::to_string(i) + " at " + place(other));
    return false;
  }
  return true;
}

inline Wait waits_at(int thread) { return machine.threads[static_cast<size_t>(thread)].wait; }

// Runs each warp up to its next barrier of the block; returns false when the block is finished.
inline bool advance(int threads) {
  for (int warp = 0; warp < threads; warp += kWarp) {
    const int begin = backwards ? (threads - 1 - warp) / kWarp * kWarp : warp;
    const int end = begin + kWarp < threads ? begin + kWarp : threads;
    do {
      for (int i = 0; i < end - begin; ++i) {
        const int thread = backwards ? end - 1 - i : begin + i;
        threadIdx.x = static_cast<unsigned>(thread);
        machine.running = &machine.threads[static_cast<size_t>(thread)];
        resume(*machine.running);
      }
      if (!wait_together(begin, end)) return false;
      if (counting) count_cycles(begin, end);
      if (waits_at(begin) == Wait::warp) ++machine.warp_barriers[begin / kWarp];
    } while (waits_at(begin) == Wait::warp || waits_at(begin) == Wait::lanes);
  }
  ++machine.barriers;
  return wait_together(0, threads) && machine.threads[0].wait != Wait::finished;
}

inline void check_guards() {
  set_guards(sanitizer::allow);
  const unsigned char* shared = machine.shared();
  for (size_t i = 0; i < kGuard; ++i)
    if (shared[machine.shared_bytes + i] != kGuardByte || *(shared - 1 - i) != kGuardByte)
      fail("written outside of shared memory");
}

// Launches a kernel and waits for it. Returns null, or a text that says what went wrong.
inline const char* run(int64_t blocks, int threads, size_t shared_bytes,
                       std::function<void()> kernel) {
  machine.error.clear();
  if (blocks < 1 || blocks > INT32_MAX || threads < 1 || threads > kMaxThreads ||
      shared_bytes > static_cast<size_t>(limits.shared))
    return "invalid configuration argument";
  machine.kernel = std::move(kernel);
  machine.shared_bytes = shared_bytes;
  machine.threads.resize(kMaxThreads);
  gridDim.x = static_cast<unsigned>(blocks);
  blockDim.x = static_cast<unsigned>(threads);
  for (int i = 0; i < threads; ++i) start(machine.threads[static_cast<size_t>(i)], run_thread);
  for (int64_t block = 0; block < blocks && machine.error.empty(); ++block) {
    blockIdx.x = static_cast<unsigned>(block);
    start_block(threads);
    while (advance(threads)) continue;
    check_guards();
  }
  return machine.error.empty() ? nullptr : machine.error.c_str();
}

}  // namespace emulator
