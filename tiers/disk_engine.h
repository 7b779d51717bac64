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
  uint32_t in_flight_ = 0;  // its parts in requests
  size_t owned_at_ = 0;
};

// Makes requests of jobs: cuts long ones, joins those that are neighbours on the disk, submits the
// rest of a short request again, tries a failed read and a failed verification once more. A joined
// request that fails is tried again job by job, so that a bad place costs one job.
//
// Limits  counted in bytes at the disk, because a request of 1 MiB delays those behind it as much
// as
//         256 of 4 KiB do. Demand reads have limits.bytes to themselves; reads that nobody waits
//         for and writes share three quarters of as much, a quarter or less while there are demand
//         reads; of the requests a quarter is kept for demand reads. So a demand read always finds
//         a place, and little is ahead of it.
// Order   sums are computed on this thread, between requests: what can be submitted is with the
// disk
//         before a job is verified, so the disk does not wait for it.
// Thread  one: the one that attached the disk.
// Errors  in DiskJob::result: kIo; kCorrupt (read: bytes are not what was written, pieces zeroed;
//         write: memory is not what the sums say, nothing was written).
class DiskEngine {
 public:
  struct Limits {
    uint32_t requests = 64;        // at the disk; at least 4
    uint64_t bytes = 16ULL << 20;  // of demand reads
  };

  DiskEngine(Disk& disk, const Limits& limits);

  void add(std::unique_ptr<DiskJob> job);
  // Submits what there is place for and takes what has completed. `block`: sleeps if nothing has,
  // until something does or the disk is woken.
  void step(bool block, std::vector<std::unique_ptr<DiskJob>>& finished);
  bool idle() const { return owned_.empty(); }

 private:
  enum Queue : size_t { kUrgent = 0, kReads = 1, kWrites = 2, kQueues = 3 };
  // A range of one job in a request.
  struct Part {
    DiskJob* job = nullptr;
    uint64_t first = 0;  // bytes of the job
    uint64_t bytes = 0;
  };
  struct Request : DiskRequest {
    std::vector<Part> parts;  // back to back on the disk
    Queue queue = kUrgent;
    uint64_t bytes = 0;  // of all parts
    uint32_t attempts = 0;
    bool alone = false;  // a part that failed in another request
  };

  static Queue queue_of(const DiskJob& job);
  bool place_for(Queue queue) const;
  void fill();
  void submit_from(Queue queue);
  bool prepare(DiskJob& job);
  void add_part(Request& request, DiskJob& job);
  void join_neighbours(Request& request);
  Request& take_request(Queue queue);
  void release(Request& request);
  void submit(Request& request);
  void take(Request& request);
  void take_bytes(Request& request);
  void take_error(Request& request);
  void part_failed(const Part& part, int64_t error);
  void settle(DiskJob& job);
  void verify(DiskJob& job);
  void finish(DiskJob& job);

  Disk& disk_;
  Limits limits_;
  std::vector<std::unique_ptr<Request>> requests_;
  std::vector<Request*> free_;
  std::deque<Request*> refused_;          // the disk had no place
  std::deque<Part> again_;                // parts that failed and get a request of their own
  std::deque<DiskJob*> queues_[kQueues];  // jobs with requests still to make
  uint64_t in_flight_[kQueues] = {};      // bytes
  std::vector<DiskJob*> arrived_;         // reads with all their bytes, not verified yet
  std::vector<std::unique_ptr<DiskJob>> owned_;
  std::vector<std::unique_ptr<DiskJob>> finished_;
  std::vector<DiskRequest*> completed_;
};

}  // namespace skv
