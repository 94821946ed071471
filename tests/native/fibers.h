// Fibers: functions that stop in the middle and later go on from there, each on a stack of its own
// and all in one thread of the host. A scheduler resumes one fiber at a time; the fiber runs until
// it pauses. The emulator makes each CUDA thread of a block a fiber, which pauses at barriers;
// nothing here knows of CUDA.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <memory>

#include "sanitizer.h"

namespace emulator {

constexpr size_t kStack = sanitizer::kStackFactor * 64 * 1024;

// Where a fiber or the scheduler goes on.
struct Context {
  ucontext_t context;  // where a fiber starts; under sanitizers, where either of them goes on
  jmp_buf jump;
  bool fresh = false;  // not started yet
};

struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack;
};

struct Scheduler {
  Context context;
  sanitizer::Stack stack;
};
inline Scheduler scheduler;

// Goes on at `to`; returns when somebody goes on at `from`.
inline void go_on(Context& from, Context& to) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  swapcontext(&from.context, &to.context);  // after a longjmp they would not know the stack
#else
  // swapcontext sets the signal mask each time: system calls that take longer than all the rest
  if (_setjmp(from.jump)) return;
  if (!to.fresh) _longjmp(to.jump, 1);
  to.fresh = false;
  setcontext(&to.context);
#endif
}

// Makes `fiber` one that runs body() when it is resumed next. body() must never return: it pauses
// when it has nothing more to do. It calls enter_fiber() first.
inline void start(Fiber& fiber, void (*body)()) {
  if (!fiber.stack) fiber.stack.reset(new char[kStack]);
  // Frames that were left there without a return may still be forbidden.
  sanitizer::allow(fiber.stack.get(), kStack);
  ucontext_t& context = fiber.context.context;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber.stack.get();
  context.uc_stack.ss_size = kStack;
  context.uc_link = nullptr;  // body() never returns
  makecontext(&context, body, 0);
  context.uc_stack.ss_size = 0;  // else AddressSanitizer forgets the stack at each switch
  fiber.context.fresh = true;
}
inline void enter_fiber() { scheduler.stack = sanitizer::enter_stack(nullptr); }

// Called by the scheduler: runs the fiber until it pauses.
inline void resume(Fiber& fiber) {
  void* kept = nullptr;
  sanitizer::leave_stack(&kept, {fiber.stack.get(), kStack});
  go_on(scheduler.context, fiber.context);
  sanitizer::enter_stack(kept);
}

// Called by the running fiber: goes back to the scheduler, and returns when it is resumed.
inline void pause(Fiber& fiber) {
  void* kept = nullptr;
  sanitizer::leave_stack(&kept, scheduler.stack);
  go_on(fiber.context, scheduler.context);
  scheduler.stack = sanitizer::enter_stack(kept);
}

}  // namespace emulator
