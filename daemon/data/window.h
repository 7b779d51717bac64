#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "daemon/data/data_messages.h"
#include "daemon/data/feed.h"
#include "daemon/data/residency.h"
#include "daemon/data/statistics.h"
#include "ipc/layout/window.h"
#include "ipc/shared_memory.h"
#include "kernels/difference.h"
#include "kernels/kept_reads.h"
#include "kernels/window_tables.h"
#include "tiers/slot_pool.h"

namespace skv {

// One decoding row's working set: tables in memory that its one client maps, and a resident set per
// (layer, kv head) where there are device slots.
//
// Versions  one counter; readers_done is the client's word, taken as a promise and never above the
//           last version. A buffer is written again only when readers_done has reached the version
//           it holds; the same for leases on host extents, which tables of `none` point into.
// Thread    data thread.
// Owns      tables memory; the slab is the pool's, this has its id.
class Window {
 public:
  enum class State : uint8_t { kCreating, kOpen, kLost };

  // `slots_in_host`: no slab, slots are places in the space's arena of `arena_bytes`.
  // options.rank_in is kDaemon or kClient; the latter needs a shared feed.
  static Result<std::unique_ptr<Window>> create(const OpenWindow& options,
                                                std::shared_ptr<Feed> feed,
                                                bool slots_in_host,
                                                uint64_t arena_bytes,
                                                UniqueFd& tables);

  const OpenWindow& options() const { return options_; }
  Feed& feed() { return *feed_; }
  bool slots_in_host() const { return slots_in_host_; }
  bool client_ranks() const { return options_.rank_in == RankIn::kClient; }
  const WindowLayout& layout() const { return layout_; }
  uint64_t slots_bytes() const { return slots_bytes_; }
  uint64_t tables_bytes() const { return layout_.tables_bytes(); }
  uint32_t slot_unit_bytes() const { return layout_.slot_unit_bytes(); }
  uint32_t width() const { return layout_.width(); }

  State state = State::kCreating;
  bool closing = false;
  SlabId slab{};
  const void* active = nullptr;  // the prefetch that works on it; one at a time

  uint64_t version() const { return version_; }
  uint64_t readers_done();
  bool buffer_is_free(uint32_t layer, uint64_t readers_done) const {
    return tables_.buffer_is_free(layer, readers_done);
  }
  ResidentSet& resident(uint32_t layer, uint32_t head) {
    return residents_[layout_.resident_set(layer, head)];
  }
  KeptReads& kept_reads() { return kept_reads_; }
  // From the slab's start.
  uint64_t slot_offset(uint32_t layer, uint32_t head, uint32_t slot) const {
    return layout_.slot_offset(layer, head, slot);
  }

  // The buffer of a layer that is not current, and what makes it so once it is written.
  // Requires: buffer_is_free(layer); versions rise per layer.
  TableArrays buffer(uint32_t layer) const { return tables_.buffer(layer); }
  void publish(uint32_t layer, const WindowTables::Published& table) {
    tables_.publish(layer, table);
  }
  // After the last publish() of `version`: takes the leases its tables need, and gives back memory
  // for the next ones.
  void published(uint64_t version, std::vector<ExtentLease>& leases);
  // Gives back leases of tables that nobody reads any more.
  void release_read();
  bool holds_leases() const { return !held_.empty(); }
  // Where the client ranks: leases for a version that it names, in any order.
  void hold(uint64_t version, std::vector<ExtentLease> leases);
  size_t held_count() const { return held_count_; }

  // Where the client ranks and reads in place: the version it was making when a chunk was hidden
  // from it (0: none), and whether it may still read that chunk, which has so many bytes in the
  // arena. To be asked until it says no. All of it is the client's word, about reads of its own.
  uint64_t making() const;
  bool may_read(uint64_t making, const Extent& chunk, uint64_t bytes) const;
  // What a client that ranks is asked to compare with full scans.
  void set_recall_every(uint32_t every) { tables_.header().recall_every = every; }
  // Marks of the client: adds them to the feed's, and its sums to the counters.
  void collect(DataCounters& counters);

 private:
  struct Held {
    uint64_t version = 0;
    std::vector<ExtentLease> leases;
  };

  Window(const OpenWindow& options, std::shared_ptr<Feed> feed, bool slots_in_host);

  OpenWindow options_;
  std::shared_ptr<Feed> feed_;
  bool slots_in_host_;
  WindowLayout layout_;
  uint64_t slots_bytes_ = 0;
  std::vector<ResidentSet> residents_;
  KeptReads kept_reads_;
  MappedMemory memory_;
  WindowTables tables_;
  uint64_t version_ = 0;       // last published
  uint64_t readers_done_ = 0;  // largest seen
  struct Sums {
    uint64_t prefetches = 0;
    uint64_t read_blocks = 0;
    uint64_t misses = 0;
    RecallCounts recall;
  } collected_;
  std::vector<Held> held_;                       // versions rise, unless the client names them
  size_t held_count_ = 0;                        // leases
  std::vector<std::vector<ExtentLease>> spare_;  // empty
};

}  // namespace skv
