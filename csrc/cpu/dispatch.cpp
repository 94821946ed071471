// Finds out once, at the first call, which kernels this processor can run, how large its caches
// are, and whether prefetches help.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "../kernels.h"

#define FASTFOOD_DECLARE(isa)                                       \
  namespace fastfood::isa {                                         \
  void transform(const Transform&, cpu::ParallelFor, cpu::Threads); \
  void words(const Draw&, uint32_t*, cpu::ParallelFor);             \
  void normals(const Draw&, float*, cpu::ParallelFor);              \
  void project(const Projection&, cpu::ParallelFor);                \
  void adjoint(const Adjoint&, cpu::ParallelFor);                   \
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

constexpr int64_t kKilo = 1024, kLeastCache = 16 * kKilo;

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
  caches();  // it may throw, which it must not do first in another thread
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

int64_t power_below(int64_t n) {
  while (n & (n - 1)) n &= n - 1;
  return n;
}

// Bytes of the data cache of a level as Linux tells, or `otherwise`. sysconf does not serve: it
// adds up the last caches of all cores.
int64_t cache_bytes([[maybe_unused]] int level, int64_t otherwise) {
  int64_t bytes = 0;
#if defined(__linux__)
  for (int index = 0; index < 5; ++index) {
    const auto said = [&](const char* what) {
      const std::string folder = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index);
      std::string word;
      std::ifstream(folder + "/" + what) >> word;
      return word;
    };
    if (said("level") == std::to_string(level) && said("type") != "Instruction")
      bytes = std::atoll(said("size").c_str()) * kKilo;
  }
#endif
  return bytes < kLeastCache ? otherwise : power_below(bytes);
}

Caches choose_caches() {
  const int64_t second = cache_bytes(2, 1024 * kKilo);
  Caches c{cache_bytes(1, 32 * kKilo), second, cache_bytes(3, 16 * second)};
  const char* wanted = std::getenv("FASTFOOD_CACHES");
  if (!wanted) return c;
  long long kilo[3];
  const int count = std::sscanf(wanted, "%lld,%lld,%lld", &kilo[0], &kilo[1], &kilo[2]);
  for (long long k : kilo)
    if (count < 3 || k < kLeastCache / kKilo)
      throw std::runtime_error(
          "FASTFOOD_CACHES: wanted the kilobytes of three caches, 16 or more each, as in "
          "32,1024,32768, got " +
          std::string(wanted));
  return {power_below(kilo[0] * kKilo), power_below(kilo[1] * kKilo), power_below(kilo[2] * kKilo)};
}

// Whether cpuid says "AuthenticAMD" and this family, which is the base family of leaf 1 and, where
// that is 15, the extended one added to it.
bool is_amd_family([[maybe_unused]] unsigned family) {
#if defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(0, &a, &b, &c, &d) || b != 0x68747541 || d != 0x69746e65 || c != 0x444d4163)
    return false;
  return __get_cpuid(1, &a, &b, &c, &d) && (a >> 8 & 15) + (a >> 20 & 255) == family;
#else
  return false;
#endif
}

}  // namespace

bool prefetches() {
  static const bool chosen = !is_amd_family(25);
  return chosen;
}

const Caches& caches() {
  static const Caches found = choose_caches();
  return found;
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace fastfood::cpu
