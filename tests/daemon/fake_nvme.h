#pragma once

#include <algorithm>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tiers/nvme_store.h"

namespace skv::test {

// An NVMe store for tests of who decides: a map behind a queue of transfers.
//
// Nothing completes before drain(). A put takes its bytes only then, and checks them against the
// sums that came with it: an extent that was given to somebody else too early is found here. With
// `shuffle` completions come in an order of the seed. The `Medium` outlives the store, so a restart
// is a second store on the same medium.
class FakeNvme final : public NvmeStore {
 public:
  struct Stored {
    std::shared_ptr<BodyRecord> record;
    VectorsBlob vectors;
    std::vector<std::shared_ptr<const std::vector<std::byte>>> chunks;
  };
  struct Medium {
    std::map<Digest, Stored> bodies;
    std::map<uint32_t, Digest> salts;
    std::map<Digest, std::vector<uint8_t>> models;
  };

  FakeNvme(std::shared_ptr<Medium> medium, uint64_t capacity_bytes)
      : medium_(std::move(medium)), capacity_(capacity_bytes) {
    for (const auto& [key, stored] : medium_->bodies) used_ += bytes_of(*stored.record);
  }

  Result<StoreOutcome> put(BodyPut& put) override {
    if (read_only) return StoreOutcome::kReadOnly;
    const uint64_t bytes = bytes_of(put.record);
    if (bytes > capacity_) return Error{ErrorCode::kTooLarge, "record above the store"};
    if (medium_->bodies.contains(put.record.key) || writing_.contains(put.record.key)) {
      return StoreOutcome::kExists;
    }
    if (in_flight_ >= transfers_max) return StoreOutcome::kBusy;
    if (used_ + bytes > capacity_) {
      ++full_answers;
      return StoreOutcome::kFull;
    }
    used_ += bytes;
    writing_.insert(put.record.key);
    enqueue([this, moved = std::make_shared<BodyPut>(std::move(put)), bytes] {
      finish_put(*moved, bytes);
    });
    return StoreOutcome::kAccepted;
  }

  Result<BodyReadOutcome> read(BodyRead& read) override {
    if (!medium_->bodies.contains(read.key)) return BodyReadOutcome::kUnknown;
    if (in_flight_ >= transfers_max) return BodyReadOutcome::kBusy;
    // Reads in flight end as they would have, also if the key is erased meanwhile.
    const Stored body = medium_->bodies.at(read.key);
    enqueue([this, moved = std::make_shared<BodyRead>(std::move(read)), body] {
      finish_read(*moved, body);
    });
    return BodyReadOutcome::kAccepted;
  }

  BodyReadOutcome read_vectors(const Digest& key,
                               std::function<void(Result<VectorsBlob>)> done) override {
    const auto found = medium_->bodies.find(key);
    if (found == medium_->bodies.end()) return BodyReadOutcome::kUnknown;
    if (in_flight_ >= transfers_max) return BodyReadOutcome::kBusy;
    VectorsBlob blob = found->second.vectors;
    if (blob == nullptr) blob = std::make_shared<const std::vector<std::byte>>();
    enqueue([done = std::move(done), blob, broken = corrupt.contains(key)] {
      if (broken) {
        done(Error{ErrorCode::kCorrupt, "flipped by the test"});
      } else {
        done(std::make_shared<const std::vector<std::byte>>(*blob));
      }
    });
    return BodyReadOutcome::kAccepted;
  }

  void erase(const Digest& key) override {
    if (writing_.contains(key)) erased_.insert(key);
    drop(key);
  }
  void flush(BodyDone done) override {
    enqueue([done = std::move(done)] { done({}); });
  }
  Result<StoreOutcome> put_vectors(const Digest& key,
                                   const IndexDescriptor& index,
                                   VectorsBlob vectors,
                                   BodyDone done) override {
    if (!medium_->bodies.contains(key)) return Error{ErrorCode::kNotFound, "not stored"};
    if (in_flight_ >= transfers_max) return StoreOutcome::kBusy;
    if (read_only) return StoreOutcome::kReadOnly;
    enqueue([this, key, index, vectors = std::move(vectors), done = std::move(done)] {
      const auto found = medium_->bodies.find(key);
      if (found == medium_->bodies.end()) {
        done(Error{ErrorCode::kCancelled, "erased meanwhile"});
        return;
      }
      Stored& stored = found->second;
      used_ -= bytes_of(*stored.record);
      stored.record = std::make_shared<BodyRecord>(*stored.record);
      stored.record->index = index;
      stored.record->vectors_bytes = static_cast<uint32_t>(vectors->size());
      stored.vectors = vectors;
      used_ += bytes_of(*stored.record);
      done({});
    });
    return StoreOutcome::kAccepted;
  }
  void purge(std::span<const Digest> keys, BodyDone done) override {
    for (const Digest& key : keys) erase(key);
    enqueue([done = std::move(done)] { done({}); });
  }

  BodyRecordRef find(const Digest& key) const override {
    const auto found = medium_->bodies.find(key);
    return found == medium_->bodies.end() ? nullptr : found->second.record;
  }
  std::vector<BodyRecordRef> records() const override {
    std::vector<BodyRecordRef> all;
    for (const auto& [key, stored] : medium_->bodies) all.push_back(stored.record);
    return all;
  }

  void drain() override { drain_some(queue_.size()); }
  // Completes up to `count` of what waits.
  void drain_some(size_t count) {
    for (; count > 0 && !queue_.empty(); --count) {
      const size_t at = shuffle ? random() % queue_.size() : 0;
      const std::function<void()> run = std::move(queue_[at]);
      queue_.erase(queue_.begin() + static_cast<std::ptrdiff_t>(at));
      --in_flight_;
      run();
    }
  }
  int wake_fd() const override { return -1; }
  uint32_t transfers_in_flight() const override { return in_flight_; }

  Result<Digest> space_salt(uint32_t uid) override {
    Digest salt;
    salt.bytes[0] = static_cast<uint8_t>(uid);
    return medium_->salts.try_emplace(uid, salt).first->second;
  }
  Result<void> remember_model(const Digest& fingerprint,
                              const std::vector<uint8_t>& descriptor) override {
    medium_->models[fingerprint] = descriptor;
    return {};
  }
  std::vector<std::vector<uint8_t>> models() const override {
    std::vector<std::vector<uint8_t>> all;
    for (const auto& [fingerprint, descriptor] : medium_->models) all.push_back(descriptor);
    return all;
  }
  uint64_t record_bytes_max() const override { return capacity_; }
  uint64_t erase_ahead_bytes() const override {
    const uint64_t taken = used_ + spare_bytes;
    return taken - std::min(taken, capacity_);
  }
  Stats stats() const override { return {}; }

  uint64_t used_bytes() const { return used_; }

  uint64_t spare_bytes = 0;   // what erase_ahead_bytes() keeps free
  uint32_t full_answers = 0;  // puts that were kFull

  // Faults, set by the test.
  std::set<Digest> corrupt;     // reads of these keys fail and drop the record
  uint32_t failing_writes = 0;  // the next puts end with kIo
  uint32_t refused_writes = 0;  // the next puts end with kNoSpace
  uint32_t failing_reads = 0;
  bool read_only = false;
  bool shuffle = false;
  uint32_t transfers_max = 64;
  std::mt19937_64 random{1};

 private:
  static uint64_t bytes_of(const BodyRecord& record) {
    uint64_t bytes = 4096 + storage_bytes(record.vectors_bytes);
    for (const uint64_t chunk : record.chunk_bytes) bytes += storage_bytes(chunk);
    return bytes;
  }
  void enqueue(std::function<void()> run) {
    ++in_flight_;
    queue_.push_back(std::move(run));
  }
  void drop(const Digest& key) {
    const auto found = medium_->bodies.find(key);
    if (found == medium_->bodies.end()) return;
    used_ -= bytes_of(*found->second.record);
    medium_->bodies.erase(found);
  }

  void finish_put(BodyPut& put, uint64_t bytes) {
    const Digest key = put.record.key;
    writing_.erase(key);
    Result<void> result;
    if (erased_.erase(key) > 0) {
      result = Error{ErrorCode::kCancelled, "erased meanwhile"};
    } else if (failing_writes > 0) {
      --failing_writes;
      result = Error{ErrorCode::kIo, "EIO by the test"};
    } else if (refused_writes > 0) {
      --refused_writes;
      result = Error{ErrorCode::kNoSpace, "full by the test"};
    }
    Stored stored;
    for (size_t chunk = 0; result.ok() && chunk < put.chunks.size(); ++chunk) {
      const auto bytes_there = put.chunks[chunk].first(put.record.chunk_bytes[chunk]);
      if (!(checksum(bytes_there) == put.record.chunk_sums.at(chunk))) {
        result = Error{ErrorCode::kCorrupt, "the bytes are not those of the sum"};
      }
      stored.chunks.push_back(std::make_shared<const std::vector<std::byte>>(
          put.chunks[chunk].begin(), put.chunks[chunk].end()));
    }
    if (!result.ok()) {
      used_ -= bytes;
      put.done(result);
      return;
    }
    if (put.vectors != nullptr) {
      stored.vectors = std::make_shared<const std::vector<std::byte>>(*put.vectors);
    }
    stored.record = std::make_shared<BodyRecord>(put.record);
    medium_->bodies[key] = std::move(stored);
    put.done(result);
  }

  void finish_read(BodyRead& read, const Stored& body) {
    if (failing_reads > 0) {
      --failing_reads;
      read.done(Error{ErrorCode::kIo, "EIO by the test"});
      return;
    }
    if (corrupt.contains(read.key)) {
      drop(read.key);
      read.done(Error{ErrorCode::kCorrupt, "flipped by the test"});
      return;
    }
    for (size_t chunk = 0; chunk < read.chunks.size(); ++chunk) {
      const std::vector<std::byte>& from = *body.chunks.at(read.first_chunk + chunk);
      std::memcpy(read.chunks[chunk].data(), from.data(), from.size());
    }
    read.done({});
  }

  std::shared_ptr<Medium> medium_;
  uint64_t capacity_;
  uint64_t used_ = 0;
  uint32_t in_flight_ = 0;
  std::set<Digest> writing_;
  std::set<Digest> erased_;
  std::deque<std::function<void()>> queue_;
};

}  // namespace skv::test
