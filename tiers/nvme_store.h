#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tiers/body_store.h"

namespace skv {

class Disk;

// Bodies in one file (docs/on-disk-format.md, format version 0): an append log of whole-sentence
// records in segments, read by chunk. Only stores, reads, erases, and cleans segments; what to keep
// is the loop's decision. A restart brings back all that was flushed.
//
// Limits  one process per file (flock). A record fits one segment. transfers_max in flight.
// Thread  loop thread. Disk work and checksums run on the store's ring thread, which owns the
// io_uring
//         (or, where that is refused, feeds a thread pool). open(), space_salt() and
//         remember_model() block on the disk: at start-up, and once per space and model ever.
// Errors  as BodyStore. After a failed flush the store is read-only until it is opened again.
class NvmeStore : public BodyStore {
 public:
  NvmeStore() = default;
  NvmeStore(const NvmeStore&) = delete;
  NvmeStore& operator=(const NvmeStore&) = delete;

  enum class Backend : uint8_t { kAuto = 0, kUring = 1, kThreads = 2 };

  struct Options {
    uint64_t file_bytes = 0;  // length of the file; fixed when the store is created
    // Power of two, 1 MiB..1 GiB; fixed likewise. 0: as the store has it; a new one gets as much as
    // fits 16 times, at most 64 MiB.
    uint64_t segment_bytes = 0;
    uint32_t transfers_max = 256;  // puts, reads and vectors reads in flight
    // At the disk: requests, and the bytes of demand reads (others get less, DiskEngine). 16 MiB
    // are 2 ms of a fast drive.
    uint32_t queue_depth = 128;
    uint64_t queue_bytes = 16u << 20;
    uint32_t pool_threads = 4;  // of the thread pool backend
    Backend backend = Backend::kAuto;
    bool verify_before_write = true;  // sums of a put are checked before it goes to the disk
    std::function<void(uint32_t percent)> progress;  // of recovery, on the thread that calls open()
  };

  struct Stats {
    std::string backend;     // "io_uring", "threads", "simulated"
    bool direct = false;     // O_DIRECT in use
    bool read_only = false;  // a flush failed
    uint64_t file_bytes = 0;
    uint64_t capacity_bytes = 0;  // of all segments, for records
    uint64_t live_bytes = 0;      // storage of records that can be read
    uint64_t record_count = 0;
    uint32_t segment_count = 0;
    uint32_t clean_segments = 0;
    uint64_t written_bytes = 0;  // to the disk, records and their copies
    uint64_t read_bytes = 0;
    uint64_t cleaned_segments = 0;
    uint64_t copied_records = 0;  // by cleaning
    uint64_t copied_bytes = 0;
    uint64_t corrupt_records = 0;  // dropped after a failed verification
    uint64_t io_errors = 0;
    uint64_t recovered_records = 0;
    uint64_t indexed_segments = 0;  // at open: their records came from their index
    uint64_t skipped_records = 0;   // at open: torn, flipped or of an unknown space
    uint64_t purges = 0;            // keys that are kept away
  };

  // Opens `path`, or creates it where it does not exist or is empty. Error: kBusy (another process
  // has it), kStale (other size, segment size or a newer format), kCorrupt (no usable superblock),
  // kInvalidArgument (options, or not a store); every message says what to do.
  static Result<std::unique_ptr<NvmeStore>> open(const std::string& path, const Options& options);
  // The same on a disk given (a simulated one). No thread: the disk is worked inside drain().
  static Result<std::unique_ptr<NvmeStore>> open(std::unique_ptr<Disk> disk,
                                                 const Options& options);

  ~NvmeStore() override;

  // For a stored record that has no vectors, or others: writes it anew with these. `done`
  // kCancelled: it was erased or moved meanwhile; try again. kFull, kBusy, kReadOnly: as put().
  // Error: kNotFound, kTooLarge.
  virtual Result<StoreOutcome> put_vectors(const Digest& key,
                                           const IndexDescriptor& index,
                                           VectorsBlob vectors,
                                           BodyDone done) = 0;
  // Erases these, durably once `done` says ok: no restart brings them back, unless they are put
  // again. Also of keys that are not stored (any more): what an eviction left in the file.
  virtual void purge(std::span<const Digest> keys, BodyDone done) = 0;

  // The salt of a space, by the uid that names it: random, made on first use, durable before it is
  // returned. Blocks. Records of a space are found again only with the salt they were put under.
  virtual Result<Digest> space_salt(uint32_t uid) = 0;
  // Keeps encode(ModelDescriptor) with the data, durable on return, so that a store explains
  // itself. Does nothing if it is known. Blocks.
  virtual Result<void> remember_model(const Digest& fingerprint,
                                      const std::vector<uint8_t>& descriptor) = 0;
  virtual std::vector<std::vector<uint8_t>> models() const = 0;

  // What one record takes of a segment, and the most it may take.
  static uint64_t record_bytes(const std::vector<uint64_t>& chunk_bytes, uint64_t vectors_bytes);
  virtual uint64_t record_bytes_max() const = 0;

  // Bytes of stored records to erase by now, so that puts go on at the disk's speed: beyond, they
  // wait for segments to be cleared, and at last are kFull. What is being put counts as stored.
  virtual uint64_t erase_ahead_bytes() const = 0;

  virtual Stats stats() const = 0;
};

}  // namespace skv
