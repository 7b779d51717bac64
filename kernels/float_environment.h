#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace skv {

enum class Subnormals : uint8_t { kKept, kFlushed };  // flushed: 0, as operands and as results

// Round to nearest, no traps, while it lives; then what was there before. Scores and vectors are
// defined bit by bit, and an engine may call from a thread that flushes subnormals. Put it at an
// entry point, before a call that is not inlined.
class FloatEnvironment {
 public:
#if defined(__x86_64__)
  explicit FloatEnvironment(Subnormals subnormals = Subnormals::kKept) : saved_(_mm_getcsr()) {
    _mm_setcsr(subnormals == Subnormals::kKept ? 0x1F80 : 0x9FC0);
  }
  ~FloatEnvironment() { _mm_setcsr(saved_); }
#elif defined(__aarch64__)
  explicit FloatEnvironment(Subnormals subnormals = Subnormals::kKept) {
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
    __asm__ volatile("msr fpcr, %0" ::"r"(uint64_t{subnormals == Subnormals::kFlushed} << 24));
  }
  ~FloatEnvironment() { __asm__ volatile("msr fpcr, %0" ::"r"(saved_)); }
#endif
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;
  FloatEnvironment(FloatEnvironment&&) = delete;
  FloatEnvironment& operator=(FloatEnvironment&&) = delete;

 private:
#if defined(__x86_64__)
  uint32_t saved_;
#elif defined(__aarch64__)
  uint64_t saved_;
#endif
};

}  // namespace skv
