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

// The memory of bytes [first, first + bytes) of the job's pieces.
void slice(const DiskJob& job, uint64_t first, uint64_t bytes, std::vector<iovec>& out) {
  out.clear();
  for (const std::span<std::byte>& piece : job.pieces) {
    if (first >= piece.size()) {
      first -= piece.size();
      continue;
    }
    const uint64_t take = std::min<uint64_t>(bytes, piece.size() - first);
    out.push_back({piece.data() + first, take});
    first = 0;
    bytes -= take;
    if (bytes == 0) {
      return;
    }
  }
}

// How much of the job from `first` on fits one request.
uint64_t request_bytes(const DiskJob& job, uint64_t first) {
  uint64_t bytes = 0;
  size_t buffers = 0;
  for (const std::span<std::byte>& piece : job.pieces) {
    if (first >= piece.size()) {
      first -= piece.size();
      continue;
    }
    bytes += piece.size() - first;
    first = 0;
    if (++buffers == DiskRequest::kBuffersMax || bytes >= kRequestBytesMax) {
      break;
    }
  }
  return std::min(bytes, kRequestBytesMax);
}

}  // namespace

DiskEngine::DiskEngine(Disk& disk, uint32_t depth) : disk_(disk), depth_(depth) {
  SKV_CHECK(depth >= 4, "queue depth");
  for (uint32_t i = 0; i < depth; ++i) {
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
  queues_[queue_of(*job)].push_back(job.get());
  owned_.push_back(std::move(job));
  ++jobs_;
}

void DiskEngine::step(bool block, std::vector<std::unique_ptr<DiskJob>>& finished) {
  const uint32_t background = depth_ - depth_ / 4;
  submit_from(kUrgent, depth_);
  submit_from(kReads, background);
  submit_from(kWrites, background);
  completed_.clear();
  disk_.wait(block && finished_.empty(), completed_);
  for (DiskRequest* const request : completed_) {
    take(*static_cast<Request*>(request));
  }
  std::move(finished_.begin(), finished_.end(), std::back_inserter(finished));
  finished_.clear();
}

void DiskEngine::submit_from(Queue queue, uint32_t limit) {
  std::deque<DiskJob*>& jobs = queues_[queue];
  while (!jobs.empty() && depth_ - free_.size() < limit) {
    DiskJob& job = *jobs.front();
    if (!job.prepared_) {
      job.prepared_ = true;
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
    }
    const bool sync = job.kind == DiskJob::Kind::kSync;
    if (job.failed_ || (!sync && job.next_ == job.total_)) {
      jobs.pop_front();
      settle(job);
      continue;
    }
    Request& request = *free_.back();
    free_.pop_back();
    request.kind = static_cast<DiskRequest::Kind>(job.kind);
    request.owner = this;
    request.job = &job;
    request.first = job.next_;
    request.bytes = sync ? 0 : request_bytes(job, job.next_);
    request.attempts = 0;
    job.next_ += request.bytes;
    ++job.in_flight_;
    if (sync || job.next_ == job.total_) {
      jobs.pop_front();
    }
    submit(request);
  }
}

void DiskEngine::submit(Request& request) {
  if (request.kind != DiskRequest::Kind::kSync) {
    request.offset = request.job->offset + request.first;
    slice(*request.job, request.first, request.bytes, request.buffers);
  }
  disk_.submit(request);
}

void DiskEngine::take(Request& request) {
  DiskJob& job = *request.job;
  if (request.result < 0) {
    const bool again = request.result == -EINTR || request.result == -EAGAIN;
    const bool retry = request.kind == DiskRequest::Kind::kRead && request.attempts == 0;
    job.io_errors += again ? 0 : 1;
    // A sync is never repeated: after a failed one the system may have dropped what it could not
    // write, and a second one would say all is well.
    if (!job.failed_ && (again || retry) && ++request.attempts < kAttemptsMax) {
      submit(request);
      return;
    }
    request_failed(request, -request.result);
    return;
  }
  if (request.kind != DiskRequest::Kind::kSync) {
    const auto done = std::min<uint64_t>(static_cast<uint64_t>(request.result), request.bytes);
    const uint64_t whole = done == request.bytes ? done : done / kBlock * kBlock;
    job.bytes_done += whole;
    request.first += whole;
    request.bytes -= whole;
    if (request.bytes > 0) {
      request.attempts = whole > 0 ? 0 : request.attempts + 1;
      if (job.failed_ || request.attempts >= kAttemptsMax) {
        request_failed(request, EIO);
      } else {
        submit(request);
      }
      return;
    }
  }
  --job.in_flight_;
  free_.push_back(&request);
  settle(job);
}

void DiskEngine::request_failed(Request& request, int64_t error) {
  DiskJob& job = *request.job;
  if (!job.failed_) {
    job.failed_ = true;
    job.result = Error{ErrorCode::kIo, std::string(name_of(job.kind)) + " at " +
                                           std::to_string(job.offset + request.first) + ": " +
                                           std::strerror(static_cast<int>(error))};
    // No more requests of it.
    std::erase(queues_[queue_of(job)], &job);
  }
  --job.in_flight_;
  free_.push_back(&request);
  settle(job);
}

void DiskEngine::settle(DiskJob& job) {
  const bool sync = job.kind == DiskJob::Kind::kSync;
  if (job.in_flight_ > 0 || (!job.failed_ && !sync && job.next_ < job.total_)) {
    return;
  }
  if (job.kind == DiskJob::Kind::kRead) {
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
  }
  finish(job);
}

void DiskEngine::finish(DiskJob& job) {
  const auto at = std::find_if(owned_.begin(), owned_.end(),
                               [&job](const auto& owned) { return owned.get() == &job; });
  finished_.push_back(std::move(*at));
  *at = std::move(owned_.back());
  owned_.pop_back();
  --jobs_;
}

}  // namespace skv
