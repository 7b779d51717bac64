#include "tiers/nvme_store.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "ipc/types/check.h"
#include "tiers/nvme_store_impl.h"

namespace skv {
namespace {

// Bytes of accepted puts that may wait for a clean segment, in segments.
constexpr uint64_t kWaitingSegmentsMax = 2;
// What erase_ahead_bytes() keeps free, in segments: while one is filled, others are sealed, cleared
// and granted, each with a sync. At most a quarter of the store.
constexpr uint64_t kSpareSegments = 8;

Error invalid(const std::string& what) {
  return {ErrorCode::kInvalidArgument, "nvme store: " + what};
}

bool aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 4096 == 0; }

}  // namespace

NvmeStoreImpl::~NvmeStoreImpl() { shut_down(); }

Result<StoreOutcome> NvmeStoreImpl::put(BodyPut& put) {
  const BodyRecord& record = put.record;
  const size_t chunks = record.chunk_bytes.size();
  const uint64_t vectors = put.vectors ? put.vectors->size() : 0;
  if (chunks == 0 || chunks > kRecordChunksMax || record.chunk_sums.size() != chunks ||
      put.chunks.size() != chunks || record.vectors_bytes != vectors ||
      vectors > kRecordVectorsBytesMax) {
    return invalid("a record of " + std::to_string(chunks) + " chunks (1 to 256), " +
                   std::to_string(record.chunk_sums.size()) + " sums, " +
                   std::to_string(put.chunks.size()) + " buffers, vectors of " +
                   std::to_string(record.vectors_bytes) + " and " + std::to_string(vectors));
  }
  for (size_t i = 0; i < chunks; ++i) {
    if (record.chunk_bytes[i] == 0 || record.chunk_bytes[i] > log_.usable_bytes()) {
      return Error{record.chunk_bytes[i] == 0 ? ErrorCode::kInvalidArgument : ErrorCode::kTooLarge,
                   "nvme store: chunk " + std::to_string(i) + " has " +
                       std::to_string(record.chunk_bytes[i]) + " bytes, a segment takes " +
                       std::to_string(log_.usable_bytes()) + " (nvme.segment_bytes)"};
    }
    if (put.chunks[i].size() != storage_bytes(record.chunk_bytes[i]) ||
        !aligned(put.chunks[i].data())) {
      return invalid("buffer of chunk " + std::to_string(i) +
                     " is not at a multiple of 4 KiB, or not of its storage's size");
    }
  }
  const uint64_t bytes = record_bytes(record.chunk_bytes, vectors);
  if (bytes > log_.usable_bytes()) {
    return Error{ErrorCode::kTooLarge, "nvme store: a record of " + std::to_string(bytes) +
                                           " bytes does not fit a segment, which takes " +
                                           std::to_string(log_.usable_bytes()) +
                                           ": make nvme.segment_bytes larger"};
  }
  const std::optional<Digest> salt = meta_.find_salt(record.space_uid);
  if (!salt) {
    return invalid("space " + std::to_string(record.space_uid) + " has no salt yet");
  }
  if (stats_.read_only) {
    return StoreOutcome::kReadOnly;
  }
  if (index_.contains(record.key)) {
    return StoreOutcome::kExists;
  }
  if (const auto at = pending_.find(record.key); at != pending_.end()) {
    return at->second->cancelled ? StoreOutcome::kBusy : StoreOutcome::kExists;
  }
  if (transfers_ >= options_.transfers_max) {
    return StoreOutcome::kBusy;
  }
  if (!waiting_.empty()) {
    if (waiting_bytes_ + bytes > kWaitingSegmentsMax * log_.usable_bytes()) {
      return StoreOutcome::kBusy;
    }
  } else if (!log_.can_allocate(bytes, NvmeLog::kReserve) && !cleaning_ && !log_.freeing()) {
    const NvmeLog::Victim victim = log_.victim(log_.gain_unit());
    if (!victim.segment && !victim.busy) {
      return StoreOutcome::kFull;
    }
  }
  auto accepted = std::make_shared<Put>();
  accepted->key = record.key;
  accepted->put = std::move(put);
  accepted->salt_id = NvmeMeta::salt_id(*salt);
  accepted->sequence = next_sequence_++;
  accepted->bytes = bytes;
  put_sequences_.insert(accepted->sequence);
  pending_.emplace(accepted->key, accepted);
  pending_bytes_ += bytes;
  waiting_bytes_ += bytes;
  waiting_.push_back(std::move(accepted));
  ++transfers_;
  place_waiting();
  return StoreOutcome::kAccepted;
}

void NvmeStoreImpl::place_waiting() {
  while (!waiting_.empty()) {
    const PutRef put = waiting_.front();
    const bool given_up = put->cancelled || stats_.read_only || shutting_down_;
    if (!given_up) {
      const auto place = allocate(put->bytes, put->key, NvmeLog::kReserve);
      if (place) {
        waiting_.pop_front();
        waiting_bytes_ -= put->bytes;
        write_put(put, *place);
        continue;
      }
      if (cleaning_ || log_.freeing() || start_cleaning(log_.gain_unit()) ||
          log_.victim(log_.gain_unit()).busy) {
        return;
      }
    }
    waiting_.pop_front();
    waiting_bytes_ -= put->bytes;
    finish_put(put, put->cancelled ? Error{ErrorCode::kCancelled, "nvme store: erased meanwhile"}
                    : stats_.read_only ? Error{ErrorCode::kIo, "nvme store: read-only"}
                                       : Error{ErrorCode::kNoSpace, "nvme store: full"});
  }
  // Ahead of need: where it is cheap, half a segment or more for one segment's copying; as the next
  // segment would have to wait for it, where it brings anything.
  if (!cleaning_ && !shutting_down_ && log_.clean_count() <= NvmeLog::kReserve + 1) {
    start_cleaning(log_.clean_count() > NvmeLog::kReserve ? log_.usable_bytes() / 2
                                                          : log_.gain_unit());
  }
}

void NvmeStoreImpl::write_put(const PutRef& put, const NvmeLog::Place& place) {
  put->place = {place.offset, log_.at(place.segment).generation, next_record_number()};
  ++log_.at(place.segment).io;

  auto job = std::make_unique<DiskJob>();
  job->kind = DiskJob::Kind::kWrite;
  job->offset = place.offset;
  const BodyRecord& record = put->put.record;
  for (size_t i = 0; i < put->put.chunks.size(); ++i) {
    const std::span<const std::byte> chunk = put->put.chunks[i];
    // A write job only reads its pieces.
    job->pieces.emplace_back(const_cast<std::byte*>(chunk.data()), chunk.size());
    if (options_.verify_before_write) {
      job->checks.push_back({chunk.first(record.chunk_bytes[i]), record.chunk_sums[i]});
    }
  }
  job->prepare = [put, uuid = meta_.uuid()](DiskJob& write) {
    BodyRecord& body = put->put.record;
    const uint64_t header = nvme::header_bytes(body.chunk_bytes.size());
    write.own = AlignedBuffer(header + body.vectors_bytes);
    if (body.vectors_bytes > 0) {
      std::memcpy(write.own.data() + header, put->put.vectors->data(), body.vectors_bytes);
    }
    body.vectors_sum = checksum(write.own.span().subspan(header, body.vectors_bytes));
    nvme::encode_record(body, put->salt_id, {0, uuid, 0}, put->place,
                        write.own.span().first(header));
    write.pieces.insert(write.pieces.begin(), write.own.span());
  };
  job->finished = [this, put](DiskJob& write) { put_written(put, write); };
  submit_into(place.segment, std::move(job));
}

void NvmeStoreImpl::put_written(const PutRef& put, const DiskJob& job) {
  const uint32_t segment = log_.segment_of(put->place.offset);
  --log_.at(segment).io;
  stats_.written_bytes += job.bytes_done;
  if (!job.result.ok()) {
    if (job.result.error().code == ErrorCode::kCorrupt) {
      log_.at(segment).suspect = true;  // not the disk's fault: a hole in the log, no more
    } else {
      write_failed(segment);
    }
    finish_put(put, job.result);
  } else if (put->cancelled) {
    finish_put(put, Error{ErrorCode::kCancelled, "nvme store: erased meanwhile"});
  } else {
    write_failures_ = 0;
    log_.set_live(put->place.offset);
    index_.emplace(put->key, Entry{std::make_shared<const BodyRecord>(std::move(put->put.record)),
                                   put->place, put->bytes});
    finish_put(put, {});
  }
  review(segment);
}

void NvmeStoreImpl::finish_put(const PutRef& put, Result<void> result) {
  pending_.erase(put->key);
  pending_bytes_ -= put->bytes;
  put_sequences_.erase(put->sequence);
  end_transfer([done = std::move(put->put.done), result = std::move(result)] { done(result); });
  run_flushes();
}

std::unique_ptr<DiskJob> NvmeStoreImpl::read_job(const Entry& entry,
                                                 uint64_t from_record,
                                                 bool urgent) {
  auto job = std::make_unique<DiskJob>();
  job->kind = DiskJob::Kind::kRead;
  job->urgent = urgent;
  job->offset = entry.place.offset + from_record;
  ++log_.at(log_.segment_of(entry.place.offset)).readers;
  return job;
}

Result<BodyReadOutcome> NvmeStoreImpl::read(BodyRead& read) {
  const auto at = index_.find(read.key);
  if (at == index_.end()) {
    return BodyReadOutcome::kUnknown;
  }
  const BodyRecord& record = *at->second.record;
  const size_t count = record.chunk_bytes.size();
  if (read.chunks.empty() || read.first_chunk > count ||
      read.chunks.size() > count - read.first_chunk) {
    return invalid("chunks [" + std::to_string(read.first_chunk) + ", +" +
                   std::to_string(read.chunks.size()) + ") of a record of " +
                   std::to_string(count));
  }
  for (size_t i = 0; i < read.chunks.size(); ++i) {
    if (read.chunks[i].size() != storage_bytes(record.chunk_bytes[read.first_chunk + i]) ||
        !aligned(read.chunks[i].data())) {
      return invalid("buffer of chunk " + std::to_string(read.first_chunk + i) +
                     " is not at a multiple of 4 KiB, or not of its storage's size");
    }
  }
  if (transfers_ >= options_.transfers_max) {
    return BodyReadOutcome::kBusy;
  }
  std::unique_ptr<DiskJob> job =
      read_job(at->second, nvme::chunk_offset(record, read.first_chunk), read.urgent);
  for (size_t i = 0; i < read.chunks.size(); ++i) {
    const size_t chunk = read.first_chunk + i;
    job->pieces.push_back(read.chunks[i]);
    job->checks.push_back(
        {std::span<const std::byte>(read.chunks[i]).first(record.chunk_bytes[chunk]),
         record.chunk_sums[chunk]});
  }
  job->finished = [this, key = read.key, place = at->second.place,
                   done = std::move(read.done)](DiskJob& ended) {
    end_transfer([done, result = ended.result] { done(result); });
    read_ended(key, place, ended);
  };
  ++transfers_;
  submit(std::move(job));
  return BodyReadOutcome::kAccepted;
}

BodyReadOutcome NvmeStoreImpl::read_vectors(const Digest& key,
                                            std::function<void(Result<VectorsBlob>)> done) {
  const auto at = index_.find(key);
  if (at == index_.end()) {
    return BodyReadOutcome::kUnknown;
  }
  if (transfers_ >= options_.transfers_max) {
    return BodyReadOutcome::kBusy;
  }
  const BodyRecordRef record = at->second.record;
  std::unique_ptr<DiskJob> job =
      read_job(at->second, nvme::vectors_offset(*record), /*urgent=*/true);
  auto blob = std::make_shared<VectorsBlob>();
  job->prepare = [record](DiskJob& read) {
    read.own = AlignedBuffer(record->vectors_bytes);
    read.pieces.push_back(read.own.span());
    read.checks.push_back({read.own.span().first(record->vectors_bytes), record->vectors_sum});
  };
  job->complete = [record, blob](DiskJob& read) {
    *blob = std::make_shared<const std::vector<std::byte>>(read.own.data(),
                                                           read.own.data() + record->vectors_bytes);
  };
  job->finished = [this, key, place = at->second.place, blob,
                   done = std::move(done)](DiskJob& ended) {
    end_transfer([done, blob, result = ended.result] {
      done(result.ok() ? Result<VectorsBlob>(std::move(*blob)) : result.error());
    });
    read_ended(key, place, ended);
  };
  ++transfers_;
  submit(std::move(job));
  return BodyReadOutcome::kAccepted;
}

void NvmeStoreImpl::read_ended(const Digest& key, const nvme::Place& place, const DiskJob& job) {
  const uint32_t segment = log_.segment_of(place.offset);
  --log_.at(segment).readers;
  stats_.read_bytes += job.bytes_done;
  if (!job.result.ok() && job.result.error().code == ErrorCode::kCorrupt) {
    const auto at = index_.find(key);
    if (at != index_.end() && at->second.place.offset == place.offset) {
      ++stats_.corrupt_records;
      drop_record(key);
    }
  }
  review(segment);
}

void NvmeStoreImpl::drop_record(const Digest& key) {
  const auto at = index_.find(key);
  const uint64_t offset = at->second.place.offset;
  index_.erase(at);
  log_.kill(offset);
  review(log_.segment_of(offset));
}

void NvmeStoreImpl::erase(const Digest& key) {
  if (const auto at = pending_.find(key); at != pending_.end()) {
    at->second->cancelled = true;
    place_waiting();
  } else if (index_.contains(key)) {
    drop_record(key);
    place_waiting();
  }
}

uint64_t NvmeStoreImpl::erase_ahead_bytes() const {
  const uint64_t spare = std::min<uint64_t>(kSpareSegments, log_.count() / 4);
  const uint64_t taken = log_.used_bytes() + pending_bytes_ + spare * log_.usable_bytes();
  return taken - std::min(taken, log_.capacity_bytes());
}

void NvmeStoreImpl::flush(BodyDone done) {
  flushes_.push_back({next_sequence_++, std::move(done)});
  run_flushes();
}

void NvmeStoreImpl::run_flushes() {
  while (!flushes_.empty() &&
         (put_sequences_.empty() || *put_sequences_.begin() > flushes_.front().sequence)) {
    request_sync([this, done = std::move(flushes_.front().done)](const Result<void>& result) {
      later([done, result] { done(result); });
    });
    flushes_.pop_front();
  }
}

BodyRecordRef NvmeStoreImpl::find(const Digest& key) const {
  const auto at = index_.find(key);
  return at == index_.end() ? nullptr : at->second.record;
}

std::vector<BodyRecordRef> NvmeStoreImpl::records() const {
  std::vector<BodyRecordRef> all;
  all.reserve(index_.size());
  for (const auto& [key, entry] : index_) {
    all.push_back(entry.record);
  }
  std::sort(all.begin(), all.end(),
            [](const BodyRecordRef& a, const BodyRecordRef& b) { return a->key < b->key; });
  return all;
}

void NvmeStoreImpl::submit(std::unique_ptr<DiskJob> job) {
  ++jobs_;
  runner_->submit(std::move(job));
}

void NvmeStoreImpl::take(std::unique_ptr<DiskJob> job) {
  --jobs_;
  stats_.io_errors += job->io_errors;
  if (job->finished) {
    job->finished(*job);
  }
}

void NvmeStoreImpl::later(std::function<void()> done) {
  ready_.push_back(std::move(done));
  runner_->notify();
}

void NvmeStoreImpl::end_transfer(std::function<void()> done) {
  later([this, ended = std::move(done)] {
    --transfers_;
    ended();
  });
}

void NvmeStoreImpl::drain() {
  runner_->collect(collected_);
  std::vector<std::unique_ptr<DiskJob>> jobs;
  jobs.swap(collected_);
  for (std::unique_ptr<DiskJob>& job : jobs) {
    take(std::move(job));
  }
  place_waiting();
  // What these start (a put from inside a `done`) is for the next drain.
  std::vector<std::function<void()>> due;
  due.swap(ready_);
  for (std::function<void()>& done : due) {
    done();
  }
}

NvmeStore::Stats NvmeStoreImpl::stats() const {
  Stats stats = stats_;
  stats.capacity_bytes = log_.capacity_bytes();
  stats.live_bytes = log_.live_bytes();
  stats.record_count = index_.size();
  stats.clean_segments = log_.clean_count();
  stats.purges = meta_.purge_count();
  return stats;
}

void NvmeStoreImpl::collect_and_take() {
  runner_->collect_wait(collected_);
  std::vector<std::unique_ptr<DiskJob>> jobs;
  jobs.swap(collected_);
  for (std::unique_ptr<DiskJob>& job : jobs) {
    take(std::move(job));
  }
}

void NvmeStoreImpl::shut_down() {
  shutting_down_ = true;
  place_waiting();  // gives up what has no place yet
  const auto settle = [this] {
    while (jobs_ > 0) {
      collect_and_take();
    }
  };
  settle();
  if (const std::optional<uint32_t> open = log_.open_segment(); open && !stats_.read_only) {
    log_.close_open();
    review(*open);  // seals it: the next open need not verify it
    settle();
    // Nor look for records in the one that was granted ahead.
    if (const auto next = log_.next_clean(); next && log_.at(*next).generation != 0) {
      auto job = std::make_unique<DiskJob>();
      job->kind = DiskJob::Kind::kWrite;
      job->offset = log_.start_of(*next);
      job->own = AlignedBuffer(nvme::kBlockBytes);
      job->pieces.push_back(job->own.span());
      submit(std::move(job));
      settle();
    }
    request_sync([](const Result<void>&) {});
    settle();
  }
  ready_.clear();
}

}  // namespace skv
