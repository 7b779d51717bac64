#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <unordered_map>
#include <vector>

#include "tiers/job_runner.h"
#include "tiers/nvme_index.h"
#include "tiers/nvme_log.h"
#include "tiers/nvme_meta.h"
#include "tiers/nvme_recovery.h"
#include "tiers/nvme_store.h"

namespace skv {

// The store behind NvmeStore::open. All state is the loop's; the runner's thread only sees
// DiskJobs.
//
// Life of a put: put() -> waiting_ -> place() gives it a slot of the log -> one write job (header
// and vectors are made on the ring thread), held back until its segment is granted -> put_written()
// makes it live and findable -> its `done` in drain(). Life of a segment: grant() writes the
// header of a new generation and syncs, ahead of need; seal() syncs and writes index and seal;
// review() clears it when nothing in it is live; start_cleaning() copies what is live to the log's
// end.
class NvmeStoreImpl final : public NvmeStore {
 public:
  NvmeStoreImpl(std::unique_ptr<JobRunner> runner, NvmeMeta meta, const Options& options);
  NvmeStoreImpl(const NvmeStoreImpl&) = delete;
  NvmeStoreImpl& operator=(const NvmeStoreImpl&) = delete;
  ~NvmeStoreImpl() override;

  void restore(NvmeRecovery recovery);

  Result<StoreOutcome> put(BodyPut& put) override;
  Result<BodyReadOutcome> read(BodyRead& read) override;
  BodyReadOutcome read_vectors(const Digest& key,
                               std::function<void(Result<VectorsBlob>)> done) override;
  void erase(const Digest& key) override;
  void flush(BodyDone done) override;
  BodyRecordRef find(const Digest& key) const override;
  std::vector<BodyRecordRef> records() const override;
  void drain() override;
  int wake_fd() const override { return runner_->wake_fd(); }
  uint32_t transfers_in_flight() const override { return transfers_; }

  Result<StoreOutcome> put_vectors(const Digest& key,
                                   const IndexDescriptor& index,
                                   VectorsBlob vectors,
                                   BodyDone done) override;
  void purge(std::span<const Digest> keys, BodyDone done) override;
  Result<Digest> space_salt(uint32_t uid) override;
  Result<void> remember_model(const Digest& fingerprint,
                              const std::vector<uint8_t>& descriptor) override;
  std::vector<std::vector<uint8_t>> models() const override { return meta_.models(); }
  uint64_t record_bytes_max() const override { return log_.usable_bytes(); }
  uint64_t erase_ahead_bytes() const override;
  Stats stats() const override;

 private:
  struct Entry {
    BodyRecordRef record;
    nvme::Place place;
    uint64_t bytes = 0;
  };
  // A put from its acceptance to its `done`. The ring thread fills record.vectors_sum while it runs
  // the job; the loop does not look at it meanwhile.
  struct Put {
    BodyPut put;
    Digest key;
    nvme::Place place;
    ChunkSum salt_id;
    uint64_t sequence = 0;
    uint64_t bytes = 0;
    bool cancelled = false;
  };
  using PutRef = std::shared_ptr<Put>;
  struct Flush {
    uint64_t sequence;  // waits for the puts accepted before
    BodyDone done;
  };
  struct Move {
    Digest key;
    uint64_t from = 0;
    uint64_t to = 0;
    uint64_t bytes = 0;
  };
  struct Cleaning {
    uint32_t victim = 0;
    std::vector<Move> moves;
    size_t next = 0;
    uint64_t bytes = 0;  // of moves under way
    bool failed = false;
  };
  // A record that is written anew. `record` is what its header will say; the ring thread fills its
  // vectors_sum.
  struct Copy {
    Digest key;
    nvme::Place from;
    nvme::Place to;
    uint64_t bytes = 0;
    std::shared_ptr<BodyRecord> record;
    VectorsBlob vectors;  // in place of those it has; null: they stay
    BodyDone ended;       // kCancelled: it was erased or moved meanwhile
  };
  using CopyRef = std::shared_ptr<Copy>;
  struct PurgeRun {
    std::vector<BodyDone> done;
    size_t writes_left = 0;
    Result<void> result;
  };
  using SyncDone = std::function<void(const Result<void>&)>;

  // nvme_store.cc
  void submit(std::unique_ptr<DiskJob> job);
  void take(std::unique_ptr<DiskJob> job);
  void later(std::function<void()> done);
  void end_transfer(std::function<void()> done);
  void finish_put(const PutRef& put, Result<void> result);
  void place_waiting();
  void write_put(const PutRef& put, const NvmeLog::Place& place);
  void put_written(const PutRef& put, const DiskJob& job);
  std::unique_ptr<DiskJob> read_job(const Entry& entry, uint64_t from_record, bool urgent);
  void read_ended(const Digest& key, const nvme::Place& place, const DiskJob& job);
  void drop_record(const Digest& key);
  void run_flushes();
  void collect_and_take();  // blocks until a job has ended
  void shut_down();

  // nvme_segments.cc
  void request_sync(SyncDone done);
  void start_sync();
  void set_read_only(const std::string& why);
  std::optional<NvmeLog::Place> allocate(uint64_t bytes, const Digest& key, uint32_t reserve);
  void grant(uint32_t segment);
  void submit_into(uint32_t segment, std::unique_ptr<DiskJob> job);
  void granted(uint32_t segment, const Result<void>& result);
  void seal(uint32_t segment);
  void write_index(uint32_t segment, std::function<void(uint64_t index_bytes)> done);
  void review(uint32_t segment);
  void clear(uint32_t segment);
  void cleared(uint32_t segment, bool ok);
  void write_failed(uint32_t segment);

  // nvme_copy.cc
  bool start_cleaning(uint64_t gain_min);
  void clean_next();
  void copy_record(const CopyRef& copy, const Entry& entry);
  void copy_written(const CopyRef& copy, const DiskJob& job);

  // nvme_purge.cc
  void start_purge();
  void purge_written(PurgeRun& run, const Result<void>& result);
  void wait_for_tables();
  uint64_t next_record_number() { return (meta_.open_count() << 32) + ++record_count_; }

  Options options_;
  NvmeMeta meta_;
  NvmeLog log_;
  std::unique_ptr<JobRunner> runner_;
  Stats stats_;

  std::unordered_map<Digest, Entry, DigestHash> index_;
  std::unordered_map<Digest, PutRef, DigestHash> pending_;
  uint64_t pending_bytes_ = 0;
  std::deque<PutRef> waiting_;  // accepted, not yet placed in the log
  uint64_t waiting_bytes_ = 0;
  std::set<uint64_t> put_sequences_;  // of accepted puts that are not done
  uint64_t next_sequence_ = 1;
  std::deque<Flush> flushes_;
  uint32_t transfers_ = 0;
  uint64_t record_count_ = 0;
  uint64_t generation_count_ = 0;

  std::map<uint32_t, std::vector<std::unique_ptr<DiskJob>>> ungranted_;  // held back, by segment
  std::vector<SyncDone> sync_waiting_;
  bool syncing_ = false;
  std::optional<Cleaning> cleaning_;
  std::vector<BodyDone> purges_waiting_;
  bool purge_writing_ = false;
  uint32_t write_failures_ = 0;  // in a row
  bool shutting_down_ = false;
  uint64_t jobs_ = 0;  // at the runner

  std::vector<std::function<void()>> ready_;  // user callbacks that are due
  std::vector<std::unique_ptr<DiskJob>> collected_;
};

}  // namespace skv
