#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tests/conformance/sample_bodies.h"
#include "tests/tiers/simulated_disk.h"
#include "tiers/nvme_format.h"
#include "tiers/nvme_store.h"

namespace skv {

inline Result<void> purge_now(NvmeStore& store, const std::vector<Digest>& keys) {
  std::optional<Result<void>> purged;
  store.purge(keys, [&](Result<void> result) { purged = std::move(result); });
  drain_until(store, [&] { return purged.has_value(); });
  return purged ? *purged : Result<void>(Error{ErrorCode::kTimeout, "purge"});
}

inline Result<void> put_vectors_now(NvmeStore& store, const SampleBody& body) {
  std::optional<Result<void>> put;
  const Result<StoreOutcome> outcome =
      store.put_vectors(body.record.key, body.record.index, body.vectors,
                        [&](Result<void> result) { put = std::move(result); });
  if (!outcome.ok()) {
    return outcome.error();
  }
  EXPECT_EQ(outcome.value(), StoreOutcome::kAccepted);
  drain_until(store, [&] { return put.has_value(); });
  return put ? *put : Result<void>(Error{ErrorCode::kTimeout, "put_vectors"});
}

// A store on a simulated disk that can be opened again and again. Inline: no thread, no time.
class NvmeOnSimulatedDisk {
 public:
  static constexpr uint64_t kSegment = 1u << 20;

  explicit NvmeOnSimulatedDisk(uint32_t segments = 8)
      : file_bytes_(nvme::kFrontBytes + segments * kSegment),
        media_(std::make_shared<SimulatedMedia>(file_bytes_)) {}

  NvmeStore::Options options() const {
    NvmeStore::Options options;
    options.file_bytes = file_bytes_;
    options.segment_bytes = kSegment;
    return options;
  }

  Result<std::unique_ptr<NvmeStore>> try_open(uint64_t seed = 1) {
    auto disk = std::make_unique<SimulatedDisk>(media_, seed);
    disk_ = disk.get();
    return NvmeStore::open(std::move(disk), options());
  }
  void open(uint64_t seed = 1, const SimulatedFaults& faults = {}) {
    auto opened = try_open(seed);
    ASSERT_TRUE(opened.ok()) << opened.error().message;
    store_ = std::move(opened).value();
    ASSERT_TRUE(store_->space_salt(1000).ok());
    disk_->set_faults(faults);
  }
  void close() { store_.reset(); }
  // The process and the power go at once; what was not synced is torn by `seed`.
  void cut_power(uint64_t seed) {
    disk_->die();
    store_.reset();
    std::mt19937_64 random(seed);
    media_->power_cut(random);
  }
  // The process goes, what it wrote stays.
  void kill() {
    disk_->die();
    store_.reset();
  }

  NvmeStore& store() { return *store_; }
  SimulatedDisk& disk() { return *disk_; }
  std::span<std::byte> media() { return media_->view(); }
  std::shared_ptr<SimulatedMedia> shared_media() { return media_; }

  // Where the record of a body begins: its key is in the header and nowhere else.
  uint64_t record_offset(const SampleBody& body, uint64_t from = nvme::kFrontBytes) {
    const auto& key = body.record.key.bytes;
    for (uint64_t at = from; at + 4096 <= media().size(); at += 4096) {
      if (std::memcmp(media().data() + at + offsetof(nvme::RecordHeader, key), key.data(),
                      key.size()) == 0) {
        return at;
      }
    }
    return 0;
  }

 private:
  uint64_t file_bytes_;
  std::shared_ptr<SimulatedMedia> media_;
  SimulatedDisk* disk_ = nullptr;
  std::unique_ptr<NvmeStore> store_;
};

}  // namespace skv
