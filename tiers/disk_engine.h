#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "tiers/aligned_buffer.h"
#include "tiers/checksum.h"
#include "tiers/disk.h"

namespace skv {

// One transfer between a contiguous range of the disk and memory in pieces, with the sums that must
// hold before a write leaves or after a read came.
//
// Thread  made on the loop, worked by the engine's thread, read again on the loop; never shared.
// Owns    `own`; borrows all other memory of `pieces` until it is finished.
struct DiskJob {
  enum class Kind : uint8_t { kRead = 0, kWrite = 1, kSync = 2 };
  struct Check {
    std::span<const std::byte> bytes;
    ChunkSum sum;
  };

  Kind kind = Kind::kRead;
  bool urgent = false;  // a read that somebody waits for
  uint64_t offset = 0;
  std::vector<std::span<std::byte>> pieces;  // back to back on the disk; 4 KiB granular. A write
                                             // only reads them
  std::vector<Check> checks;
  AlignedBuffer own;
  // On the engine's thread: before the first request (may add the first piece), after a read that
  // verified. Large copies and sums belong here, not on the loop.
  std::function<void(DiskJob&)> prepare;
  std::function<void(DiskJob&)> complete;
  std::function<void(DiskJob&)> finished;  // on the loop

  // Answers.
  Result<void> result;
  uint32_t io_errors = 0;
  uint64_t bytes_done = 0;

 private:
  friend class DiskEngine;
  bool prepared_ = false;
  bool failed_ = false;
  bool read_again_ = false;
  uint64_t next_ = 0;  // bytes of the job given to requests
  uint64_t total_ = 0;
  uint32_t in_flight_ = 0;
};

// Makes requests of jobs: cuts them to what a disk takes at once, keeps demand reads ahead of other
// reads and those ahead of writes, submits the rest of a short one again, tries a failed read and a
// failed verification once more.
//
// Limits  `depth` requests at the disk; of these writes and waiting-for-nobody reads take at most
//         three quarters, so a demand read always finds a place.
// Thread  one: the one that attached the disk.
// Errors  in DiskJob::result: kIo; kCorrupt (read: bytes are not what was written, pieces zeroed;
//         write: memory is not what the sums say, nothing was written).
class DiskEngine {
 public:
  DiskEngine(Disk& disk, uint32_t depth);

  void add(std::unique_ptr<DiskJob> job);
  // Submits what there is place for and takes what has completed. `block`: sleeps if nothing has,
  // until something does or the disk is woken.
  void step(bool block, std::vector<std::unique_ptr<DiskJob>>& finished);
  bool idle() const { return jobs_ == 0; }

 private:
  struct Request : DiskRequest {
    DiskJob* job = nullptr;
    uint64_t first = 0;  // bytes of the job
    uint64_t bytes = 0;
    uint32_t attempts = 0;
  };
  enum Queue : size_t { kUrgent = 0, kReads = 1, kWrites = 2, kQueues = 3 };

  static Queue queue_of(const DiskJob& job);
  void submit_from(Queue queue, uint32_t limit);
  void submit(Request& request);
  void take(Request& request);
  void request_failed(Request& request, int64_t error);
  void settle(DiskJob& job);
  void finish(DiskJob& job);

  Disk& disk_;
  uint32_t depth_;
  std::vector<std::unique_ptr<Request>> requests_;
  std::vector<Request*> free_;
  std::deque<DiskJob*> queues_[kQueues];  // jobs with requests still to make
  std::vector<std::unique_ptr<DiskJob>> owned_;
  std::vector<std::unique_ptr<DiskJob>> finished_;
  std::vector<DiskRequest*> completed_;
  size_t jobs_ = 0;
};

}  // namespace skv
