#include "tiers/host_body_store.h"

#include <sys/eventfd.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "ipc/types/check.h"
#include "ipc/unique_fd.h"

namespace skv {
namespace {

Error invalid(const std::string& what) {
  return {ErrorCode::kInvalidArgument, "host body store: " + what};
}

class HostBodyStore final : public BodyStore {
 public:
  HostBodyStore(HostStore& host, uint32_t transfers_max)
      : host_(host), transfers_max_(transfers_max), wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    SKV_CHECK(wake_.valid(), "eventfd: out of descriptors");
  }
  ~HostBodyStore() override {
    for (const auto& [key, entry] : entries_) {
      free_extents(entry);
    }
  }
  HostBodyStore(const HostBodyStore&) = delete;
  HostBodyStore& operator=(const HostBodyStore&) = delete;

  Result<StoreOutcome> put(BodyPut& put) override;
  Result<BodyReadOutcome> read(BodyRead& read) override;
  BodyReadOutcome read_vectors(const Digest& key,
                               std::function<void(Result<VectorsBlob>)> done) override;
  void erase(const Digest& key) override;
  void flush(BodyDone done) override {
    queue([done = std::move(done)] { done({}); });
  }

  BodyRecordRef find(const Digest& key) const override {
    const auto at = entries_.find(key);
    return at == entries_.end() || !at->second.stored ? nullptr : at->second.record;
  }
  std::vector<BodyRecordRef> records() const override;
  void drain() override;
  int wake_fd() const override { return wake_.get(); }
  uint32_t transfers_in_flight() const override { return transfers_; }

 private:
  struct Entry {
    SentenceUid uid{};
    BodyRecordRef record;
    VectorsBlob vectors;
    bool stored = false;
    bool cancelled = false;
    uint32_t readers = 0;  // reads under way keep an erased body's memory
    bool erased = false;
  };

  SpaceId space_of(const Entry& entry) const { return SpaceId{entry.record->space_uid}; }
  void free_extents(const Entry& entry) {
    for (uint32_t chunk = 0; chunk < entry.record->chunk_bytes.size(); ++chunk) {
      host_.erase(entry.uid, chunk);
    }
  }
  std::span<std::byte> storage(const Entry& entry, uint32_t chunk) {
    return host_.bytes(space_of(entry), *host_.extent(entry.uid, chunk));
  }
  void queue(std::function<void()> work) {
    work_.push_back(std::move(work));
    const uint64_t one = 1;
    (void)!write(wake_.get(), &one, sizeof one);
  }
  Result<void> copy_in(const Entry& entry, const BodyPut& put);
  Result<void> copy_out(const Entry& entry, const BodyRead& read);
  void drop(const Digest& key);

  HostStore& host_;
  uint32_t transfers_max_;
  UniqueFd wake_;
  uint32_t transfers_ = 0;
  uint64_t next_uid_ = uint64_t{1} << 63;
  std::unordered_map<Digest, Entry, DigestHash> entries_;
  std::deque<std::function<void()>> work_;
};

Result<StoreOutcome> HostBodyStore::put(BodyPut& put) {
  const BodyRecord& record = put.record;
  const size_t chunks = record.chunk_bytes.size();
  const uint64_t vectors = put.vectors ? put.vectors->size() : 0;
  if (chunks == 0 || chunks > kRecordChunksMax || record.chunk_sums.size() != chunks ||
      put.chunks.size() != chunks || record.vectors_bytes != vectors) {
    return invalid("record, sums, buffers and vectors do not fit each other");
  }
  uint64_t bytes = 0;
  for (size_t i = 0; i < chunks; ++i) {
    if (record.chunk_bytes[i] == 0 ||
        put.chunks[i].size() != storage_bytes(record.chunk_bytes[i])) {
      return invalid("buffer of chunk " + std::to_string(i) + " is not of its storage's size");
    }
    bytes += put.chunks[i].size();
  }
  if (bytes > host_.stats().budget_bytes) {
    return Error{ErrorCode::kTooLarge, "host body store: a body of " + std::to_string(bytes) +
                                           " bytes is larger than host.budget_bytes, " +
                                           std::to_string(host_.stats().budget_bytes)};
  }
  if (const auto at = entries_.find(record.key); at != entries_.end()) {
    return at->second.cancelled || at->second.erased ? StoreOutcome::kBusy : StoreOutcome::kExists;
  }
  if (transfers_ >= transfers_max_) {
    return StoreOutcome::kBusy;
  }
  const SpaceId space{record.space_uid};
  if (Result<HostStore::Arena> arena = host_.arena(space); !arena.ok()) {
    return arena.error();
  }
  Entry entry;
  entry.uid = SentenceUid{next_uid_++};
  for (uint32_t chunk = 0; chunk < chunks; ++chunk) {
    if (!host_.reserve(space, entry.uid, chunk, record.chunk_bytes[chunk])) {
      for (uint32_t before = 0; before < chunk; ++before) {
        host_.erase(entry.uid, before);
      }
      return StoreOutcome::kFull;
    }
  }
  entry.vectors = put.vectors;
  auto shared = std::make_shared<BodyPut>(std::move(put));
  const Digest key = shared->record.key;
  auto stored = std::make_shared<BodyRecord>(shared->record);
  stored->vectors_sum = checksum(shared->vectors ? std::span<const std::byte>(*shared->vectors)
                                                 : std::span<const std::byte>());
  entry.record = std::move(stored);
  entries_.emplace(key, std::move(entry));
  ++transfers_;
  queue([this, key, shared] {
    --transfers_;
    Entry& at = entries_.at(key);
    Result<void> result = at.cancelled
                              ? Error{ErrorCode::kCancelled, "host body store: erased meanwhile"}
                              : copy_in(at, *shared);
    if (result.ok()) {
      at.stored = true;
    } else {
      drop(key);
    }
    shared->done(std::move(result));
  });
  return StoreOutcome::kAccepted;
}

Result<void> HostBodyStore::copy_in(const Entry& entry, const BodyPut& put) {
  const BodyRecord& record = *entry.record;
  for (uint32_t chunk = 0; chunk < put.chunks.size(); ++chunk) {
    const std::span<std::byte> to = storage(entry, chunk);
    std::memcpy(to.data(), put.chunks[chunk].data(), to.size());
    if (checksum(to.first(record.chunk_bytes[chunk])) != record.chunk_sums[chunk]) {
      return Error{ErrorCode::kCorrupt, "host body store: the memory is not what its sums say"};
    }
    host_.publish(entry.uid, chunk);
  }
  return {};
}

Result<BodyReadOutcome> HostBodyStore::read(BodyRead& read) {
  const auto at = entries_.find(read.key);
  if (at == entries_.end() || !at->second.stored || at->second.erased) {
    return BodyReadOutcome::kUnknown;
  }
  const BodyRecord& record = *at->second.record;
  const size_t count = record.chunk_bytes.size();
  if (read.chunks.empty() || read.first_chunk > count ||
      read.chunks.size() > count - read.first_chunk) {
    return invalid("no such chunks");
  }
  for (size_t i = 0; i < read.chunks.size(); ++i) {
    if (read.chunks[i].size() != storage_bytes(record.chunk_bytes[read.first_chunk + i])) {
      return invalid("a buffer is not of its chunk's storage size");
    }
  }
  if (transfers_ >= transfers_max_) {
    return BodyReadOutcome::kBusy;
  }
  ++transfers_;
  ++at->second.readers;
  auto shared = std::make_shared<BodyRead>(std::move(read));
  queue([this, shared] {
    --transfers_;
    Entry& entry = entries_.at(shared->key);
    --entry.readers;
    Result<void> result = copy_out(entry, *shared);
    if (entry.erased ? entry.readers == 0 : !result.ok()) {
      drop(shared->key);
    }
    shared->done(std::move(result));
  });
  return BodyReadOutcome::kAccepted;
}

Result<void> HostBodyStore::copy_out(const Entry& entry, const BodyRead& read) {
  const BodyRecord& record = *entry.record;
  bool holds = true;
  for (uint32_t i = 0; i < read.chunks.size(); ++i) {
    const uint32_t chunk = read.first_chunk + i;
    const std::span<std::byte> to = read.chunks[i];
    std::memcpy(to.data(), storage(entry, chunk).data(), to.size());
    holds = holds && checksum(to.first(record.chunk_bytes[chunk])) == record.chunk_sums[chunk];
  }
  if (holds) {
    return {};
  }
  for (const std::span<std::byte>& to : read.chunks) {
    std::memset(to.data(), 0, to.size());
  }
  return Error{ErrorCode::kCorrupt, "host body store: the bytes are not the ones that were put"};
}

BodyReadOutcome HostBodyStore::read_vectors(const Digest& key,
                                            std::function<void(Result<VectorsBlob>)> done) {
  const auto at = entries_.find(key);
  if (at == entries_.end() || !at->second.stored || at->second.erased) {
    return BodyReadOutcome::kUnknown;
  }
  if (transfers_ >= transfers_max_) {
    return BodyReadOutcome::kBusy;
  }
  ++transfers_;
  VectorsBlob blob =
      at->second.vectors ? at->second.vectors : std::make_shared<const std::vector<std::byte>>();
  queue([this, blob = std::move(blob), done = std::move(done)] {
    --transfers_;
    done(blob);
  });
  return BodyReadOutcome::kAccepted;
}

// With reads under way the memory stays until the last of them.
void HostBodyStore::drop(const Digest& key) {
  Entry& entry = entries_.at(key);
  if (entry.readers > 0) {
    entry.stored = false;
    entry.erased = true;
    return;
  }
  free_extents(entry);
  entries_.erase(key);
}

void HostBodyStore::erase(const Digest& key) {
  const auto at = entries_.find(key);
  if (at == entries_.end() || at->second.erased) {
    return;
  }
  if (at->second.stored) {
    drop(key);
  } else {
    at->second.cancelled = true;
  }
}

std::vector<BodyRecordRef> HostBodyStore::records() const {
  std::vector<BodyRecordRef> all;
  for (const auto& [key, entry] : entries_) {
    if (entry.stored) {
      all.push_back(entry.record);
    }
  }
  std::sort(all.begin(), all.end(),
            [](const BodyRecordRef& a, const BodyRecordRef& b) { return a->key < b->key; });
  return all;
}

void HostBodyStore::drain() {
  uint64_t count = 0;
  (void)!::read(wake_.get(), &count, sizeof count);
  std::deque<std::function<void()>> due;
  due.swap(work_);
  for (std::function<void()>& work : due) {
    work();
  }
}

}  // namespace

std::unique_ptr<BodyStore> make_host_body_store(HostStore& host, uint32_t transfers_max) {
  return std::make_unique<HostBodyStore>(host, transfers_max);
}

}  // namespace skv
