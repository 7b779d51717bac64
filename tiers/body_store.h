#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "ipc/identity/model.h"
#include "ipc/types/ids.h"
#include "ipc/types/result.h"
#include "tiers/checksum.h"

namespace skv {

// The semantic vectors of one sentence (ipc/layout/vectors.h). Immutable; empty: none stored.
using VectorsBlob = std::shared_ptr<const std::vector<std::byte>>;

// What a store knows of one sentence besides its bytes. All of it is in the record's header on
// disk, so that the directory can be rebuilt from the records alone.
//
// Units  positions and counts in tokens; sizes in bytes, without the gap that rounds a chunk's
//        storage up to 4 KiB.
struct BodyRecord {
  Digest key;              // sentence key: names the record
  uint32_t space_uid = 0;  // whose space; its salt is in the store's space table
  Digest fingerprint;      // of the model
  Digest parent_boundary;  // boundary key at first_position
  Digest end_boundary;     // boundary key at first_position + token_count
  Digest end_digest;       // P(end)
  uint32_t first_position = 0;
  uint32_t token_count = 0;
  IndexDescriptor index;       // of the stored vectors
  uint32_t vectors_bytes = 0;  // 0: no vectors stored
  ChunkSum vectors_sum;        // filled by the store
  std::vector<uint64_t> chunk_bytes;
  std::vector<ChunkSum> chunk_sums;  // of chunk_bytes each; computed where the body was written
  friend bool operator==(const BodyRecord&, const BodyRecord&) = default;
};
using BodyRecordRef = std::shared_ptr<const BodyRecord>;

inline constexpr uint32_t kRecordChunksMax = 256;  // one per layer at most
inline constexpr uint32_t kRecordVectorsBytesMax = 1u << 28;

// Bytes that a chunk or a vectors blob takes in a store.
constexpr uint64_t storage_bytes(uint64_t bytes) { return (bytes + 4095) / 4096 * 4096; }

using BodyDone = std::function<void(Result<void>)>;

// Stores one whole sentence. chunks[i] is the storage of chunk i: address a multiple of 4 KiB,
// length storage_bytes(record.chunk_bytes[i]); what is in the gap is stored but means nothing.
struct BodyPut {
  BodyRecord record;
  VectorsBlob vectors;  // null: none
  std::vector<std::span<const std::byte>> chunks;
  BodyDone done;
};

// Reads chunks [first_chunk, first_chunk + chunks.size()). chunks[i]: address a multiple of 4 KiB,
// length storage_bytes() of that chunk.
struct BodyRead {
  Digest key;
  uint32_t first_chunk = 0;
  std::vector<std::span<std::byte>> chunks;
  bool urgent = true;  // a demand read goes ahead of writes and of reads that nobody waits for
  BodyDone done;
};

enum class StoreOutcome : uint8_t {
  kAccepted = 0,
  kFull = 1,      // live data leaves no room: erase something, then try again
  kExists = 2,    // the key is stored, or a put of it is in flight
  kBusy = 3,      // transfers_max in flight: try again after drain()
  kReadOnly = 4,  // a flush failed: the store takes no more writes until it is opened again
};
enum class BodyReadOutcome : uint8_t {
  kAccepted = 0,
  kUnknown = 1,  // a miss
  kBusy = 3,
};

// Keeps sentence bodies in one colder tier: host memory or NVMe.
//
// A body store knows keys, bytes and checksums. It knows nothing of sessions, leases or placement;
// daemon/ decides those. Every store passes tests/conformance/body_store_conformance.h.
//
// Shape   a body is the chunks of ipc/layout/body_layout.h. A chunk is read and verified whole.
// Units   bytes; chunk ranges are half open.
// Limits  transfers_max transfers in flight, beyond: kBusy.
// Thread  loop thread, all of it. Transfers run on the store's own thread; `done` runs on the loop
//         thread inside drain(), never from inside put(), read() or erase(). `done` may call the
//         store.
// Owns    its memory or file. Borrows spans and buffers of a transfer until its `done` runs; one
//         that is destroyed waits for its transfers and drops their `done` uncalled.
// Errors  reach `done`: kIo (of a put: it is not found; after a restart it may be, whole), kCorrupt
//         (the record is dropped: the next read does not find it; the buffers were zeroed),
//         kNoSpace (accepted, but room could not be made: as kFull), kCancelled (put: the key was
//         erased meanwhile). The outcomes above are not errors.
// Source  docs/architecture.md "Tiers", docs/on-disk-format.md.
class BodyStore {
 public:
  BodyStore() = default;
  virtual ~BodyStore() = default;
  BodyStore(const BodyStore&) = delete;
  BodyStore& operator=(const BodyStore&) = delete;

  // `put` is moved from only if kAccepted. Until `done` says ok the key is not found. Error:
  // kTooLarge (the record can never be stored here; the message names both sizes), kInvalidArgument
  // (sizes of record and chunks do not fit each other).
  virtual Result<StoreOutcome> put(BodyPut& put) = 0;
  // Moved from only if kAccepted. Error: kInvalidArgument (range or a buffer's size).
  virtual Result<BodyReadOutcome> read(BodyRead& read) = 0;
  // The vectors blob, verified. An empty blob if the record has none.
  virtual BodyReadOutcome read_vectors(const Digest& key,
                                       std::function<void(Result<VectorsBlob>)> done) = 0;
  // Unknown keys are ignored. Reads in flight end as they would have; a put in flight ends
  // kCancelled. Not durable: a record that was erased may be back after a restart (with its own
  // bytes).
  virtual void erase(const Digest& key) = 0;
  // After this `done` everything that was put and whose `done` said ok before is as durable as this
  // store gets.
  virtual void flush(BodyDone done) = 0;

  virtual BodyRecordRef find(const Digest& key) const = 0;  // null: not stored
  virtual std::vector<BodyRecordRef> records() const = 0;   // ascending by key

  // Runs the `done` of what has completed. wake_fd() is an eventfd, readable when there is
  // something to drain; owned by the store.
  virtual void drain() = 0;
  virtual int wake_fd() const = 0;
  virtual uint32_t transfers_in_flight() const = 0;
};

}  // namespace skv
