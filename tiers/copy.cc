// The stores of copy_around_caches with Highway: compiled once per instruction set, the best one
// that the CPU has is chosen at run time.
#include "tiers/copy.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tiers/copy.cc"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>  // first: includes this file again for each target
#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

HWY_BEFORE_NAMESPACE();
namespace skv {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

void copy_streaming(uint8_t* to, const uint8_t* from, size_t bytes) {
  const hn::ScalableTag<uint8_t> d;
  const size_t lanes = hn::Lanes(d);
  // Whole lines from the first one on: a line that is stored in part is read first after all.
  const size_t line = std::max<size_t>(lanes, 64);
  const size_t head = std::min(bytes, (line - reinterpret_cast<uintptr_t>(to) % line) % line);
  std::memcpy(to, from, head);
  size_t at = head;
  for (; at + 4 * lanes <= bytes; at += 4 * lanes) {
    const auto a = hn::LoadU(d, from + at);
    const auto b = hn::LoadU(d, from + at + lanes);
    const auto c = hn::LoadU(d, from + at + 2 * lanes);
    const auto e = hn::LoadU(d, from + at + 3 * lanes);
    hn::Stream(a, d, to + at);
    hn::Stream(b, d, to + at + lanes);
    hn::Stream(c, d, to + at + 2 * lanes);
    hn::Stream(e, d, to + at + 3 * lanes);
  }
  std::memcpy(to + at, from + at, bytes - at);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace skv
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace skv {

HWY_EXPORT(copy_streaming);

void copy_around_caches(std::byte* to, const std::byte* from, size_t bytes) {
  HWY_DYNAMIC_DISPATCH(copy_streaming)
  (reinterpret_cast<uint8_t*>(to), reinterpret_cast<const uint8_t*>(from), bytes);
}

void stores_done() { hwy::FlushStream(); }

void copy_run(std::byte* to, const std::byte* from, size_t bytes) {
#if defined(__x86_64__)
  size_t words = bytes / 8;
  asm volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(words) : : "memory");
  bytes %= 8;
#endif
  std::memcpy(to, from, bytes);
}

}  // namespace skv
#endif  // HWY_ONCE
