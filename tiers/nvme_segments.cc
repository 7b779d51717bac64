#include <spdlog/spdlog.h>

#include <cstring>
#include <string>
#include <utility>

#include "ipc/types/check.h"
#include "tiers/nvme_store_impl.h"

// The segments' side of NvmeStoreImpl: syncs, grants, seals, and cleaning.
namespace skv {
namespace {

constexpr uint32_t kWriteFailuresMax = 8;

}  // namespace

// One sync at a time; what is asked for while one runs shares the next, because only a sync that
// began later covers it.
void NvmeStoreImpl::request_sync(SyncDone done) {
  sync_waiting_.push_back(std::move(done));
  start_sync();
}

void NvmeStoreImpl::start_sync() {
  if (syncing_ || sync_waiting_.empty()) {
    return;
  }
  syncing_ = true;
  auto job = std::make_unique<DiskJob>();
  job->kind = DiskJob::Kind::kSync;
  job->finished = [this, waiting = std::move(sync_waiting_)](DiskJob& sync) {
    syncing_ = false;
    // After a failed sync nothing is known of what was written before it, and a later one that
    // succeeds would say nothing about it either.
    Result<void> result = sync.result;
    if (!result.ok()) {
      set_read_only(result.error().message);
    } else if (stats_.read_only) {
      result = Error{ErrorCode::kIo, "nvme store: read-only after a failed write"};
    }
    for (const SyncDone& done : waiting) {
      done(result);
    }
    start_sync();
  };
  sync_waiting_.clear();
  submit(std::move(job));
}

void NvmeStoreImpl::set_read_only(const std::string& why) {
  if (!stats_.read_only) {
    stats_.read_only = true;
    spdlog::error("nvme store: no more writes until the next start: {}", why);
  }
}

std::optional<NvmeLog::Place> NvmeStoreImpl::allocate(uint64_t bytes,
                                                      const Digest& key,
                                                      uint32_t reserve) {
  const std::optional<uint32_t> before = log_.open_segment();
  const std::optional<NvmeLog::Place> place = log_.allocate(bytes, key, reserve);
  if (place && place->opened) {
    open_segment(place->segment);
    if (before) {
      review(*before);
    }
  }
  return place;
}

void NvmeStoreImpl::open_segment(uint32_t index) {
  NvmeLog::Segment& segment = log_.at(index);
  segment.generation = (meta_.open_count() << 32) + ++generation_count_;
  ++segment.io;
  const uint64_t offset = log_.start_of(index);
  auto job = std::make_unique<DiskJob>();
  job->kind = DiskJob::Kind::kWrite;
  job->offset = offset;
  job->own = AlignedBuffer(nvme::kBlockBytes);
  nvme::begin_block(job->own.span(), {nvme::kSegmentMagic, meta_.uuid(), offset});
  nvme::SegmentHeader header{};
  std::memcpy(&header, job->own.data(), sizeof header);
  header.segment_index = index;
  header.generation = segment.generation;
  std::memcpy(job->own.data(), &header, sizeof header);
  nvme::seal_block(job->own.span());
  job->pieces.push_back(job->own.span());
  job->finished = [this, index](DiskJob& written) {
    if (!written.result.ok()) {
      granted(index, written.result);
      return;
    }
    request_sync([this, index](const Result<void>& result) { granted(index, result); });
  };
  submit(std::move(job));
}

void NvmeStoreImpl::submit_into(uint32_t segment, std::unique_ptr<DiskJob> job) {
  if (log_.at(segment).granted) {
    submit(std::move(job));
  } else if (log_.at(segment).refused) {
    // Cleaning had taken its places before the grant failed.
    job->result = Error{ErrorCode::kIo, "nvme store: the segment's header could not be written"};
    job->finished(*job);
  } else {
    ungranted_[segment].push_back(std::move(job));
  }
}

void NvmeStoreImpl::granted(uint32_t index, const Result<void>& result) {
  NvmeLog::Segment& segment = log_.at(index);
  --segment.io;
  segment.granted = result.ok();
  segment.refused = !result.ok();
  if (!result.ok()) {
    write_failed(index);
  }
  std::vector<std::unique_ptr<DiskJob>> held;
  if (const auto at = ungranted_.find(index); at != ungranted_.end()) {
    held = std::move(at->second);
    ungranted_.erase(at);
  }
  for (std::unique_ptr<DiskJob>& job : held) {
    if (result.ok()) {
      submit(std::move(job));
    } else {
      job->result = result;
      job->finished(*job);
    }
  }
  review(index);
}

void NvmeStoreImpl::write_failed(uint32_t index) {
  log_.at(index).suspect = true;
  if (log_.open_segment() == index) {
    log_.close_open();
  }
  if (++write_failures_ >= kWriteFailuresMax) {
    set_read_only(std::to_string(write_failures_) + " writes in a row failed");
  }
}

// Called whenever something ended in a segment: seals it, or gives it back when nothing is live.
void NvmeStoreImpl::review(uint32_t index) {
  NvmeLog::Segment& segment = log_.at(index);
  if (segment.state != NvmeLog::State::kClosed || segment.io > 0) {
    return;
  }
  if (segment.live_bytes > 0) {
    if (!segment.sealed && !segment.suspect && segment.granted && !stats_.read_only) {
      seal(index);
    }
    return;
  }
  if (stats_.read_only) {
    return;
  }
  if (!segment.needs_sync) {
    if (segment.readers == 0) {
      log_.make_clean(index);
    }
    return;
  }
  // The copies of what was here must be durable before its header goes.
  segment.state = NvmeLog::State::kFreeing;
  ++segment.io;
  request_sync([this, index](const Result<void>& result) {
    NvmeLog::Segment& freed = log_.at(index);
    --freed.io;
    freed.state = NvmeLog::State::kClosed;
    freed.needs_sync = !result.ok();
    review(index);
  });
}

void NvmeStoreImpl::seal(uint32_t index) {
  ++log_.at(index).io;
  const auto ended = [this, index](bool sealed) {
    NvmeLog::Segment& segment = log_.at(index);
    --segment.io;
    segment.sealed = sealed;
    segment.suspect = !sealed;  // left as it is: verified at the next open
    review(index);
  };
  request_sync([this, index, ended](const Result<void>& result) {
    if (!result.ok()) {
      ended(false);
      return;
    }
    const uint64_t offset = log_.seal_offset(index);
    auto job = std::make_unique<DiskJob>();
    job->kind = DiskJob::Kind::kWrite;
    job->offset = offset;
    job->own = AlignedBuffer(nvme::kBlockBytes);
    nvme::begin_block(job->own.span(), {nvme::kSealMagic, meta_.uuid(), offset});
    nvme::SegmentSeal seal{};
    std::memcpy(&seal, job->own.data(), sizeof seal);
    seal.segment_index = index;
    seal.generation = log_.at(index).generation;
    seal.end_offset = log_.at(index).next - log_.start_of(index);
    std::memcpy(job->own.data(), &seal, sizeof seal);
    nvme::seal_block(job->own.span());
    job->pieces.push_back(job->own.span());
    job->finished = [ended](DiskJob& written) { ended(written.result.ok()); };
    submit(std::move(job));
  });
}

// Copies what is live in the best victim to the log's end, one record at a time. All places are
// taken now, so that the arithmetic of NvmeLog::victim() holds whatever is put meanwhile.
bool NvmeStoreImpl::start_cleaning(uint64_t gain_min) {
  if (cleaning_ || stats_.read_only || shutting_down_) {
    return false;
  }
  const std::optional<uint32_t> victim = log_.victim(gain_min).segment;
  if (!victim) {
    return false;
  }
  cleaning_ = Cleaning{};
  cleaning_->victim = *victim;
  ++log_.at(*victim).io;
  const std::vector<NvmeLog::Slot> slots = log_.at(*victim).slots;
  for (const NvmeLog::Slot& slot : slots) {
    if (!slot.live) {
      continue;
    }
    const auto place = allocate(slot.bytes, slot.key, /*reserve=*/0);
    SKV_CHECK(place.has_value(), "cleaning was started without room for it");
    ++log_.at(place->segment).io;
    cleaning_->moves.push_back({slot.key, slot.offset, place->offset, slot.bytes});
  }
  clean_next();
  return true;
}

void NvmeStoreImpl::clean_next() {
  while (cleaning_->next < cleaning_->moves.size()) {
    const Move& move = cleaning_->moves[cleaning_->next];
    const auto at = index_.find(move.key);
    const bool still_there = at != index_.end() && at->second.place.offset == move.from;
    if (still_there && !cleaning_->failed && !stats_.read_only && !shutting_down_) {
      copy_record(move, at->second);
      return;
    }
    ++cleaning_->next;
    const uint32_t to = log_.segment_of(move.to);
    --log_.at(to).io;
    review(to);
  }
  const uint32_t victim = cleaning_->victim;
  stats_.cleaned_segments += cleaning_->failed ? 0 : 1;
  cleaning_.reset();
  --log_.at(victim).io;
  review(victim);
}

void NvmeStoreImpl::copy_record(const Move& move, const Entry& entry) {
  const BodyRecordRef record = entry.record;
  const nvme::Place to{move.to, log_.at(log_.segment_of(move.to)).generation, next_record_number()};
  const std::optional<Digest> salt = meta_.find_salt(record->space_uid);
  SKV_CHECK(salt.has_value(), "a live record of an unknown space");

  std::unique_ptr<DiskJob> job = read_job(entry, 0, /*urgent=*/false);
  job->prepare = [record, bytes = move.bytes](DiskJob& read) {
    read.own = AlignedBuffer(bytes);
    read.pieces.push_back(read.own.span());
    read.checks.push_back(
        {read.own.span().subspan(nvme::vectors_offset(*record), record->vectors_bytes),
         record->vectors_sum});
    uint64_t at = nvme::chunk_offset(*record, 0);
    for (size_t i = 0; i < record->chunk_bytes.size(); ++i) {
      read.checks.push_back(
          {read.own.span().subspan(at, record->chunk_bytes[i]), record->chunk_sums[i]});
      at += storage_bytes(record->chunk_bytes[i]);
    }
  };
  job->complete = [record, to, uuid = meta_.uuid(),
                   salt_id = NvmeMeta::salt_id(*salt)](DiskJob& read) {
    const std::span<std::byte> header =
        read.own.span().first(nvme::header_bytes(record->chunk_bytes.size()));
    std::memset(header.data(), 0, header.size());
    nvme::encode_record(*record, salt_id, {0, uuid, 0}, to, header);
  };
  job->finished = [this, move, from = entry.place, to](DiskJob& read) {
    if (!read.result.ok()) {
      // Read twice and not to be had: gone. A reader would have found the same.
      spdlog::warn("nvme store: a record is lost: {}", read.result.error().message);
      const auto at = index_.find(move.key);
      if (at != index_.end() && at->second.place.offset == from.offset) {
        ++stats_.corrupt_records;
        drop_record(move.key);
      }
      read_ended(move.key, from, read);
      clean_next();
      return;
    }
    read_ended(move.key, from, read);
    auto write = std::make_unique<DiskJob>();
    write->kind = DiskJob::Kind::kWrite;
    write->offset = to.offset;
    write->own = std::move(read.own);
    write->pieces.push_back(write->own.span());
    write->finished = [this, move, to](DiskJob& written) { copy_written(move, to, written); };
    submit_into(log_.segment_of(to.offset), std::move(write));
  };
  submit(std::move(job));
}

void NvmeStoreImpl::copy_written(const Move& move, const nvme::Place& to, const DiskJob& job) {
  const uint32_t segment = log_.segment_of(to.offset);
  --log_.at(segment).io;
  stats_.written_bytes += job.bytes_done;
  ++cleaning_->next;
  const auto at = index_.find(move.key);
  if (!job.result.ok()) {
    cleaning_->failed = true;
    write_failed(segment);
  } else if (at != index_.end() && at->second.place.offset == move.from) {
    write_failures_ = 0;
    log_.kill(move.from);
    log_.set_live(to.offset);
    log_.at(cleaning_->victim).needs_sync = true;
    at->second.place = to;
    ++stats_.copied_records;
    stats_.copied_bytes += move.bytes;
  }
  review(segment);
  clean_next();
}

}  // namespace skv
