#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "daemon/data/data_messages.h"
#include "daemon/directory.h"
#include "ipc/layout/window.h"
#include "ipc/messages.h"
#include "ipc/types/ids.h"
#include "ipc/types/result.h"

namespace skv {

class HostStore;
class NvmeStore;

// What placement tells the owner of the windows (the data thread, by commands; a fake in tests).
// Only of sentences with a feed (Placement::add_feed). Called from inside calls into Placement:
// post a command, call nothing back.
class ResidencyListener {
 public:
  virtual ~ResidencyListener() = default;
  // The chunk is in host memory at this offset of the space's arena and stays until withdrawn.
  virtual void chunk_arrived(SentenceUid uid, uint32_t chunk, uint64_t offset, Origin origin) = 0;
  // It will not come: kCorrupt, kIo, kNoSpace, kNotFound.
  virtual void chunk_failed(SentenceUid uid, uint32_t chunk, ErrorCode code) = 0;
  // Placement wants it back: answer with Placement::withdraw_done(), once nothing reads it. Every
  // withdraw is answered exactly once, also if the feed is gone by then.
  virtual void withdraw(SentenceUid uid, uint32_t chunk) = 0;
};

// Clients that read chunks in host memory without asking each time (LeaseMaps; null: there are
// none). Called from inside calls into Placement: call nothing back.
class HostReaders {
 public:
  virtual ~HostReaders() = default;
  // The chunk is in host memory at this offset: clients may begin to read it there.
  virtual void show(SentenceUid uid, uint32_t chunk, uint64_t host_offset) = 0;
  // Nobody may begin to read it any more. True: and nobody who began does still, so it may go.
  virtual bool hide(SentenceUid uid, uint32_t chunk) = 0;
  // As hide() would answer now. The chunk, and any chunk of the sentence.
  virtual bool reads(SentenceUid uid, uint32_t chunk) const = 0;
  virtual bool reads(SentenceUid uid) const = 0;
  // Somebody has read it since this was last asked.
  virtual bool take_touched(SentenceUid uid, uint32_t chunk) = 0;
  // It has left the directory, and host memory holds nothing of it.
  virtual void forget(SentenceUid uid) = 0;
};

// The right to read (of a sentence that is being put: to write) one chunk in host memory.
struct ChunkLease {
  SentenceUid uid{};
  SessionId session{};
  uint32_t chunk = 0;
  uint32_t bytes = 0;             // without the gap after it
  uint64_t host_offset = 0;       // in the space's arena
  Origin origin = Origin::kHost;  // kNvme: it was promoted for this lease
};

struct PlacementOptions {
  uint64_t vectors_bytes = 0;         // vectors kept in memory although no window uses them
  uint32_t reads_max = 16;            // chunk reads from NVMe in flight
  uint32_t writes_max = 4;            // sentence writes to NVMe in flight
  uint32_t background_reads_max = 8;  // of reads_max, for what nobody waits for
  uint32_t ahead_reads_max = 4;       // of those, for what nobody has asked for yet
  uint32_t ahead_queue_max = 256;     // chunks to be read ahead that wait
  uint64_t need_ns = 10'000'000'000;  // need_chunks() is answered within this, with a failure
  uint64_t withdraw_patience_ns = 20'000'000;  // then others are asked to make the room
  uint64_t readers_poll_ns = 10'000'000;       // how often HostReaders are asked again
};

// Bytes, 0: the tier's budget alone.
struct SpaceQuota {
  uint64_t host_bytes = 0;
  uint64_t nvme_bytes = 0;
};

struct PlacementCounters {
  uint64_t promotions = 0;  // chunks read from NVMe into host memory
  uint64_t promoted_bytes = 0;
  uint64_t promotion_failures = 0;
  uint64_t demotions = 0;  // chunks whose host extent was given back while NVMe keeps them
  uint64_t demoted_bytes = 0;
  uint64_t nvme_writes = 0;  // sentences
  uint64_t nvme_write_bytes = 0;
  uint64_t nvme_write_failures = 0;
  uint64_t evictions_host = 0;  // sentences that left the last tier, and why
  uint64_t evictions_nvme = 0;
  uint64_t evictions_corrupt = 0;
  uint64_t evictions_unreachable = 0;  // with a corrupt ancestor
  uint64_t dropped = 0;
  uint64_t read_ahead = 0;  // chunks read before anybody asked for them
  uint64_t read_ahead_bytes = 0;
  uint64_t read_ahead_refused = 0;  // no room for them, or too many
  uint64_t host_hits = 0;           // chunks asked for and found
  uint64_t nvme_hits = 0;
  uint64_t chunk_misses = 0;  // asked for and in no tier
  uint64_t reserves_full = 0;
  uint64_t reserve_waits = 0;  // reservations that had to wait for room
  uint64_t vectors_read = 0;
  uint64_t vectors_dropped = 0;
  uint64_t vectors_written = 0;  // to a sentence that was on NVMe already
  uint64_t recovered = 0;
  uint64_t recovered_unreachable = 0;
};

struct PlacementUsage {
  uint64_t host_bytes = 0;  // extents: reserved, resident and leaving
  uint64_t nvme_sentences = 0;
  uint64_t vectors_bytes = 0;  // in memory
  uint32_t chunk_leases = 0;
  uint32_t sentence_leases = 0;
  uint32_t reads_in_flight = 0;
  uint32_t writes_in_flight = 0;
  uint32_t waiting = 0;  // reservations and promotions without room yet
};

// Of one session; all zero once it is gone.
struct SessionCharge {
  uint32_t chunk_leases = 0;
  uint32_t sentence_leases = 0;
  uint32_t open_puts = 0;  // reserved or waiting sentences
  uint32_t requests = 0;   // acquire(), get_vectors(), put_reserve() not yet answered
  bool zero() const { return chunk_leases + sentence_leases + open_puts + requests == 0; }
};

// Decides where bodies are: promote, demote, evict over the host and NVMe stores.
//
// The unit on the host is a chunk, on NVMe a sentence. A chunk leaves the host only when its
// sentence is on NVMe (written first, whole) or leaves the directory. The order is S3-FIFO: chunks
// on the host, sentences out of the last tier, there leaves only, so that every stored sentence
// stays reachable from its root. What is leased, or read by HostReaders, is never taken; what the
// data thread knows is withdrawn first. Work ahead of need keeps some room free (write-behind above
// a watermark).
//
// Thread  loop. Callbacks run on it, and may run before the call that asked returns, always last:
//         the caller may call back in.
// Owns    every host extent and the sentences that left the directory while still in use.
// Limits  PlacementOptions; waiting reservations end at their deadline with kFull.
// Errors  a full tier, a miss: outcomes. kIo and kCorrupt of a read reach the one who asked.
class Placement final : public Directory::LeafWatcher {
 public:
  struct Parts {
    Directory* directory = nullptr;
    HostStore* host = nullptr;
    NvmeStore* nvme = nullptr;  // null: no NVMe tier
    ResidencyListener* residency = nullptr;
    HostReaders* readers = nullptr;  // null: every reader has a lease
  };
  Placement(const PlacementOptions& options, const Parts& parts);
  ~Placement() override;
  Placement(const Placement&) = delete;
  Placement& operator=(const Placement&) = delete;

  // Before anything else of that space. `uid` names it in the records of the NVMe store. Error: the
  // host store cannot make its arena.
  Result<void> add_space(SpaceId space, uint32_t uid, const SpaceQuota& quota);

  // --- Put ---------------------------------------------------------------------------------------
  struct PutReservation {
    PutOutcome outcome = PutOutcome::kFull;  // kReserved, kExists, kPending, kFull
    SentenceUid uid{};                       // 0 if kFull
  };
  struct PutRequest {
    SessionId session{};
    uint64_t deadline_ns = 0;  // absolute, of the clock given to poll()
    std::vector<Directory::NewSentence> sentences;
    std::function<void(std::vector<PutReservation>)> done;
  };
  // Reserves extents for all chunks of each sentence, in order. Makes room if it must; once one
  // finds none until the deadline (or nothing can come free), it and all later ones are kFull.
  void put_reserve(PutRequest request);
  // The sum of a chunk all of whose layers are written. Again if it is written again.
  void chunk_written(SentenceUid uid, uint32_t chunk, const ChunkSum& sum);
  // kCommitted, kIncomplete (a chunk has no sum), kNotReserved. `vectors` may be null.
  PutOutcome put_commit(SessionId session, SentenceUid uid, VectorsBlob vectors);
  // kCancelled, kNotReserved. Extents go back when their leases are gone.
  PutOutcome put_cancel(SessionId session, SentenceUid uid);

  // --- Vectors -----------------------------------------------------------------------------------
  // For a stored sentence that has none. kBusy if it has some already of another index.
  Result<void> set_vectors(SentenceUid uid, const IndexDescriptor& index, VectorsBlob vectors);
  // From memory or NVMe. kNotFound: no such sentence, or it has none.
  void get_vectors(SessionId session,
                   SentenceUid uid,
                   std::function<void(Result<VectorsBlob>)> done);

  // --- Chunks ------------------------------------------------------------------------------------
  struct AcquireRequest {
    SessionId session{};
    SentenceUid uid{};
    uint32_t chunk = 0;
    bool urgent = true;
    uint64_t deadline_ns = 0;
    std::function<void(Result<ChunkLease>)> done;  // kTimeout, kNotFound, kIo, kCorrupt, kNoSpace
  };
  // Promotes if needed, then leases.
  void acquire(AcquireRequest request);
  // Chunks [first_chunk, + count) at once or not at all, appended to `leases`: each resident, or
  // reserved by this session (to write). Not promoted.
  bool lease(SessionId session,
             SentenceUid uid,
             uint32_t first_chunk,
             uint32_t count,
             std::vector<ChunkLease>& leases);
  void release(const ChunkLease& lease) { release({&lease, 1}); }
  // In one turn: what waits for room is looked at once.
  void release(std::span<const ChunkLease> leases);

  // Events of the data thread.
  void need_chunks(SentenceUid uid, std::span<const uint32_t> chunks, bool urgent);
  // Towards the host, behind all others, and only into room that is free or that a chunk holds
  // which nobody read since it came. Dropped where there is none.
  void read_ahead(SentenceUid uid, uint32_t chunk);
  void withdraw_done(SentenceUid uid, uint32_t chunk);

  // All chunks of a sentence towards the host, when there is room (window_open).
  void warm(SentenceUid uid);
  // Sentences were used (a path by match, window_open or load; Touched of the data thread).
  void touch(std::span<const SentenceUid> path);
  // Per chunk, for FeedSentence; kNoExtent where it is not resident or about to go. Empty: unknown
  // sentence. Call add_feed() in the same turn.
  std::vector<HostChunk> host_chunks(SentenceUid uid) const;
  // The extents of a sentence that this session is putting (or of any that is resident), by chunk.
  std::vector<uint64_t> extents(SentenceUid uid) const;

  struct TierTokens {
    uint32_t host = 0;  // whole body in host memory
    uint32_t nvme = 0;  // some chunk only on NVMe
  };
  TierTokens tier_tokens(std::span<const SentenceUid> path) const;

  // --- Sentences ---------------------------------------------------------------------------------
  // Keeps a stored sentence from leaving the last tier. False if it is not there. Its chunks may
  // still move between the tiers.
  bool lease_sentence(SessionId session, SentenceUid uid);
  // Nothing, if end_session() has returned it.
  void release_sentence(SessionId session, SentenceUid uid);
  // The data thread was told of this sentence (FeedSentence) / has forgotten it. While it has a
  // feed, ResidencyListener hears of its chunks and each is withdrawn before it is freed.
  void add_feed(SentenceUid uid);
  void remove_feed(SentenceUid uid);

  struct DropOutcome {
    uint32_t dropped = 0;
    uint32_t kept = 0;  // leased, or another stored path needs it
  };
  // Of these keys (a context's sentences, in order), from the last to the first. They are gone when
  // this returns; `done` runs when no restart can bring them back either. kIo, kNoSpace: one could.
  void drop(std::span<const Digest> keys, std::function<void(Result<DropOutcome>)> done);

  // All stored sentences of the space durably on NVMe; answers how many are. kUnsupported without
  // an NVMe tier. kIo: the store failed.
  void flush(SpaceId space, std::function<void(Result<uint64_t>)> done);
  // The same for every space; for the drain at SIGTERM.
  void flush_all(std::function<void(Result<uint64_t>)> done);

  // --- Sessions ----------------------------------------------------------------------------------
  // Cancels its puts and waiting requests (their callbacks are dropped) and returns its sentence
  // leases. Chunk leases of copy tasks that still run are returned by release().
  void end_session(SessionId session);
  SessionCharge charge(SessionId session) const;

  // --- Life --------------------------------------------------------------------------------------
  // Rebuilds the directory from what the NVMe store recovered, and erases there what no root
  // reaches or no space claims. After add_space() of every space that has records, before anything
  // else. Space by the uid in the record.
  void recover();
  // Deadlines, write-behind. Every few milliseconds while next_deadline_ns() is set, and after
  // store completions were delivered.
  void poll(uint64_t now_ns);
  uint64_t next_deadline_ns() const;  // 0: none

  const PlacementCounters& counters() const;
  PlacementUsage usage() const;

  void removable_changed(Sentence& sentence) override;

 private:
  class State;
  std::unique_ptr<State> state_;
};

}  // namespace skv
