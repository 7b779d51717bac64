#include "tiers/nvme_log.h"

#include <algorithm>

#include "ipc/types/check.h"

namespace skv {

NvmeLog::NvmeLog(const NvmeMeta& meta)
    : first_offset_(meta.geometry().first_segment_offset),
      segment_bytes_(meta.geometry().segment_bytes),
      usable_bytes_(segment_bytes_ - 2 * nvme::kBlockBytes),
      segments_(meta.geometry().segment_count),
      capacity_bytes_(segments_.size() * usable_bytes_) {}

uint32_t NvmeLog::segment_of(uint64_t offset) const {
  SKV_CHECK(offset >= first_offset_, "an offset in the front of the file");
  const uint64_t segment = (offset - first_offset_) / segment_bytes_;
  SKV_CHECK(segment < segments_.size(), "an offset behind the file");
  return static_cast<uint32_t>(segment);
}

uint64_t NvmeLog::room_in_open() const { return open_ ? tail_bytes(*open_) : 0; }

bool NvmeLog::can_allocate(uint64_t bytes, uint32_t reserve) const {
  return bytes <= room_in_open() || (bytes <= usable_bytes_ && clean_.size() > reserve);
}

std::optional<NvmeLog::Place> NvmeLog::allocate(uint64_t bytes,
                                                const Digest& key,
                                                uint32_t reserve) {
  SKV_CHECK(bytes > 0 && bytes % nvme::kBlockBytes == 0 && bytes <= usable_bytes_,
            "a record is whole blocks and fits a segment");
  if (!can_allocate(bytes, reserve)) {
    return std::nullopt;
  }
  const bool opened = bytes > room_in_open();
  if (opened) {
    close_open();
    open_ = clean_.front();
    clean_.pop_front();
    Segment& fresh = segments_[*open_];  // perhaps granted ahead
    fresh.state = State::kOpen;
    fresh.next = start_of(*open_) + nvme::kBlockBytes;
  }
  Segment& segment = segments_[*open_];
  const Place place{*open_, segment.next, opened};
  segment.slots.push_back({segment.next, bytes, key, false});
  segment.next += bytes;
  return place;
}

NvmeLog::Slot& NvmeLog::slot_at(uint64_t offset) {
  std::vector<Slot>& slots = segments_[segment_of(offset)].slots;
  const auto at = std::lower_bound(slots.begin(), slots.end(), offset,
                                   [](const Slot& slot, uint64_t to) { return slot.offset < to; });
  SKV_CHECK(at != slots.end() && at->offset == offset, "no record begins there");
  return *at;
}

void NvmeLog::set_live(uint64_t offset) {
  Slot& slot = slot_at(offset);
  SKV_CHECK(!slot.live, "a record became live twice");
  slot.live = true;
  segments_[segment_of(offset)].live_bytes += slot.bytes;
  live_bytes_ += slot.bytes;
}

void NvmeLog::kill(uint64_t offset) {
  Slot& slot = slot_at(offset);
  SKV_CHECK(slot.live, "a record died twice");
  slot.live = false;
  segments_[segment_of(offset)].live_bytes -= slot.bytes;
  live_bytes_ -= slot.bytes;
}

void NvmeLog::close_open() {
  if (open_) {
    segments_[*open_].state = State::kClosed;
    tail_bytes_ += tail_bytes(*open_);
    open_.reset();
  }
}

void NvmeLog::begin_freeing(uint32_t index) {
  Segment& segment = segments_[index];
  SKV_CHECK(segment.state == State::kClosed && segment.live_bytes == 0 && segment.io == 0 &&
                segment.readers == 0,
            "a segment in use was to be freed");
  segment.state = State::kFreeing;
  tail_bytes_ -= tail_bytes(index);
}

void NvmeLog::stop_freeing(uint32_t index) {
  segments_[index].state = State::kClosed;
  tail_bytes_ += tail_bytes(index);
}

void NvmeLog::make_clean(uint32_t index) {
  Segment& segment = segments_[index];
  SKV_CHECK(segment.live_bytes == 0 && segment.io == 0 && segment.readers == 0,
            "a segment in use was to be cleared");
  segment = Segment{};
  clean_.push_back(index);
}

void NvmeLog::restore(const Slot& slot) {
  segments_[segment_of(slot.offset)].slots.push_back({slot.offset, slot.bytes, slot.key, false});
  if (slot.live) {
    set_live(slot.offset);
  }
}

void NvmeLog::finish_restore(uint32_t index, uint64_t generation, bool sealed) {
  Segment& segment = segments_[index];
  if (segment.slots.empty()) {
    clean_.push_back(index);
    return;
  }
  // Never appended to again: what a crash left behind its last record is unknown.
  segment.state = State::kClosed;
  segment.granted = true;
  segment.sealed = sealed;
  segment.suspect = !sealed;
  segment.generation = generation;
  segment.next = seal_offset(index);
}

void NvmeLog::set_bad(uint32_t index) {
  segments_[index].state = State::kBad;
  capacity_bytes_ -= usable_bytes_;
}

bool NvmeLog::freeing() const {
  return std::any_of(segments_.begin(), segments_.end(), [](const Segment& segment) {
    return segment.state == State::kFreeing ||
           (segment.state == State::kClosed && segment.live_bytes == 0);
  });
}

NvmeLog::Victim NvmeLog::victim(uint64_t gain_min) const {
  Victim best;
  uint64_t best_gain = 0;
  for (uint32_t index = 0; index < segments_.size(); ++index) {
    const Segment& segment = segments_[index];
    if (segment.state != State::kClosed || segment.live_bytes + gain_min > usable_bytes_) {
      continue;
    }
    if (best.segment && usable_bytes_ - segment.live_bytes <= best_gain) {
      continue;  // it cannot bring more: no look at its records
    }
    // Its live records, in order, behind the log's end.
    uint64_t room = room_in_open();
    uint64_t taken = 0;
    for (const Slot& slot : segment.slots) {
      if (!slot.live) {
        continue;
      }
      if (slot.bytes > room) {
        room = usable_bytes_;
        ++taken;
      }
      room -= slot.bytes;
    }
    if (taken > clean_.size()) {
      continue;
    }
    const uint64_t before = room_in_open() + clean_.size() * usable_bytes_;
    const uint64_t after = room + (clean_.size() + 1 - taken) * usable_bytes_;
    if (after < before + gain_min) {
      continue;
    }
    if (segment.io > 0 || segment.readers > 0) {
      best.busy = true;
      continue;
    }
    if (!best.segment || after - before > best_gain) {
      best.segment = index;
      best_gain = after - before;
    }
  }
  return best;
}

}  // namespace skv
