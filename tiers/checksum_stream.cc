// XXH3-128 of more than 240 bytes, as published (github.com/Cyan4973/xxHash, doc/xxhash_spec.md),
// with Highway: the loop that sums also copies. Compiled once per instruction set, the best one
// that the CPU has is chosen at run time.
#include "tiers/checksum.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tiers/checksum_stream.cc"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>  // first: includes this file again for each target
#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#ifndef SKV_TIERS_CHECKSUM_CONSTANTS
#define SKV_TIERS_CHECKSUM_CONSTANTS
namespace skv::xxh3 {

constexpr size_t kStripeBytes = ChecksumStream::State::kStripeBytes;
constexpr size_t kSecretBytes = 192;
// Each stripe of a block meets the secret 8 bytes further on; then the lanes are scrambled.
constexpr uint32_t kStripesPerBlock = (kSecretBytes - kStripeBytes) / 8;

constexpr uint64_t kPrime32[] = {0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D};
constexpr uint64_t kPrime64[] = {0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9,
                                 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5};

alignas(64) constexpr uint8_t kSecret[kSecretBytes] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};
constexpr const uint8_t* kScramblingSecret = kSecret + kSecretBytes - kStripeBytes;
constexpr const uint8_t* kLastStripeSecret = kScramblingSecret - 7;
constexpr size_t kMergeStart = 11;

// Stripes of one run. `to`: may be null (then they are only summed).
struct Run {
  std::byte* to;
  const std::byte* from;
  size_t stripes;
  size_t ask_ahead;
};

}  // namespace skv::xxh3
#endif  // SKV_TIERS_CHECKSUM_CONSTANTS

HWY_BEFORE_NAMESPACE();
namespace skv {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using State = ChecksumStream::State;

enum class Store : uint8_t { kNone, kPlain, kAroundCaches };

// A stripe, or the eight lanes of the sum.
#if HWY_TARGET == HWY_SCALAR
class Stripe {
 public:
  void load(const void* from) { std::memcpy(v_, from, sizeof v_); }
  template <Store kStore>
  void store(void* to) const {
    if (kStore != Store::kNone) std::memcpy(to, v_, sizeof v_);
  }
  void accumulate(const Stripe& data, const uint8_t* secret) {
    Stripe key;
    key.load(secret);
    for (size_t i = 0; i < 8; ++i) {
      const uint64_t keyed = data.v_[i] ^ key.v_[i];
      v_[i] += (keyed & 0xFFFFFFFF) * (keyed >> 32) + data.v_[i ^ 1];
    }
  }
  void scramble() {
    Stripe key;
    key.load(xxh3::kScramblingSecret);
    for (size_t i = 0; i < 8; ++i) {
      v_[i] = (v_[i] ^ v_[i] >> 47 ^ key.v_[i]) * xxh3::kPrime32[0];
    }
  }

 private:
  uint64_t v_[8];
};
#else
class Stripe {
 public:
  using D = hn::CappedTag<uint64_t, 8>;
  using D32 = hn::Repartition<uint32_t, D>;
  using V = hn::Vec<D>;
  static constexpr size_t kVectors = 8 / hn::MaxLanes(D());

  HWY_INLINE void load(const void* from) {
    for (size_t i = 0; i < kVectors; ++i) {
      v_[i] = hn::BitCast(D(), hn::LoadU(D8(), static_cast<const uint8_t*>(from) + i * kBytes));
    }
  }
  template <Store kStore>
  HWY_INLINE void store(void* to) const {
    for (size_t i = 0; i < kVectors; ++i) {
      uint8_t* const at = static_cast<uint8_t*>(to) + i * kBytes;
      if constexpr (kStore == Store::kPlain) hn::StoreU(hn::BitCast(D8(), v_[i]), D8(), at);
      if constexpr (kStore == Store::kAroundCaches) hn::Stream(hn::BitCast(D8(), v_[i]), D8(), at);
    }
  }
  // As lanes of the sum: takes in a stripe.
  HWY_INLINE void accumulate(const Stripe& data, const uint8_t* secret) {
    Stripe key;
    key.load(secret);
    for (size_t i = 0; i < kVectors; ++i) {
      const V keyed = hn::Xor(data.v_[i], key.v_[i]);
      const V product =
          hn::MulEven(hn::BitCast(D32(), keyed), hn::BitCast(D32(), hn::ShiftRight<32>(keyed)));
      v_[i] = hn::Add(v_[i], hn::Add(product, hn::Shuffle01(data.v_[i])));
    }
  }
  HWY_INLINE void scramble() {
    Stripe key;
    key.load(xxh3::kScramblingSecret);
    const auto prime = hn::Set(D32(), static_cast<uint32_t>(xxh3::kPrime32[0]));
    for (size_t i = 0; i < kVectors; ++i) {
      const V x = hn::Xor(hn::Xor(v_[i], hn::ShiftRight<47>(v_[i])), key.v_[i]);
      const V low = hn::MulEven(hn::BitCast(D32(), x), prime);
      const V high = hn::MulEven(hn::BitCast(D32(), hn::ShiftRight<32>(x)), prime);
      v_[i] = hn::Add(low, hn::ShiftLeft<32>(high));
    }
  }

 private:
  using D8 = hn::Repartition<uint8_t, D>;
  static constexpr size_t kBytes = hn::MaxLanes(D8());
  V v_[kVectors];
};
#endif

HWY_INLINE void take_in(Stripe& lanes, uint32_t& place, const Stripe& data) {
  lanes.accumulate(data, xxh3::kSecret + size_t{8} * place);
  if (++place < xxh3::kStripesPerBlock) return;
  place = 0;
  lanes.scramble();
}

// The stripe that was to come, then all of the run but its last, which is to come now.
template <Store kStore>
void take_run(State& state, const xxh3::Run& run) {
  Stripe lanes;
  lanes.load(state.lanes);
  uint32_t place = state.place;
  Stripe data;
  if (state.coming_bytes != 0) {
    data.load(state.coming);
    data.store<Store::kPlain>(state.before);
    take_in(lanes, place, data);
  }
  const auto* from = reinterpret_cast<const uint8_t*>(run.from);
  auto* to = reinterpret_cast<uint8_t*>(run.to);
  for (size_t left = run.stripes; left > 0; --left) {
    if constexpr (kStore != Store::kNone) hwy::Prefetch(from + run.ask_ahead);
    data.load(from);
    data.store<kStore>(to);
    if (left > 1) take_in(lanes, place, data);
    from += xxh3::kStripeBytes;
    to += kStore == Store::kNone ? 0 : xxh3::kStripeBytes;
  }
  if (run.stripes > 0) data.store<Store::kPlain>(state.coming);
  lanes.store<Store::kPlain>(state.lanes);
  state.place = place;
}

void sum_run(State& state, const xxh3::Run& run) {
  if (run.to == nullptr) return take_run<Store::kNone>(state, run);
  if (reinterpret_cast<uintptr_t>(run.to) % xxh3::kStripeBytes != 0) {
    return take_run<Store::kPlain>(state, run);
  }
  take_run<Store::kAroundCaches>(state, run);
}

void take_last(uint64_t* lanes_of, const std::byte* last) {
  Stripe lanes;
  Stripe data;
  lanes.load(lanes_of);
  data.load(last);
  lanes.accumulate(data, xxh3::kLastStripeSecret);
  lanes.store<Store::kPlain>(lanes_of);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace skv
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace skv {
namespace {

HWY_EXPORT(sum_run);
HWY_EXPORT(take_last);

uint64_t word_at(const uint8_t* from) {
  uint64_t word = 0;
  std::memcpy(&word, from, sizeof word);
  return word;
}

__extension__ using Wide = unsigned __int128;

uint64_t merge(const uint64_t (&lanes)[8], const uint8_t* secret, uint64_t start) {
  uint64_t sum = start;
  for (size_t i = 0; i < 8; i += 2) {
    const Wide product =
        Wide{lanes[i] ^ word_at(secret + 8 * i)} * (lanes[i + 1] ^ word_at(secret + 8 * i + 8));
    sum += static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
  }
  sum ^= sum >> 37;
  sum *= 0x165667919E3779F9;
  return sum ^ sum >> 32;
}

}  // namespace

void ChecksumStream::reset() {
  const uint64_t start[8] = {xxh3::kPrime32[2], xxh3::kPrime64[0], xxh3::kPrime64[1],
                             xxh3::kPrime64[2], xxh3::kPrime64[3], xxh3::kPrime32[1],
                             xxh3::kPrime64[4], xxh3::kPrime32[0]};
  std::memcpy(state_.lanes, start, sizeof start);
  state_.coming_bytes = 0;
  state_.place = 0;
  state_.total_bytes = 0;
}

void ChecksumStream::append(std::byte* to, const std::byte* from, size_t bytes, size_t ask_ahead) {
  while (bytes > 0) {
    const bool between_stripes = state_.coming_bytes % State::kStripeBytes == 0;
    const size_t stripes = between_stripes ? bytes / State::kStripeBytes : 0;
    size_t count = stripes * State::kStripeBytes;
    if (stripes > 0 && state_.total_bytes + count > State::kShortBytesMax) {
      HWY_DYNAMIC_DISPATCH(sum_run)(state_, {to, from, stripes, ask_ahead});
      state_.coming_bytes = State::kStripeBytes;
      state_.total_bytes += count;
    } else {
      const size_t have = between_stripes ? 0 : state_.coming_bytes;
      count = std::min(bytes, State::kStripeBytes - have);
      append_part(to, from, count);
    }
    from += count;
    if (to != nullptr) to += count;
    bytes -= count;
  }
}

// Of one stripe; from the copy of it that is kept.
void ChecksumStream::append_part(std::byte* to, const std::byte* from, size_t bytes) {
  State& state = state_;
  if (state.coming_bytes == State::kStripeBytes) {
    HWY_DYNAMIC_DISPATCH(sum_run)(state, {nullptr, nullptr, 0, 0});
    state.coming_bytes = 0;
  }
  std::byte* const part = state.coming + state.coming_bytes;
  std::memcpy(part, from, bytes);
  if (to != nullptr) std::memcpy(to, part, bytes);
  if (state.total_bytes < State::kShortBytesMax) {
    std::memcpy(state.head + state.total_bytes, part,
                std::min<size_t>(bytes, State::kShortBytesMax - state.total_bytes));
  }
  state.coming_bytes += bytes;
  state.total_bytes += bytes;
}

ChunkSum ChecksumStream::sum() const {
  const State& state = state_;
  if (state.total_bytes <= State::kShortBytesMax) {
    return checksum({state.head, static_cast<size_t>(state.total_bytes)});
  }
  // The last 64 bytes once more, whatever part of them is in a stripe already.
  std::byte last[State::kStripeBytes];
  std::memcpy(last, state.before + state.coming_bytes, State::kStripeBytes - state.coming_bytes);
  std::memcpy(last + State::kStripeBytes - state.coming_bytes, state.coming, state.coming_bytes);
  uint64_t lanes[8];
  std::memcpy(lanes, state.lanes, sizeof lanes);
  HWY_DYNAMIC_DISPATCH(take_last)(lanes, last);
  constexpr size_t kEnd = xxh3::kSecretBytes - State::kStripeBytes - xxh3::kMergeStart;
  return {merge(lanes, xxh3::kSecret + xxh3::kMergeStart, state.total_bytes * xxh3::kPrime64[0]),
          merge(lanes, xxh3::kSecret + kEnd, ~(state.total_bytes * xxh3::kPrime64[1]))};
}

}  // namespace skv
#endif  // HWY_ONCE
