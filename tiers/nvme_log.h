#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "tiers/nvme_meta.h"

namespace skv {

// The segments of a store in memory: where the next record goes, what of each segment is live,
// which one is worth cleaning. No I/O and no clock: the same calls give the same places.
//
//   clean --(allocate)--> open --(full, or given up)--> closed --(nothing live)--> freeing -->
//   clean. On disk a clean segment has no header, or one of a generation without records.
//
// Units   offsets are of the file; bytes are whole 4 KiB.
// Thread  loop.
class NvmeLog {
 public:
  enum class State : uint8_t {
    kClean = 0,
    kOpen = 1,
    kClosed = 2,
    kFreeing = 3,  // nothing live; its header and seal are being cleared
    kBad = 4,      // not to be used until the store is opened again
  };
  struct Slot {
    uint64_t offset = 0;
    uint64_t bytes = 0;
    Digest key;
    bool live = false;
  };
  struct Segment {
    State state = State::kClean;
    bool granted = false;  // its header with this generation is durable: records may follow
    bool refused = false;  // the grant failed: nothing can be written until it is cleared
    bool suspect = false;  // a write into it failed: never sealed, so it is verified at every open
    bool sealed = false;
    bool needs_sync = false;  // records were copied out of it since the last sync
    uint64_t generation = 0;
    uint64_t next = 0;  // offset of the next record
    uint64_t live_bytes = 0;
    uint32_t io = 0;          // writes, copies and seals under way in it
    uint32_t readers = 0;     // reads under way
    std::vector<Slot> slots;  // ascending by offset
  };

  // Clean segments that only cleaning may take: one to copy into, one in case a crash comes
  // between.
  static constexpr uint32_t kReserve = 2;

  explicit NvmeLog(const NvmeMeta& meta);

  struct Place {
    uint32_t segment = 0;
    uint64_t offset = 0;
    bool opened = false;  // this segment was clean: nothing is written before it is granted
  };
  // Room for a record at the end of the log, the open segment first, then a clean one if more than
  // `reserve` are left. The slot is not live yet.
  std::optional<Place> allocate(uint64_t bytes, const Digest& key, uint32_t reserve);
  bool can_allocate(uint64_t bytes, uint32_t reserve) const;

  void set_live(uint64_t offset);
  void kill(uint64_t offset);
  void close_open();
  void begin_freeing(uint32_t segment);  // Requires: closed, nothing live, no io, no readers
  void stop_freeing(uint32_t segment);   // it could not be: closed as before
  void make_clean(uint32_t segment);     // Requires: nothing live, no io, no readers

  // The segment that is opened next.
  std::optional<uint32_t> next_clean() const {
    return clean_.empty() ? std::nullopt : std::optional(clean_.front());
  }

  // At open. `slot.live` as it is; what is not live keeps its place until the segment is clean.
  void restore(const Slot& slot);
  void finish_restore(uint32_t segment, uint64_t generation, bool sealed);
  void set_bad(uint32_t segment);

  // The closed segment whose cleaning makes most room, if that is at least an eighth of a segment:
  // what its live records leave behind when they are copied to the log's end, the tail they waste
  // there counted. `busy`: such a segment exists, and something is still under way in it.
  struct Victim {
    std::optional<uint32_t> segment;
    bool busy = false;
  };
  Victim victim(uint64_t gain_min) const;
  uint64_t gain_unit() const { return usable_bytes_ / 8; }

  uint32_t segment_of(uint64_t offset) const;
  Segment& at(uint32_t segment) { return segments_[segment]; }
  const Segment& at(uint32_t segment) const { return segments_[segment]; }
  uint32_t count() const { return static_cast<uint32_t>(segments_.size()); }
  std::optional<uint32_t> open_segment() const { return open_; }
  uint32_t clean_count() const { return static_cast<uint32_t>(clean_.size()); }
  bool freeing() const;  // some segment will be clean without cleaning
  uint64_t usable_bytes() const { return usable_bytes_; }  // of one segment
  uint64_t live_bytes() const { return live_bytes_; }
  // What new records cannot have before something is erased: live records, and the ends of closed
  // segments, which no record fitted in. Of capacity_bytes(), all segments that are not bad.
  uint64_t used_bytes() const { return live_bytes_ + tail_bytes_; }
  uint64_t capacity_bytes() const { return capacity_bytes_; }
  uint64_t start_of(uint32_t segment) const { return first_offset_ + segment * segment_bytes_; }
  uint64_t seal_offset(uint32_t segment) const {
    return start_of(segment) + segment_bytes_ - nvme::kBlockBytes;
  }

 private:
  Slot& slot_at(uint64_t offset);
  uint64_t room_in_open() const;
  uint64_t tail_bytes(uint32_t segment) const {
    return seal_offset(segment) - segments_[segment].next;
  }

  uint64_t first_offset_;
  uint64_t segment_bytes_;
  uint64_t usable_bytes_;
  std::vector<Segment> segments_;
  std::deque<uint32_t> clean_;  // the longest clean first: all wear alike
  std::optional<uint32_t> open_;
  uint64_t live_bytes_ = 0;
  uint64_t tail_bytes_ = 0;  // of closed segments
  uint64_t capacity_bytes_;
};

}  // namespace skv
