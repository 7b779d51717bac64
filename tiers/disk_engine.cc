#include "tiers/disk_engine.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "ipc/types/check.h"

namespace skv {
namespace {

constexpr uint64_t kBlock = 4096;
constexpr uint64_t kRequestBytesMax = 1u << 20;  // keeps the tail of reads behind a write short
constexpr size_t kNeighbourLooks = 16;           // jobs of a queue that are looked at to join one
constexpr uint32_t kAttemptsMax = 8;             // of one request, without progress

const char* name_of(DiskJob::Kind kind) {
  switch (kind) {
    case DiskJob::Kind::kRead:
      return "read";
    case DiskJob::Kind::kWrite:
      return "write";
    case DiskJob::Kind::kSync:
      return "sync";
  }
  return "?";
}

bool checks_hold(const DiskJob& job) {
  return std::all_of(job.checks.begin(), job.checks.end(), [](const DiskJob::Check& check) {
    return checksum(check.bytes) == check.sum;
  });
}

// The memory of bytes [first, first + bytes) of the job's pieces, behind what is in `out`; as much
// of it as kBuffersMax buffers take. Returns the bytes.
uint64_t append_slice(const DiskJob& job, uint64_t first, uint64_t bytes, std::vector<iovec>& out) {
  uint64_t taken = 0;
  for (const std::span<std::byte>& piece : job.pieces) {
    if (first >= piece.size()) {
      first -= piece.size();
      continue;
    }
    if (taken == bytes || out.size() == DiskRequest::kBuffersMax) {
      break;
    }
    const uint64_t take = std::min<uint64_t>(bytes - taken, piece.size() - first);
    out.push_back({piece.data() + first, take});
    first = 0;
    taken += take;
  }
  return taken;
}

}  // namespace

DiskEngine::DiskEngine(Disk& disk, const Limits& limits) : disk_(disk), limits_(limits) {
  SKV_CHECK(limits.requests >= 4 && limits.bytes >= kRequestBytesMax, "queue depth");
  for (uint32_t i = 0; i < limits.requests; ++i) {
    requests_.push_back(std::make_unique<Request>());
    free_.push_back(requests_.back().get());
  }
}

DiskEngine::Queue DiskEngine::queue_of(const DiskJob& job) {
  if (job.kind != DiskJob::Kind::kRead) {
    return kWrites;
  }
  return job.urgent ? kUrgent : kReads;
}

void DiskEngine::add(std::unique_ptr<DiskJob> job) {
  job->owned_at_ = owned_.size();
  queues_[queue_of(*job)].push_back(job.get());
  owned_.push_back(std::move(job));
}

void DiskEngine::step(bool block, std::vector<std::unique_ptr<DiskJob>>& finished) {
  fill();
  completed_.clear();
  disk_.wait(block && finished_.empty() && arrived_.empty(), completed_);
  for (DiskRequest* const request : completed_) {
    take(*static_cast<Request*>(request));
  }
  if (!arrived_.empty()) {
    fill();
    disk_.flush();
    for (DiskJob* const job : std::exchange(arrived_, {})) {
      verify(*job);
    }
  }
  std::move(finished_.begin(), finished_.end(), std::back_inserter(finished));
  finished_.clear();
}

// ---- requests out -------------------------------------------------------------------------------

bool DiskEngine::place_for(Queue queue) const {
  if (queue == kUrgent) {
    return !free_.empty() && in_flight_[kUrgent] < limits_.bytes;
  }
  if (free_.size() <= limits_.requests / 4) {
    return false;
  }
  const bool demand = in_flight_[kUrgent] > 0 || !queues_[kUrgent].empty();
  const bool ahead = in_flight_[kReads] > 0 || !queues_[kReads].empty();
  uint64_t limit = limits_.bytes / 4 * 3;
  if (queue == kReads) {
    limit = demand ? limits_.bytes / 4 : limit;
  } else {
    limit = demand ? limits_.bytes / 8 : ahead ? limits_.bytes / 2 : limit;
  }
  return in_flight_[kReads] + in_flight_[kWrites] < limit;
}

void DiskEngine::fill() {
  while (!refused_.empty()) {
    if (!disk_.submit(*refused_.front())) {
      return;
    }
    refused_.pop_front();
  }
  while (!again_.empty() && !free_.empty() && refused_.empty()) {
    const Part part = again_.front();
    again_.pop_front();
    if (part.job->failed_) {
      --part.job->in_flight_;
      settle(*part.job);
      continue;
    }
    Request& request = take_request(queue_of(*part.job));
    request.alone = true;
    request.parts.push_back(part);
    submit(request);
  }
  submit_from(kUrgent);
  submit_from(kReads);
  submit_from(kWrites);
}

void DiskEngine::submit_from(Queue queue) {
  std::deque<DiskJob*>& jobs = queues_[queue];
  while (!jobs.empty() && refused_.empty() && place_for(queue)) {
    DiskJob& job = *jobs.front();
    const bool sync = job.kind == DiskJob::Kind::kSync;
    if (!prepare(job) || (!sync && job.next_ == job.total_)) {
      jobs.pop_front();
      settle(job);
      continue;
    }
    Request& request = take_request(queue);
    request.kind = static_cast<DiskRequest::Kind>(job.kind);
    if (sync) {
      ++job.in_flight_;
      request.parts.push_back({&job, 0, 0});
      jobs.pop_front();
    } else {
      add_part(request, job);
      if (job.next_ == job.total_) {
        jobs.pop_front();
        join_neighbours(request);
      }
    }
    submit(request);
  }
}

// False: it failed, there is nothing to write.
bool DiskEngine::prepare(DiskJob& job) {
  if (job.prepared_) {
    return !job.failed_;
  }
  job.prepared_ = true;
  if (job.prepare || (job.kind == DiskJob::Kind::kWrite && !job.checks.empty())) {
    disk_.flush();  // copies and sums take a while: the disk need not wait for them
  }
  if (job.prepare) {
    job.prepare(job);
  }
  for (const std::span<std::byte>& piece : job.pieces) {
    job.total_ += piece.size();
  }
  if (job.kind == DiskJob::Kind::kWrite && !checks_hold(job)) {
    job.failed_ = true;
    job.result = Error{ErrorCode::kCorrupt,
                       "write at " + std::to_string(job.offset) +
                           ": the memory is not what its checksums say; nothing was written"};
  }
  return !job.failed_;
}

void DiskEngine::add_part(Request& request, DiskJob& job) {
  const uint64_t bytes =
      append_slice(job, job.next_, kRequestBytesMax - request.bytes, request.buffers);
  request.parts.push_back({&job, job.next_, bytes});
  request.bytes += bytes;
  job.next_ += bytes;
  ++job.in_flight_;
}

// Goes on behind the last part with jobs of the same queue that begin there.
void DiskEngine::join_neighbours(Request& request) {
  std::deque<DiskJob*>& jobs = queues_[request.queue];
  for (size_t looked = 0; looked < std::min(jobs.size(), kNeighbourLooks);) {
    const Part& last = request.parts.back();
    DiskJob& job = *jobs[looked];
    const bool follows = static_cast<DiskRequest::Kind>(job.kind) == request.kind &&
                         job.next_ == 0 && job.offset == last.job->offset + last.first + last.bytes;
    if (!follows) {
      ++looked;
      continue;
    }
    if (!prepare(job) || job.total_ == 0) {
      jobs.erase(jobs.begin() + static_cast<std::ptrdiff_t>(looked));
      settle(job);
      continue;
    }
    if (request.buffers.size() == DiskRequest::kBuffersMax || request.bytes == kRequestBytesMax) {
      return;
    }
    add_part(request, job);
    if (job.next_ < job.total_) {
      return;  // the request is full
    }
    jobs.erase(jobs.begin() + static_cast<std::ptrdiff_t>(looked));
    looked = 0;
  }
}

DiskEngine::Request& DiskEngine::take_request(Queue queue) {
  Request& request = *free_.back();
  free_.pop_back();
  request.owner = this;
  request.queue = queue;
  request.parts.clear();
  request.buffers.clear();
  request.bytes = 0;
  request.attempts = 0;
  request.alone = false;
  return request;
}

void DiskEngine::submit(Request& request) {
  const Part& first = request.parts.front();
  request.kind = static_cast<DiskRequest::Kind>(first.job->kind);
  if (request.kind != DiskRequest::Kind::kSync) {
    request.offset = first.job->offset + first.first;
    request.buffers.clear();
    request.bytes = 0;
    for (const Part& part : request.parts) {
      append_slice(*part.job, part.first, part.bytes, request.buffers);
      request.bytes += part.bytes;
    }
  }
  in_flight_[request.queue] += request.bytes;
  if (!refused_.empty() || !disk_.submit(request)) {
    refused_.push_back(&request);
  }
}

void DiskEngine::release(Request& request) { free_.push_back(&request); }

// ---- requests back ------------------------------------------------------------------------------

void DiskEngine::take(Request& request) {
  in_flight_[request.queue] -= request.bytes;
  if (request.result < 0) {
    take_error(request);
  } else if (request.kind == DiskRequest::Kind::kSync) {
    DiskJob& job = *request.parts.front().job;
    --job.in_flight_;
    release(request);
    settle(job);
  } else {
    take_bytes(request);
  }
}

void DiskEngine::take_bytes(Request& request) {
  const auto done = std::min<uint64_t>(static_cast<uint64_t>(request.result), request.bytes);
  uint64_t whole = done == request.bytes ? done : done / kBlock * kBlock;
  request.attempts = whole > 0 ? 0 : request.attempts + 1;
  std::vector<Part> rest;
  for (Part& part : request.parts) {
    const uint64_t took = std::min(whole, part.bytes);
    whole -= took;
    part.job->bytes_done += took;
    part.first += took;
    part.bytes -= took;
    if (part.bytes > 0) {
      rest.push_back(part);
    } else {
      --part.job->in_flight_;
      settle(*part.job);
    }
  }
  request.parts.swap(rest);
  if (request.parts.empty()) {
    release(request);
  } else if (request.attempts < kAttemptsMax) {
    submit(request);
  } else {
    for (const Part& part : request.parts) {
      part_failed(part, EIO);
    }
    release(request);
  }
}

void DiskEngine::take_error(Request& request) {
  const bool again = request.result == -EINTR || request.result == -EAGAIN;
  if (again && ++request.attempts < kAttemptsMax) {
    submit(request);
    return;
  }
  if (!again) {
    ++request.parts.front().job->io_errors;
  }
  // A sync is never repeated: after a failed one the system may have dropped what it could not
  // write, and a second one would say all is well.
  const bool retry =
      !request.alone && (request.kind == DiskRequest::Kind::kRead || request.parts.size() > 1);
  for (const Part& part : request.parts) {
    if (retry) {
      again_.push_back(part);
    } else {
      part_failed(part, -request.result);
    }
  }
  release(request);
}

void DiskEngine::part_failed(const Part& part, int64_t error) {
  DiskJob& job = *part.job;
  if (!job.failed_) {
    job.failed_ = true;
    job.result = Error{ErrorCode::kIo, std::string(name_of(job.kind)) + " at " +
                                           std::to_string(job.offset + part.first) + ": " +
                                           std::strerror(static_cast<int>(error))};
    // No more requests of it.
    std::erase(queues_[queue_of(job)], &job);
  }
  --job.in_flight_;
  settle(job);
}

// ---- the end of a job ---------------------------------------------------------------------------

void DiskEngine::settle(DiskJob& job) {
  const bool sync = job.kind == DiskJob::Kind::kSync;
  if (job.in_flight_ > 0 || (!job.failed_ && !sync && job.next_ < job.total_)) {
    return;
  }
  if (job.kind == DiskJob::Kind::kRead) {
    arrived_.push_back(&job);
  } else {
    finish(job);
  }
}

void DiskEngine::verify(DiskJob& job) {
  if (!job.failed_ && !checks_hold(job)) {
    if (!job.read_again_) {
      // Once more: an error on the way is not one on the medium.
      job.read_again_ = true;
      job.next_ = 0;
      queues_[queue_of(job)].push_front(&job);
      return;
    }
    job.failed_ = true;
    job.result = Error{ErrorCode::kCorrupt, "read at " + std::to_string(job.offset) +
                                                ": the bytes are not the ones that were written"};
  }
  if (job.failed_) {
    // What came may be another's: nobody sees it.
    for (const std::span<std::byte>& piece : job.pieces) {
      std::memset(piece.data(), 0, piece.size());
    }
  } else if (job.complete) {
    job.complete(job);
  }
  finish(job);
}

void DiskEngine::finish(DiskJob& job) {
  const size_t at = job.owned_at_;
  finished_.push_back(std::move(owned_[at]));
  if (at + 1 < owned_.size()) {
    owned_[at] = std::move(owned_.back());
    owned_[at]->owned_at_ = at;
  }
  owned_.pop_back();
}

}  // namespace skv
