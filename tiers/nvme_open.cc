#include <spdlog/spdlog.h>

#include <string>
#include <utility>

#include "tiers/disk_file.h"
#include "tiers/nvme_store.h"
#include "tiers/nvme_store_impl.h"

namespace skv {
namespace {

Error invalid(const std::string& what) {
  return {ErrorCode::kInvalidArgument, "nvme store: " + what};
}

Result<void> check_options(const NvmeStore::Options& options) {
  if (options.queue_depth < 4 || options.queue_depth > 4096) {
    return invalid("queue_depth is " + std::to_string(options.queue_depth) + ", allowed 4 to 4096");
  }
  if (options.queue_bytes < 1u << 20) {
    return invalid("queue_bytes is " + std::to_string(options.queue_bytes) + ", at least 1 MiB");
  }
  if (options.transfers_max == 0 || options.pool_threads == 0 || options.pool_threads > 256) {
    return invalid("transfers_max must be at least 1, pool_threads 1 to 256");
  }
  return {};
}

DiskEngine::Limits limits_of(const NvmeStore::Options& options) {
  return {.requests = options.queue_depth, .bytes = options.queue_bytes};
}

Result<std::unique_ptr<NvmeStore>> open_on(std::unique_ptr<JobRunner> runner,
                                           const NvmeStore::Options& options) {
  Disk& disk = runner->disk();
  Result<NvmeMeta> meta = NvmeMeta::open(
      disk, {.file_bytes = options.file_bytes, .segment_bytes = options.segment_bytes});
  if (!meta.ok()) {
    return meta.error();
  }
  NvmeRecovery recovery = NvmeRecovery::run(*runner, meta.value(), options.progress);
  // What was found may still be in a volatile cache; from here on older copies may be overwritten.
  if (Result<void> synced = disk.sync_now(); !synced.ok()) {
    return synced.error();
  }
  auto store = std::make_unique<NvmeStoreImpl>(std::move(runner), std::move(meta).value(), options);
  store->restore(std::move(recovery));
  return std::unique_ptr<NvmeStore>(std::move(store));
}

}  // namespace

uint64_t NvmeStore::record_bytes(const std::vector<uint64_t>& chunk_bytes, uint64_t vectors_bytes) {
  uint64_t bytes = nvme::header_bytes(chunk_bytes.size()) + storage_bytes(vectors_bytes);
  for (const uint64_t chunk : chunk_bytes) {
    bytes += storage_bytes(chunk);
  }
  return bytes;
}

NvmeStore::~NvmeStore() = default;

Result<std::unique_ptr<NvmeStore>> NvmeStore::open(const std::string& path,
                                                   const Options& options) {
  if (Result<void> valid = check_options(options); !valid.ok()) {
    return valid.error();
  }
  const Result<NvmeMeta::Geometry> planned =
      NvmeMeta::plan({.file_bytes = options.file_bytes, .segment_bytes = options.segment_bytes});
  if (!planned.ok()) {
    return planned.error();
  }
  Result<std::shared_ptr<DiskFile>> file = DiskFile::open(path, planned.value().file_bytes);
  if (!file.ok()) {
    return file.error();
  }
  Result<std::unique_ptr<JobRunner>> runner = Error{};
  if (options.backend != Backend::kThreads) {
    std::unique_ptr<Disk> ring = make_uring_disk(file.value());
    runner = make_thread_runner(ring, limits_of(options));
    if (!runner.ok()) {
      if (options.backend == Backend::kUring) {
        return runner.error();
      }
      spdlog::warn("nvme file {}: {}; using {} threads instead", path, runner.error().message,
                   options.pool_threads);
    }
  }
  if (!runner.ok()) {
    std::unique_ptr<Disk> pool = make_thread_disk(file.value(), options.pool_threads);
    runner = make_thread_runner(pool, limits_of(options));
    if (!runner.ok()) {
      return runner.error();
    }
  }
  return open_on(std::move(runner).value(), options);
}

Result<std::unique_ptr<NvmeStore>> NvmeStore::open(std::unique_ptr<Disk> disk,
                                                   const Options& options) {
  if (Result<void> valid = check_options(options); !valid.ok()) {
    return valid.error();
  }
  Result<std::unique_ptr<JobRunner>> runner = make_inline_runner(disk, limits_of(options));
  if (!runner.ok()) {
    return runner.error();
  }
  return open_on(std::move(runner).value(), options);
}

NvmeStoreImpl::NvmeStoreImpl(std::unique_ptr<JobRunner> runner,
                             NvmeMeta meta,
                             const Options& options)
    : options_(options), meta_(std::move(meta)), log_(meta_), runner_(std::move(runner)) {
  stats_.backend = runner_->disk().backend();
  stats_.direct = runner_->disk().direct();
  stats_.file_bytes = meta_.geometry().file_bytes;
  stats_.segment_count = log_.count();
}

void NvmeStoreImpl::restore(NvmeRecovery recovery) {
  stats_.recovered_records = recovery.records.size();
  stats_.skipped_records = recovery.skipped;
  stats_.indexed_segments = recovery.indexed_segments;
  for (NvmeRecovery::Record& found : recovery.records) {
    const Digest key = found.record.key;
    log_.restore({found.place.offset, found.bytes, key, found.live});
    if (!found.live) {
      --stats_.recovered_records;
      continue;
    }
    index_.emplace(key, Entry{std::make_shared<const BodyRecord>(std::move(found.record)),
                              found.place, found.bytes});
  }
  for (uint32_t segment = 0; segment < log_.count(); ++segment) {
    const NvmeRecovery::Segment& found = recovery.segments[segment];
    if (found.unreadable && log_.at(segment).slots.empty()) {
      log_.set_bad(segment);
    } else {
      log_.finish_restore(segment, found.generation, found.sealed);
    }
  }
  for (uint32_t segment = 0; segment < log_.count(); ++segment) {
    if (log_.at(segment).live_bytes == 0) {
      review(segment);  // only what does not count any more
    }
  }
}

}  // namespace skv
