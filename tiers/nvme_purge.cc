#include <spdlog/spdlog.h>

#include <array>
#include <unordered_set>
#include <utility>

#include "tiers/nvme_store_impl.h"

// Purges: what was purged stays away, also after a restart that finds an older copy of it.
namespace skv {

void NvmeStoreImpl::purge(std::span<const Digest> keys, BodyDone done) {
  // Of puts and copies under way the numbers are given already, or never will be.
  const uint64_t newest = (meta_.open_count() << 32) + record_count_;
  for (const Digest& key : keys) {
    erase(key);
    meta_.purge(key, newest);
  }
  purges_waiting_.push_back(std::move(done));
  start_purge();
}

// One write of the tables at a time; what comes meanwhile shares the next.
void NvmeStoreImpl::start_purge() {
  if (purge_writing_ || purges_waiting_.empty()) {
    return;
  }
  if (meta_.purge_count() > NvmeMeta::kPurgesMax) {
    std::unordered_set<Digest, DigestHash> keys;
    for (uint32_t segment = 0; segment < log_.count(); ++segment) {
      for (const NvmeLog::Slot& slot : log_.at(segment).slots) {
        keys.insert(slot.key);
      }
    }
    meta_.prune_purges(keys);
  }
  Result<std::array<NvmeMeta::TablesWrite, 2>> tables =
      stats_.read_only ? Error{ErrorCode::kIo, "nvme store: read-only"}
      : meta_.purge_count() > NvmeMeta::kPurgesMax
          ? Error{ErrorCode::kNoSpace,
                  "nvme store: the table of purged sentences is full until "
                  "their segments are used again"}
          : meta_.next_tables();
  purge_writing_ = true;
  const auto run = std::make_shared<PurgeRun>();
  run->done.swap(purges_waiting_);
  if (!tables.ok()) {
    purge_written(*run, tables.error());
    return;
  }
  run->writes_left = tables.value().size();
  for (NvmeMeta::TablesWrite& twin : tables.value()) {
    auto job = std::make_unique<DiskJob>();
    job->kind = DiskJob::Kind::kWrite;
    job->offset = twin.offset;
    job->own = std::move(twin.block);
    job->pieces.push_back(job->own.span());
    job->finished = [this, run](DiskJob& written) {
      if (!written.result.ok()) {
        run->result = written.result;
      }
      if (--run->writes_left > 0) {
        return;
      }
      if (!run->result.ok()) {
        purge_written(*run, run->result);
        return;
      }
      request_sync([this, run](const Result<void>& result) {
        if (result.ok()) {
          meta_.tables_written();
        }
        purge_written(*run, result);
      });
    };
    submit(std::move(job));
  }
}

void NvmeStoreImpl::purge_written(PurgeRun& run, const Result<void>& result) {
  purge_writing_ = false;
  if (!result.ok()) {
    spdlog::error("nvme store: a purge is not durable: {}", result.error().message);
  }
  for (BodyDone& done : run.done) {
    later([done = std::move(done), result] { done(result); });
  }
  start_purge();
}

// For those who write the tables themselves, and block.
void NvmeStoreImpl::wait_for_tables() {
  while (purge_writing_) {
    collect_and_take();
  }
}

Result<Digest> NvmeStoreImpl::space_salt(uint32_t uid) {
  if (const std::optional<Digest> known = meta_.find_salt(uid)) {
    return *known;
  }
  wait_for_tables();
  return meta_.space_salt(runner_->disk(), uid);
}

Result<void> NvmeStoreImpl::remember_model(const Digest& fingerprint,
                                           const std::vector<uint8_t>& descriptor) {
  wait_for_tables();
  return meta_.remember_model(runner_->disk(), fingerprint, descriptor);
}

}  // namespace skv
