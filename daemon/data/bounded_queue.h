#pragma once

#include <atomic>
#include <bit>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace skv {

// One producer thread, one consumer thread, a fixed number of places.
//
// Thread  push: the producer. pop, empty: the consumer.
// Owns    what lies in it; items are moved in and out, each dies on the thread that took it.
template <typename T>
class BoundedQueue {
 public:
  explicit BoundedQueue(uint32_t places)
      : places_(std::bit_ceil(places)), mask_(std::bit_ceil(places) - 1) {}

  // False: full, `item` is untouched.
  bool push(T& item) {
    const uint32_t tail = tail_.load(std::memory_order_relaxed);
    if (tail - head_.load(std::memory_order_acquire) > mask_) return false;
    places_[tail & mask_].emplace(std::move(item));
    // Sequentially consistent: before the producer's look at the consumer's sleep flag.
    tail_.store(tail + 1, std::memory_order_seq_cst);
    return true;
  }

  std::optional<T> pop() {
    const uint32_t head = head_.load(std::memory_order_relaxed);
    if (head == tail_.load(std::memory_order_seq_cst)) return std::nullopt;
    std::optional<T> item = std::move(places_[head & mask_]);
    places_[head & mask_].reset();
    head_.store(head + 1, std::memory_order_release);
    return item;
  }

  bool empty() const {
    return head_.load(std::memory_order_relaxed) == tail_.load(std::memory_order_seq_cst);
  }

 private:
  std::vector<std::optional<T>> places_;
  uint32_t mask_;
  alignas(64) std::atomic<uint32_t> head_{0};
  alignas(64) std::atomic<uint32_t> tail_{0};
};

}  // namespace skv
