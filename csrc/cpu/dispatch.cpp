// Looks at the processor at hand, once, at the first call: which kernels it runs, and its caches.
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <string>

#include "../kernels.h"

#define FASTFOOD_DECLARE(isa)                           \
  namespace fastfood::isa {                             \
  void transform(const Transform&, cpu::ParallelFor);   \
  void words(const Draw&, uint32_t*, cpu::ParallelFor); \
  void normals(const Draw&, float*, cpu::ParallelFor);  \
  void project(const Projection&, cpu::ParallelFor);    \
  void adjoint(const Adjoint&, cpu::ParallelFor);       \
  }
#define FASTFOOD_TABLE(isa) \
  {#isa, isa::transform, isa::words, isa::normals, isa::project, isa::adjoint}

FASTFOOD_DECLARE(portable)
#if !defined(FASTFOOD_PORTABLE_ONLY)
FASTFOOD_DECLARE(avx2)
FASTFOOD_DECLARE(avx512)
#endif

namespace fastfood::cpu {

namespace {

struct Candidate {
  Kernels kernels;
  bool (*supported)();
};

// Widest first.
const Candidate kCandidates[] = {
#if !defined(FASTFOOD_PORTABLE_ONLY)
    {FASTFOOD_TABLE(avx512),
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
     }},
    {FASTFOOD_TABLE(avx2),
     [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("f16c");
     }},
#endif
    {FASTFOOD_TABLE(portable), [] { return true; }},
};

const Kernels& choose() {
  const char* wanted = std::getenv("FASTFOOD_ISA");
  std::string names;
  for (const Candidate& candidate : kCandidates) {
    if (!candidate.supported()) continue;
    if (!wanted || std::strcmp(wanted, candidate.kernels.name) == 0) return candidate.kernels;
    names += std::string(names.empty() ? "" : ", ") + candidate.kernels.name;
  }
  throw std::runtime_error("FASTFOOD_ISA: wanted one of " + names + " on this processor, got " +
                           wanted);
}

// What the system says of a cache, rounded down to a power of two, or `otherwise`. Not by sysconf,
// which adds up the last caches of all cores.
int64_t cache_bytes([[maybe_unused]] int level, int64_t otherwise) {
  int64_t bytes = 0;
#if defined(__linux__)
  for (int index = 0; index < 5; ++index) {
    const auto read = [&](const char* file) {
      std::ifstream in("/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + file);
      std::string text;
      in >> text;
      return text;
    };
    if (read("/level") == std::to_string(level) && read("/type") != "Instruction")
      bytes = std::atoll(read("/size").c_str()) * 1024;
  }
#endif
  if (bytes < 16 * 1024) return otherwise;
  while (bytes & (bytes - 1)) bytes &= bytes - 1;
  return bytes;
}

}  // namespace

const Caches& caches() {
  static const Caches found = [] {
    constexpr int64_t kMega = 1024 * 1024;
    const int64_t second = cache_bytes(2, kMega);
    return Caches{cache_bytes(1, kMega / 32), second, cache_bytes(3, 16 * second)};
  }();
  return found;
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace fastfood::cpu
