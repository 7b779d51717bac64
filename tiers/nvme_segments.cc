#include <spdlog/spdlog.h>

#include <cstring>
#include <string>
#include <utility>

#include "ipc/types/check.h"
#include "tiers/nvme_store_impl.h"

// The segments' side of NvmeStoreImpl: syncs, grants, seals, and giving segments back.
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
    if (log_.at(place->segment).generation == 0) {
      grant(place->segment);
    }
    // The next one while this is filled: records then never wait for a header and its sync.
    const std::optional<uint32_t> next = log_.next_clean();
    if (next && log_.at(*next).generation == 0 && !shutting_down_) {
      grant(*next);
    }
    if (before) {
      review(*before);
    }
  }
  return place;
}

void NvmeStoreImpl::grant(uint32_t index) {
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
    if (segment.state == NvmeLog::State::kClean) {
      segment = {};  // granted ahead: once more when it is opened
      return;
    }
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
  if (stats_.read_only || segment.readers > 0) {
    return;
  }
  log_.begin_freeing(index);
  ++segment.io;
  if (!segment.needs_sync) {
    clear(index);
    return;
  }
  // The copies of what was here must be durable before its header goes.
  request_sync([this, index](const Result<void>& result) {
    if (result.ok()) {
      log_.at(index).needs_sync = false;
      clear(index);
      return;
    }
    --log_.at(index).io;
    log_.stop_freeing(index);
  });
}

// Zeros over seal and header, then a sync: from then on nothing in the segment is found by an open,
// above all no older copy of a sentence that was purged.
void NvmeStoreImpl::clear(uint32_t index) {
  const auto failed = std::make_shared<bool>(false);
  const auto left = std::make_shared<int>(2);
  for (const uint64_t offset : {log_.seal_offset(index), log_.start_of(index)}) {
    auto job = std::make_unique<DiskJob>();
    job->kind = DiskJob::Kind::kWrite;
    job->offset = offset;
    job->own = AlignedBuffer(nvme::kBlockBytes);
    job->pieces.push_back(job->own.span());
    job->finished = [this, index, failed, left](DiskJob& written) {
      *failed = *failed || !written.result.ok();
      if (--*left > 0) {
        return;
      }
      if (*failed) {
        cleared(index, false);
        return;
      }
      request_sync([this, index](const Result<void>& result) { cleared(index, result.ok()); });
    };
    submit(std::move(job));
  }
}

void NvmeStoreImpl::cleared(uint32_t index, bool ok) {
  --log_.at(index).io;
  if (ok) {
    log_.make_clean(index);
  } else {
    write_failed(index);
    log_.set_bad(index);
  }
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
    write_index(index, [this, index, ended](uint64_t index_bytes) {
      auto job = std::make_unique<DiskJob>();
      job->kind = DiskJob::Kind::kWrite;
      job->offset = log_.seal_offset(index);
      job->own = AlignedBuffer(nvme::kBlockBytes);
      nvme::begin_block(job->own.span(), {nvme::kSealMagic, meta_.uuid(), job->offset});
      nvme::SegmentSeal seal{};
      std::memcpy(&seal, job->own.data(), sizeof seal);
      seal.segment_index = index;
      seal.generation = log_.at(index).generation;
      seal.end_offset = log_.at(index).next - log_.start_of(index);
      seal.index_bytes = index_bytes;
      std::memcpy(job->own.data(), &seal, sizeof seal);
      nvme::seal_block(job->own.span());
      job->pieces.push_back(job->own.span());
      job->finished = [ended](DiskJob& written) { ended(written.result.ok()); };
      submit(std::move(job));
    });
  });
}

// Behind the last record, where there is room; else the next open walks the records' headers. Not
// synced: a torn index does not hold, and counts as none.
void NvmeStoreImpl::write_index(uint32_t index, std::function<void(uint64_t)> done) {
  const NvmeLog::Segment& segment = log_.at(index);
  std::vector<nvme::IndexedRecord> records;
  for (const NvmeLog::Slot& slot : segment.slots) {
    const auto at = slot.live ? index_.find(slot.key) : index_.end();
    if (at == index_.end() || at->second.place.offset != slot.offset) {
      continue;
    }
    const std::optional<Digest> salt = meta_.find_salt(at->second.record->space_uid);
    SKV_CHECK(salt.has_value(), "a live record of an unknown space");
    records.push_back({at->second.record, NvmeMeta::salt_id(*salt), at->second.place});
  }
  const uint64_t bytes = nvme::index_bytes(records);
  if (bytes > log_.seal_offset(index) - segment.next) {
    done(0);
    return;
  }
  auto job = std::make_unique<DiskJob>();
  job->kind = DiskJob::Kind::kWrite;
  job->offset = segment.next;
  job->prepare = [records = std::move(records), bytes,
                  place = nvme::IndexPlace{{nvme::kIndexMagic, meta_.uuid(), segment.next},
                                           segment.generation,
                                           log_.start_of(index)}](DiskJob& write) {
    write.own = AlignedBuffer(bytes);
    nvme::encode_index(records, place, write.own.span());
    write.pieces.push_back(write.own.span());
  };
  job->finished = [bytes, done = std::move(done)](DiskJob& written) {
    done(written.result.ok() ? bytes : 0);
  };
  submit(std::move(job));
}

}  // namespace skv
