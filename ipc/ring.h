#pragma once

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <type_traits>

#include "ipc/types/check.h"
#include "ipc/types/result.h"

namespace skv {

// One producer, one consumer, fixed-size entries, in memory that the other side may scribble on.
//
// What makes it safe against a lying peer:
// - geometry is private to each side, fixed at creation, never read back from the memory;
// - each side keeps its own index privately and only stores it for the other to see; the other's
//   index is loaded once into a local, and an impossible distance is an error, never clamped;
// - an entry is copied once, word by word with atomic loads, and only the copy is looked at;
// - nothing here waits, locks or spins on shared memory.
// A peer that scribbles on its own index hurts itself only.
//
// Shape   `entry_count` is a power of two; indices are u32 and run on through their wrap.
// Thread  the producer's methods on one thread, the consumer's on one (other) thread or process.
// Owns    nothing: the memory must outlive both ends.
// Errors  kProtocol: the peer's index is impossible. It stays: close the session.
template <typename Entry>
struct RingMemory {
  static_assert(std::is_trivially_copyable_v<Entry> && sizeof(Entry) % sizeof(uint64_t) == 0);
  static_assert(std::atomic<uint32_t>::is_always_lock_free);

  std::atomic<uint32_t>* tail = nullptr;  // the producer stores: entries made so far
  std::atomic<uint32_t>* head = nullptr;  // the consumer stores: entries taken so far
  std::byte* entries = nullptr;           // aligned to 8
  uint32_t entry_count = 0;

  std::byte* at(uint32_t index) const {
    return entries + static_cast<size_t>(index & (entry_count - 1)) * sizeof(Entry);
  }
  void check() const {
    SKV_CHECK(tail != nullptr && head != nullptr && entries != nullptr, "a ring needs memory");
    SKV_CHECK(std::has_single_bit(entry_count), "a ring's size is a power of two");
    SKV_CHECK(reinterpret_cast<uintptr_t>(entries) % sizeof(uint64_t) == 0, "entries align to 8");
  }
};

namespace ring_detail {

// Word by word through atomics, so that no compiler can fetch a word twice or keep it back.
template <typename Entry>
Entry load_entry(const std::byte* from) {
  uint64_t words[sizeof(Entry) / sizeof(uint64_t)];
  auto* shared = reinterpret_cast<uint64_t*>(const_cast<std::byte*>(from));
  for (size_t i = 0; i < std::size(words); ++i) {
    words[i] = std::atomic_ref<uint64_t>(shared[i]).load(std::memory_order_relaxed);
  }
  Entry entry;
  std::memcpy(&entry, words, sizeof entry);
  return entry;
}

template <typename Entry>
void store_entry(std::byte* to, const Entry& entry) {
  uint64_t words[sizeof(Entry) / sizeof(uint64_t)];
  std::memcpy(words, &entry, sizeof entry);
  auto* shared = reinterpret_cast<uint64_t*>(to);
  for (size_t i = 0; i < std::size(words); ++i) {
    std::atomic_ref<uint64_t>(shared[i]).store(words[i], std::memory_order_relaxed);
  }
}

inline Error broken(uint32_t tail, uint32_t head, uint32_t entry_count) {
  return Error{ErrorCode::kProtocol, "ring indices are impossible: tail " + std::to_string(tail) +
                                         ", head " + std::to_string(head) + ", entries " +
                                         std::to_string(entry_count)};
}

}  // namespace ring_detail

template <typename Entry>
class RingProducer {
 public:
  RingProducer() = default;
  // On memory whose indices are 0 (fresh).
  explicit RingProducer(RingMemory<Entry> memory) : memory_(memory) { memory_.check(); }

  // Entries that can be pushed now. After announce_sleep() it also answers "may I sleep?".
  Result<uint32_t> room() {
    const uint32_t head = memory_.head->load(std::memory_order_seq_cst);
    if (tail_ - head > memory_.entry_count) {
      return ring_detail::broken(tail_, head, memory_.entry_count);
    }
    head_ = head;
    return memory_.entry_count - (tail_ - head);
  }

  // False: full, nothing was taken.
  Result<bool> push(const Entry& entry) {
    if (tail_ - head_ >= memory_.entry_count) {
      const Result<uint32_t> free = room();
      if (!free.ok()) return free.error();
      if (free.value() == 0) return false;
    }
    ring_detail::store_entry(memory_.at(tail_), entry);
    ++tail_;
    // Sequentially consistent, not only release: it must come before the load of the consumer's
    // sleep flag (ipc/doorbell.h).
    memory_.tail->store(tail_, std::memory_order_seq_cst);
    return true;
  }

 private:
  RingMemory<Entry> memory_;
  uint32_t tail_ = 0;
  uint32_t head_ = 0;  // as last seen
};

template <typename Entry>
class RingConsumer {
 public:
  RingConsumer() = default;
  explicit RingConsumer(RingMemory<Entry> memory) : memory_(memory) { memory_.check(); }

  // nullopt: empty.
  Result<std::optional<Entry>> pop() {
    if (tail_ == head_) {
      const Result<uint32_t> ready = available();
      if (!ready.ok()) return ready.error();
      if (ready.value() == 0) return std::optional<Entry>();
    }
    const Entry entry = ring_detail::load_entry<Entry>(memory_.at(head_));
    ++head_;
    memory_.head->store(head_, std::memory_order_seq_cst);  // for a producer that sleeps for room
    return std::optional<Entry>(entry);
  }

  // Entries that can be popped now. After announce_sleep() it also answers "may I sleep?".
  Result<uint32_t> available() {
    const uint32_t tail = memory_.tail->load(std::memory_order_seq_cst);
    if (tail - head_ > memory_.entry_count) {
      return ring_detail::broken(tail, head_, memory_.entry_count);
    }
    tail_ = tail;
    return tail - head_;
  }

 private:
  RingMemory<Entry> memory_;
  uint32_t head_ = 0;
  uint32_t tail_ = 0;  // as last seen
};

}  // namespace skv
