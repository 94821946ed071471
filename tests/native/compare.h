// What the cases of compare.cu are made of: random values of each type, the comparison of two
// results, and the loop that runs cases and counts those that differ.
#pragma once

#include <chrono>
#include <cmath>
#include <functional>
#include <iterator>

#include "../../csrc/definitions.h"
#include "backends.h"

namespace fastfood::compare {

constexpr Type kTypes[] = {Type::f32, Type::f64, Type::f16, Type::bf16};

inline const char* name_of(Type type) {
  const char* names[] = {"f32", "f64", "f16", "bf16"};
  return names[static_cast<int>(type)];
}
inline size_t size_of(Type type) { return type == Type::f64 ? 8 : type == Type::f32 ? 4 : 2; }
inline Type wide(Type type) { return type == Type::f64 ? Type::f64 : Type::f32; }

template <class T>
void put(Bytes& bytes, int64_t i, T value) {
  std::memcpy(bytes.data() + static_cast<size_t>(i) * sizeof(T), &value, sizeof(T));
}
template <class T>
T get(const Bytes& bytes, int64_t i) {
  T value;
  std::memcpy(&value, bytes.data() + static_cast<size_t>(i) * sizeof(T), sizeof(T));
  return value;
}

inline double value(const Bytes& bytes, Type type, int64_t i) {
  switch (type) {
    case Type::f32: return get<float>(bytes, i);
    case Type::f64: return get<double>(bytes, i);
    case Type::f16: return __half2float(get<__half>(bytes, i));
    case Type::bf16: return __bfloat162float(get<__nv_bfloat16>(bytes, i));
  }
  __builtin_trap();
}

// Normal numbers in which all bits of the type are used.
inline Bytes random(int64_t count, Type type, uint64_t seed) {
  std::vector<float> z(static_cast<size_t>(count + 15) / 8 * 8), fine(z.size());
  const int64_t calls = static_cast<int64_t>(z.size()) / 8;
  on_cpu(Draw{seed, 9, 0, calls}, z.data());
  on_cpu(Draw{seed, 10, 0, calls}, fine.data());
  Bytes out(static_cast<size_t>(count) * size_of(type));
  auto write = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto k = static_cast<size_t>(i);
      const double x = z[k] + fine[k] * (type == Type::f64 ? 0x1p-17 : 0x1p-12);
      const auto narrow = static_cast<float>(x);
      switch (type) {
        case Type::f32: put(out, i, narrow); break;
        case Type::f64: put(out, i, x); break;
        case Type::f16: put(out, i, __float2half_rn(narrow)); break;
        case Type::bf16: put(out, i, __float2bfloat16_rn(narrow)); break;
      }
    }
  };
  using Write = decltype(write);
  const auto body = [](int64_t begin, int64_t end, void* context) {
    (*static_cast<Write*>(context))(begin, end);
  };
  parallel(count, 1 << 16, body, &write);
  return out;
}

// --- How far apart -------------------------------------------------------------------------------

// Whether all bits are equal.
inline bool equal(const Bytes& got, const Bytes& wanted) { return got == wanted; }

// Whether entries differ at most by `units` roundings of the arithmetic of their row's largest
// entry and, in a type of 16 bits, one rounding of their own. NaN is close to nothing.
inline bool close(const Bytes& got, const Bytes& wanted, Type type, int64_t row, double units) {
  const double rounding = type == Type::bf16 ? 0x1p-7 : type == Type::f16 ? 0x1p-10 : 0;
  const double smallest = type == Type::f16 ? 0x1p-24 : 0;
  const double eps = type == Type::f64 ? 0x1p-52 : 0x1p-23;
  const auto count = static_cast<int64_t>(wanted.size() / size_of(type));
  for (int64_t first = 0; first < count; first += row) {
    double largest = 0;
    for (int64_t i = first; i < first + row; ++i)
      largest = std::max(largest, std::fabs(value(wanted, type, i)));
    for (int64_t i = first; i < first + row; ++i) {
      const double w = value(wanted, type, i), error = std::fabs(value(got, type, i) - w);
      if (!(error <= units * eps * largest + rounding * std::fabs(w) + smallest)) return false;
    }
  }
  return true;
}

// --- Cases ---------------------------------------------------------------------------------------

// One comparison. run() returns whether the results agree.
struct Case {
  std::string kind, name;
  int64_t entries;
  std::function<bool()> run;
};

struct Plan {
  int rounds = 11;                  // each takes every eleventh case, so that all kinds come early
  int64_t most = int64_t{1} << 40;  // the largest case to run, in entries
  double seconds = 1e9;             // no case begins later than this
};
constexpr size_t kRounds = 11;  // coprime to the numbers of forms of each kind
constexpr int kShown = 40;      // the first cases that differ, which are printed by name

struct Count {
  std::string kind;
  int64_t compared = 0, different = 0;
};

inline Count& count_of(std::vector<Count>& counts, const std::string& kind) {
  for (Count& count : counts)
    if (count.kind == kind) return count;
  counts.push_back({kind});
  return counts.back();
}

// Runs the cases that the plan allows, prints which ones differ and how many of each kind, and
// returns how many differ.
inline int64_t run(const std::vector<Case>& cases, const Plan& plan) {
  const auto start = std::chrono::steady_clock::now();
  std::vector<Count> counts;
  int64_t left_out = 0, compared = 0, different = 0;
  for (size_t round = 0; round < kRounds; ++round) {
    const int64_t before = compared;
    for (size_t i = round; i < cases.size(); i += kRounds) {
      const Case& c = cases[i];
      const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
      if (round >= static_cast<size_t>(plan.rounds) || c.entries > plan.most ||
          passed.count() > plan.seconds) {
        ++left_out;
        continue;
      }
      Count& count = count_of(counts, c.kind);
      ++count.compared;
      ++compared;
      running = "(" + c.kind + " " + c.name + ")";
      if (c.run()) continue;
      ++count.different;
      if (++different <= kShown) std::printf("differs: %s %s\n", c.kind.c_str(), c.name.c_str());
      std::fflush(stdout);
    }
    if (compared == before) continue;
    std::printf("so far: %lld compared, %lld differ\n", static_cast<long long>(compared),
                static_cast<long long>(different));
    std::fflush(stdout);
  }
  for (const Count& count : counts)
    std::printf("%s: %lld compared, %lld differ\n", count.kind.c_str(),
                static_cast<long long>(count.compared), static_cast<long long>(count.different));
  std::printf("in all: %lld compared, %lld differ, %lld left out\n",
              static_cast<long long>(compared), static_cast<long long>(different),
              static_cast<long long>(left_out));
  return different;
}

// printf into a string.
template <class... Values>
std::string text(const char* format, Values... values) {
  char buffer[256];
  std::snprintf(buffer, sizeof(buffer), format, values...);
  return buffer;
}

}  // namespace fastfood::compare
