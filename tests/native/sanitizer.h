// What AddressSanitizer cannot see by itself and is told here: that a fiber goes on on another
// stack, and that guards must not be touched. Without AddressSanitizer these functions do nothing.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace sanitizer {

struct Stack {
  const void* bottom = nullptr;
  size_t bytes = 0;
};

#if defined(__SANITIZE_ADDRESS__)

constexpr size_t kStackFactor = 4;  // how much larger the frames of functions are

// To be called before a stack is left for another one.
inline void leave_stack(void** kept, Stack next) {
  __sanitizer_start_switch_fiber(kept, next.bottom, next.bytes);
}
// To be called first on a stack, with what was kept when it was left; returns the previous stack.
inline Stack enter_stack(void* kept) {
  Stack before;
  __sanitizer_finish_switch_fiber(kept, &before.bottom, &before.bytes);
  return before;
}
inline void forbid(const void* p, size_t bytes) { __asan_poison_memory_region(p, bytes); }
inline void allow(const void* p, size_t bytes) { __asan_unpoison_memory_region(p, bytes); }

#else

constexpr size_t kStackFactor = 1;
inline void leave_stack(void**, Stack) {}
inline Stack enter_stack(void*) { return {}; }
inline void forbid(const void*, size_t) {}
inline void allow(const void*, size_t) {}

#endif

}  // namespace sanitizer
