#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "daemon/data/data_messages.h"
#include "daemon/data/feed.h"
#include "daemon/data/residency.h"
#include "ipc/layout/window.h"
#include "ipc/shared_memory.h"
#include "kernels/difference.h"
#include "tiers/slot_pool.h"

namespace skv {

// One table before it is written: what a prefetch found for one layer.
struct TableEntry {
  uint32_t slot = 0;
  uint32_t block = 0;
  uint32_t sentence = 0;
  float score = 0.0F;
  Origin origin = Origin::kDevice;
};
struct LayerTable {
  std::vector<TableEntry> entries;  // head after head, ascending by block inside
  std::vector<uint32_t> indptr;     // heads + 1
  float unread_mass = 0.0F;
};

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
  static Result<std::unique_ptr<Window>> create(const OpenWindow& options,
                                                std::shared_ptr<Feed> feed,
                                                bool slots_in_host,
                                                uint64_t arena_bytes,
                                                UniqueFd& tables);

  const OpenWindow& options() const { return options_; }
  Feed& feed() { return *feed_; }
  bool slots_in_host() const { return slots_in_host_; }
  uint64_t slots_bytes() const { return slots_bytes_; }
  uint64_t tables_bytes() const { return tables_bytes_; }
  uint32_t slot_unit_bytes() const { return slot_unit_bytes_; }
  uint32_t width() const {
    return options_.sink_blocks + options_.budget_blocks + options_.recent_blocks;
  }

  State state = State::kCreating;
  bool closing = false;
  SlabId slab{};
  const void* active = nullptr;  // the prefetch that works on it; one at a time

  uint64_t version() const { return version_; }
  uint64_t readers_done();
  bool buffer_is_free(uint32_t layer, uint64_t readers_done) const;
  ResidentSet& resident(uint32_t layer, uint32_t head) {
    return residents_[layers_[layer].first_resident + head];
  }
  // From the slab's start.
  uint64_t slot_offset(uint32_t layer, uint32_t head, uint32_t slot) const;

  // Writes the table into the buffer that is not current and makes it current.
  // Requires: buffer_is_free(layer); versions rise per layer.
  void publish(uint32_t layer, uint64_t version, uint32_t covered_to, const LayerTable& table);
  // After the last publish() of `version`: takes the leases its tables need, and gives back memory
  // for the next ones.
  void published(uint64_t version, std::vector<ExtentLease>& leases);
  // Gives back leases of tables that nobody reads any more.
  void release_read();
  bool holds_leases() const { return !held_.empty(); }

 private:
  struct Layer {
    uint32_t heads = 0;
    uint32_t first_resident = 0;
    uint64_t slots = 0;             // offset of its slots in the slab
    uint64_t header = 0;            // offset of its LayerTableHeader
    uint32_t current = 1;           // buffer
    uint64_t versions[2] = {0, 0};  // that the buffers hold
  };
  struct Held {
    uint64_t version = 0;
    std::vector<ExtentLease> leases;
  };

  Window(const OpenWindow& options, std::shared_ptr<Feed> feed, bool slots_in_host);
  void lay_out();

  OpenWindow options_;
  std::shared_ptr<Feed> feed_;
  bool slots_in_host_;
  uint32_t slot_unit_bytes_ = 1;
  uint64_t slots_bytes_ = 0;
  uint64_t tables_bytes_ = 0;
  std::vector<Layer> layers_;
  std::vector<ResidentSet> residents_;
  MappedMemory tables_;
  uint64_t version_ = 0;                         // last published
  uint64_t readers_done_ = 0;                    // largest seen
  std::vector<Held> held_;                       // versions rise
  std::vector<std::vector<ExtentLease>> spare_;  // empty
};

}  // namespace skv
