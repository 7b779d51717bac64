#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstdint>

#include "kernels/recall.h"

namespace skv {

// A histogram of microseconds in steps of 12 % or less: 8 buckets per power of two.
//
// Thread  add: one; quantile: any, of a recent state.
class LatencyHistogram {
 public:
  void add(uint64_t microseconds) {
    counts_[bucket_of(microseconds)].fetch_add(1, std::memory_order_relaxed);
  }
  // Upper edge of the bucket that holds the `quantile`; 0 while empty.
  uint64_t quantile(double quantile) const {
    uint64_t total = 0;
    std::array<uint64_t, kBuckets> counts{};
    for (size_t i = 0; i < kBuckets; ++i) {
      counts[i] = counts_[i].load(std::memory_order_relaxed);
      total += counts[i];
    }
    if (total == 0) return 0;
    const auto rank = static_cast<uint64_t>(quantile * static_cast<double>(total - 1));
    uint64_t seen = 0;
    for (size_t i = 0; i < kBuckets; ++i) {
      seen += counts[i];
      if (seen > rank) return upper_edge(i);
    }
    return upper_edge(kBuckets - 1);
  }

 private:
  static constexpr size_t kBuckets = size_t{8} * 32;
  static size_t bucket_of(uint64_t value) {
    if (value < 8) return value;
    const int exponent = 63 - std::countl_zero(value);  // >= 3
    const size_t bucket = static_cast<size_t>(exponent - 2) * 8 + ((value >> (exponent - 3)) & 7);
    return bucket < kBuckets ? bucket : kBuckets - 1;
  }
  static uint64_t upper_edge(size_t bucket) {
    if (bucket < 8) return bucket;
    const auto shift = static_cast<unsigned>(bucket / 8 - 1);
    return ((8 + bucket % 8 + 1) << shift) - 1;
  }
  std::array<std::atomic<uint64_t>, kBuckets> counts_{};
};

// What DataStatistics is made from. The data thread counts, any thread reads; relaxed: each number
// is right by itself, not all of one moment.
struct DataCounters {
  using Counter = std::atomic<uint64_t>;
  Counter prefetches{0};
  Counter prefetches_busy{0};
  Counter prefetches_failed{0};
  Counter hits_device{0};
  Counter hits_host{0};
  Counter hits_nvme{0};
  Counter misses{0};
  Counter read_ahead_asked{0};  // chunks; what became of them: Residency::AheadCounts
  Counter read_ahead_used{0};
  Counter read_ahead_late{0};
  Counter read_ahead_wasted{0};
  Counter blocks_read{0};
  Counter bytes_moved{0};
  Counter bytes_put{0};
  Counter bytes_loaded{0};
  Counter bytes_summed_again{0};  // put: of chunks whose layers came out of order
  Counter tasks{0};
  Counter rank_ns{0};
  Counter recall_rankings{0};  // RecallCounts
  Counter recall_wanted{0};
  Counter recall_found{0};
  Counter prefetch_us{0};
  Counter protocol_errors{0};
  Counter devices_lost{0};
  Counter commands_spilled{0};
  Counter channels{0};
  Counter windows{0};
  Counter feeds{0};
  Counter vector_pages_bytes{0};
  Counter device_bytes_used{0};
  Counter device_bytes_budget{0};
  LatencyHistogram latency_us;

  static void add(Counter& counter, uint64_t count) {
    counter.fetch_add(count, std::memory_order_relaxed);
  }
  void add_recall(const RecallCounts& counts) {
    add(recall_rankings, counts.rankings);
    add(recall_wanted, counts.wanted);
    add(recall_found, counts.found);
  }
  static void set(Counter& counter, uint64_t value) {
    counter.store(value, std::memory_order_relaxed);
  }
};

}  // namespace skv
