#include <spdlog/spdlog.h>

#include <cstring>
#include <utility>

#include "ipc/types/check.h"
#include "tiers/nvme_store_impl.h"

// Records that are written anew: by cleaning, or with vectors that came later.
namespace skv {
namespace {

// Of records that cleaning reads and writes at a time: they are in memory meanwhile.
constexpr uint64_t kCleaningBytes = 8u << 20;

}  // namespace

// Copies what is live in the best victim to the log's end. All places are taken now, so that the
// arithmetic of NvmeLog::victim() holds whatever is put meanwhile.
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
  while (cleaning_->next < cleaning_->moves.size() && cleaning_->bytes < kCleaningBytes) {
    const Move& move = cleaning_->moves[cleaning_->next++];
    const auto at = index_.find(move.key);
    const bool still_there = at != index_.end() && at->second.place.offset == move.from;
    if (still_there && !cleaning_->failed && !stats_.read_only && !shutting_down_) {
      auto copy = std::make_shared<Copy>();
      copy->key = move.key;
      copy->to = {move.to, log_.at(log_.segment_of(move.to)).generation, next_record_number()};
      copy->record = std::make_shared<BodyRecord>(*at->second.record);
      copy->bytes = move.bytes;
      cleaning_->bytes += move.bytes;
      copy->ended = [this, bytes = move.bytes](const Result<void>& result) {
        cleaning_->bytes -= bytes;
        if (result.ok()) {
          ++stats_.copied_records;
          stats_.copied_bytes += bytes;
        } else if (result.error().code == ErrorCode::kIo) {
          cleaning_->failed = true;
        }
        clean_next();
      };
      copy_record(copy, at->second);
      continue;
    }
    const uint32_t to = log_.segment_of(move.to);
    --log_.at(to).io;
    review(to);
  }
  if (cleaning_->bytes > 0) return;
  const uint32_t victim = cleaning_->victim;
  stats_.cleaned_segments += cleaning_->failed ? 0 : 1;
  cleaning_.reset();
  --log_.at(victim).io;
  review(victim);
}

Result<StoreOutcome> NvmeStoreImpl::put_vectors(const Digest& key,
                                                const IndexDescriptor& index,
                                                VectorsBlob vectors,
                                                BodyDone done) {
  const auto at = index_.find(key);
  if (at == index_.end()) {
    return Error{ErrorCode::kNotFound, "nvme store: the sentence is not stored"};
  }
  const uint64_t bytes =
      record_bytes(at->second.record->chunk_bytes, vectors == nullptr ? 0 : vectors->size());
  if (vectors == nullptr || vectors->size() > kRecordVectorsBytesMax ||
      bytes > log_.usable_bytes()) {
    return Error{ErrorCode::kTooLarge, "nvme store: no vectors, or more than a record takes"};
  }
  if (stats_.read_only) {
    return StoreOutcome::kReadOnly;
  }
  if (transfers_ >= options_.transfers_max || !waiting_.empty()) {
    return StoreOutcome::kBusy;  // those that wait for room were first
  }
  const std::optional<NvmeLog::Place> place = allocate(bytes, key, NvmeLog::kReserve);
  if (!place) {
    const bool soon = cleaning_ || log_.freeing() || start_cleaning(log_.gain_unit());
    return soon ? StoreOutcome::kBusy : StoreOutcome::kFull;
  }
  ++log_.at(place->segment).io;
  auto copy = std::make_shared<Copy>();
  copy->key = key;
  copy->to = {place->offset, log_.at(place->segment).generation, next_record_number()};
  copy->record = std::make_shared<BodyRecord>(*at->second.record);
  copy->record->index = index;
  copy->record->vectors_bytes = static_cast<uint32_t>(vectors->size());
  copy->vectors = std::move(vectors);
  copy->bytes = bytes;
  const uint64_t sequence = next_sequence_++;
  put_sequences_.insert(sequence);  // a flush waits for it
  ++transfers_;
  copy->ended = [this, sequence, done = std::move(done)](const Result<void>& result) {
    put_sequences_.erase(sequence);
    end_transfer([done, result] { done(result); });
    run_flushes();
  };
  copy_record(copy, at->second);
  return StoreOutcome::kAccepted;
}

// Reads the record at `entry` and writes it at `copy->to`. Not the header, which is made anew; not
// the vectors, where others come in their place.
void NvmeStoreImpl::copy_record(const CopyRef& copy, const Entry& entry) {
  const std::optional<Digest> salt = meta_.find_salt(copy->record->space_uid);
  SKV_CHECK(salt.has_value(), "a live record of an unknown space");
  copy->from = entry.place;
  const BodyRecord& old = *entry.record;
  const bool same_vectors = copy->vectors == nullptr;
  std::unique_ptr<DiskJob> job =
      read_job(entry, same_vectors ? nvme::vectors_offset(old) : nvme::chunk_offset(old, 0),
               /*urgent=*/false);
  job->prepare = [copy, same_vectors](DiskJob& read) {
    const BodyRecord& record = *copy->record;
    read.own = AlignedBuffer(copy->bytes);
    const uint64_t chunks = nvme::chunk_offset(record, 0);
    read.pieces.push_back(
        read.own.span().subspan(same_vectors ? nvme::vectors_offset(record) : chunks));
    if (same_vectors) {
      read.checks.push_back(
          {read.own.span().subspan(nvme::vectors_offset(record), record.vectors_bytes),
           record.vectors_sum});
    }
    uint64_t at = chunks;
    for (size_t i = 0; i < record.chunk_bytes.size(); ++i) {
      read.checks.push_back(
          {read.own.span().subspan(at, record.chunk_bytes[i]), record.chunk_sums[i]});
      at += storage_bytes(record.chunk_bytes[i]);
    }
  };
  job->complete = [copy, uuid = meta_.uuid(), salt_id = NvmeMeta::salt_id(*salt)](DiskJob& read) {
    BodyRecord& record = *copy->record;
    if (copy->vectors != nullptr) {
      std::memcpy(read.own.data() + nvme::vectors_offset(record), copy->vectors->data(),
                  copy->vectors->size());
      record.vectors_sum = checksum(*copy->vectors);
    }
    const std::span<std::byte> header =
        read.own.span().first(nvme::header_bytes(record.chunk_bytes.size()));
    nvme::encode_record(record, salt_id, {0, uuid, 0}, copy->to, header);
  };
  job->finished = [this, copy](DiskJob& read) {
    if (!read.result.ok()) {
      // Read twice and not to be had: gone. A reader would have found the same.
      spdlog::warn("nvme store: a record is lost: {}", read.result.error().message);
      const auto at = index_.find(copy->key);
      if (at != index_.end() && at->second.place.offset == copy->from.offset) {
        ++stats_.corrupt_records;
        drop_record(copy->key);
      }
      read_ended(copy->key, copy->from, read);
      const uint32_t to = log_.segment_of(copy->to.offset);
      --log_.at(to).io;
      review(to);
      copy->ended(Error{ErrorCode::kCorrupt, read.result.error().message});
      return;
    }
    read_ended(copy->key, copy->from, read);
    auto write = std::make_unique<DiskJob>();
    write->kind = DiskJob::Kind::kWrite;
    write->offset = copy->to.offset;
    write->own = std::move(read.own);
    write->pieces.push_back(write->own.span());
    write->finished = [this, copy](DiskJob& written) { copy_written(copy, written); };
    submit_into(log_.segment_of(copy->to.offset), std::move(write));
  };
  submit(std::move(job));
}

void NvmeStoreImpl::copy_written(const CopyRef& copy, const DiskJob& job) {
  const uint32_t segment = log_.segment_of(copy->to.offset);
  --log_.at(segment).io;
  stats_.written_bytes += job.bytes_done;
  const auto at = index_.find(copy->key);
  Result<void> result = job.result;
  if (!result.ok()) {
    write_failed(segment);
  } else if (at == index_.end() || at->second.place.offset != copy->from.offset) {
    result = Error{ErrorCode::kCancelled, "nvme store: erased or moved meanwhile"};
  } else {
    write_failures_ = 0;
    log_.kill(copy->from.offset);
    log_.set_live(copy->to.offset);
    const uint32_t from = log_.segment_of(copy->from.offset);
    log_.at(from).needs_sync = true;
    at->second = Entry{copy->record, copy->to, copy->bytes};
    review(from);
  }
  review(segment);
  copy->ended(result);
}

}  // namespace skv
