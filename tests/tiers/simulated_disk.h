#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "tiers/disk.h"

namespace skv {

// What a disk holds: what its cache has been told, and what would be there after a power cut.
class SimulatedMedia {
 public:
  explicit SimulatedMedia(uint64_t bytes) : view_(bytes) {}

  std::span<std::byte> view() { return view_; }
  uint64_t bytes() const { return view_.size(); }
  void write(uint64_t offset, std::span<const std::byte> bytes);
  void sync() { unsynced_.clear(); }
  // Of what was written since the last sync each 512-byte sector is there or not, as `random` says.
  void power_cut(std::mt19937_64& random);

 private:
  struct Write {
    uint64_t offset;
    std::vector<std::byte> before;  // what the sectors held
  };
  std::vector<std::byte> view_;
  std::vector<Write> unsynced_;
};

// Chances in 1000, each drawn per request from the seed.
struct SimulatedFaults {
  uint32_t read_error = 0;   // EIO
  uint32_t write_error = 0;  // EIO, some first sectors written
  uint32_t sync_error = 0;   // EIO
  uint32_t shorter = 0;      // fewer bytes than asked, down to none
  uint32_t read_flip = 0;    // one byte of what is read is wrong, on the way
  uint32_t media_flip = 0;   // one byte of what was written is wrong, on the medium
  uint32_t lost_write = 0;   // says it is written, is not
  uint32_t late = 0;         // completes after up to 20 further polls, others overtake it
  uint32_t interrupted = 0;  // EINTR or EAGAIN
  uint32_t full = 0;         // its queue has no place
};

// A disk in memory that misbehaves by a seed. Everything happens inside wait(), on the caller's
// thread, in an order that the seed fixes.
class SimulatedDisk final : public Disk {
 public:
  SimulatedDisk(std::shared_ptr<SimulatedMedia> media, uint64_t seed)
      : media_(std::move(media)), random_(seed) {}

  void set_faults(const SimulatedFaults& faults) { faults_ = faults; }
  // The next write puts `bytes` on the medium, then fails.
  void tear_next_write(uint64_t bytes) { tear_ = static_cast<int64_t>(bytes); }
  // Skips that many writes first.
  void tear_after(uint32_t writes, uint64_t bytes) {
    tear_skip_ = writes;
    tear_ = static_cast<int64_t>(bytes);
  }
  // From now on everything fails, as after the power went.
  void die() { dead_ = true; }
  uint64_t writes_seen() const { return writes_seen_; }

  std::string backend() const override { return "simulated"; }
  bool direct() const override { return true; }
  uint64_t bytes() const override { return media_->bytes(); }
  Result<void> attach(uint32_t /*depth*/) override { return {}; }
  bool submit(DiskRequest& request) override;
  void wait(bool block, std::vector<DiskRequest*>& completed) override;
  void wake() override {}
  Result<void> read_now(uint64_t offset, std::span<std::byte> bytes) override;
  Result<void> write_now(uint64_t offset, std::span<const std::byte> bytes) override;
  Result<void> sync_now() override;

 private:
  struct Waiting {
    DiskRequest* request;
    uint32_t polls;
  };
  bool chance(uint32_t in_1000) { return in_1000 > 0 && random_() % 1000 < in_1000; }
  int64_t run(DiskRequest& request);
  int64_t run_write(const DiskRequest& request, uint64_t asked);

  std::shared_ptr<SimulatedMedia> media_;
  std::mt19937_64 random_;
  SimulatedFaults faults_;
  int64_t tear_ = -1;
  uint32_t tear_skip_ = 0;
  bool dead_ = false;
  uint64_t writes_seen_ = 0;
  std::deque<Waiting> waiting_;
};

}  // namespace skv
