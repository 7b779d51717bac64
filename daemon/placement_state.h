#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "daemon/chunk_queue.h"
#include "daemon/leaf_queue.h"
#include "daemon/placement.h"
#include "ipc/types/check.h"
#include "tiers/host_store.h"
#include "tiers/nvme_store.h"

namespace skv {

// The inside of Placement (placement.h), split over placement_*.cc by what is done:
//   placement.cc         turns, spaces, sessions, recovery, the public face
//   placement_put.cc     reservations, commit, cancel, drop, flush
//   placement_chunks.cc  leases, acquire and NeedChunks, reads, withdrawal, giving extents back
//   placement_room.cc    victims on the host, writes to NVMe, eviction from the last tier
//   placement_vectors.cc vectors in memory
//
// Turn: every entry (a public call, a completion of a store) changes state first; when the
// outermost one ends, work that became possible is started and then the callbacks run. So a
// callback finds the state whole and may call back in.
class Placement::State {
 public:
  enum class ChunkState : uint8_t {
    kAbsent = 0,    // no extent
    kReserved = 1,  // extent of an open put
    kLoading = 2,   // a read from NVMe writes the extent
    kResident = 3,
    kLeaving = 4,  // withdrawn from the data thread, its answer is awaited
  };
  struct Chunk {
    uint64_t offset = kNoExtent;
    uint32_t leases = 0;
    ChunkState state = ChunkState::kAbsent;
    Origin origin = Origin::kHost;
    bool wanted_again = false;  // asked for while leaving: announce it again instead of freeing
    bool overdue = false;       // leaving for longer than withdraw_patience_ns
    ChunkQueueNode queue;
  };
  // What host memory holds of one sentence. Exists while there is an extent, a transfer, or a feed
  // of a removed sentence.
  struct Body {
    Sentence* sentence = nullptr;
    Directory::Removed removed;  // owned here once it left the directory
    Digest end_prefix;           // for the record; kept, as the sums, until that is written
    std::vector<ChunkSum> sums;  // by chunk; empty once on_nvme (the record keeps them)
    std::vector<Chunk> chunks;
    std::vector<bool> summed;  // of an open put: chunks that have their sum
    uint32_t extents = 0;
    uint32_t resident = 0;
    uint32_t leases = 0;  // of all chunks
    uint32_t transfers = 0;
    bool write_queued = false;
    bool demote = false;           // room is wanted: its chunks go as soon as it is written
    uint64_t write_failed_at = 0;  // nvme_epoch when NVMe could not take it; kNever: never will
  };
  static constexpr uint64_t kNever = ~uint64_t{0};
  struct ChunkId {
    SentenceUid uid{};
    uint32_t chunk = 0;
    friend bool operator==(const ChunkId&, const ChunkId&) = default;
  };
  struct ChunkIdHash {
    size_t operator()(const ChunkId& id) const {
      return static_cast<size_t>((raw(id.uid) * 0x9E3779B97F4A7C15ULL) ^
                                 (id.chunk * 0xC2B2AE3D27D4EB4FULL));
    }
  };
  // Somebody wants a chunk on the host that is not there.
  struct Want {
    enum class Urgency : uint8_t { kAhead = 0, kWarm = 1, kBackground = 2, kUrgent = 3 };
    Urgency urgency = Urgency::kAhead;
    // It may take room from others, and fails where there is none; the other kinds just give up.
    bool demand() const { return urgency > Urgency::kWarm; }
    bool reading = false;
    bool asked = false;        // by the data thread: it gets an answer
    uint64_t asked_until = 0;  // ns; then the answer is chunk_failed
    std::list<AcquireRequest> requests;
  };
  struct OpenPut {
    PutRequest request;
    std::vector<PutReservation> results;
    SentenceUid current{};  // the one that waits for room; 0: none yet
    uint64_t failed_at_change = 0;
    bool waited = false;
  };
  struct Space {
    uint32_t uid = 0;
    SpaceQuota quota;
    uint64_t nvme_bytes = 0;
  };
  struct Session {
    SessionCharge charge;
    std::unordered_set<SentenceUid> puts;
    std::unordered_map<SentenceUid, uint32_t> sentence_leases;
  };
  struct FlushRun {
    std::unordered_set<SentenceUid> missing;  // not yet written
    std::optional<SpaceId> space;
    Result<void> outcome;
    std::function<void(Result<uint64_t>)> done;
  };
  struct VectorsWait {
    bool reading = false;
    struct Waiter {
      SessionId session{};
      std::function<void(Result<VectorsBlob>)> done;
    };
    std::list<Waiter> waiters;
  };

  State(const PlacementOptions& options_in, const Parts& parts_in)
      : options(options_in), parts(parts_in) {}

  // --- turns (placement.cc)
  class Turn {
   public:
    explicit Turn(State& state) : state_(state) { ++state_.depth; }
    ~Turn() {
      if (--state_.depth == 0) state_.end_of_turn();
    }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

   private:
    State& state_;
  };
  void end_of_turn();
  void pump();
  void later(std::function<void()> callback) { callbacks.push_back(std::move(callback)); }
  // Something may have made room or ended a wait: try again what could not be done.
  void changed() { ++change_count; }

  // --- sentences
  Sentence* stored(SentenceUid uid) const;
  Body* find_body(SentenceUid uid);
  Body& body_of(Sentence& sentence);
  void resident_changed(Body& body);  // body.resident was changed
  void on_stored(Sentence& sentence);
  // Takes it out of the directory, with what is not reachable without it; returns how many went.
  uint32_t remove_sentence(SentenceUid uid);
  void on_removed(Directory::Removed sentence);
  void drop_body_if_idle(SentenceUid uid);
  bool in_use(const Sentence& sentence);  // leased, read, written or waited for
  Session& session_of(SessionId id) { return sessions[id]; }
  void forget_session_if_idle(SessionId id);
  // False: not ours to keep (no root reaches it, no space or model claims it).
  bool recover_one(
      const BodyRecord& record,
      const std::unordered_map<Digest, std::shared_ptr<const Model>, DigestHash>& models,
      const std::unordered_map<uint32_t, SpaceId>& space_of);

  // --- puts (placement_put.cc)
  bool serve_puts();
  enum class Placed : uint8_t { kDone, kWait, kFull };
  Placed place_sentence(OpenPut& put, const Directory::NewSentence& wanted);
  void finish_put(OpenPut& put);
  void flush_progress(SentenceUid uid, const Result<void>& outcome);
  void start_flush(std::optional<SpaceId> space, std::function<void(Result<uint64_t>)> done);
  void finish_flushes();
  uint64_t count_on_nvme(std::optional<SpaceId> space) const;

  // --- chunks (placement_chunks.cc)
  ChunkLease take_lease(Body& body, uint32_t chunk, SessionId session);
  void want(const ChunkId& id, Want::Urgency urgency);
  std::deque<ChunkId>& read_queue(Want::Urgency urgency);
  // The queue whose front is read next; null: nothing may start.
  std::deque<ChunkId>* next_read_queue();
  bool start_reads();
  enum class ReadStart : uint8_t { kStarted, kNoRoom, kBusy, kFailed };
  ReadStart start_read(const ChunkId& id, Want& wanted);
  void on_read(const ChunkId& id, const Result<void>& result);
  void arrived(const ChunkId& id, Body& body);
  void fail_want(const ChunkId& id, const Error& error);
  void fail_wants(const Sentence& sentence, const Error& error);
  // Starts to give back a resident chunk: at once, or after the data thread's answer.
  void give_back(Body& body, uint32_t chunk);
  void free_extent(Body& body, uint32_t chunk);
  void settle_removed(Body& body);
  void expire_wants(uint64_t now);
  void expire_withdrawals(uint64_t now);

  // --- readers without a lease (placement_chunks.cc)
  bool is_read(SentenceUid uid) const {
    return parts.readers != nullptr && parts.readers->reads(uid);
  }
  // True: nobody reads the chunk, and nobody can begin to. Else it stays as it is.
  bool take_from_readers(const ChunkId& id, const Chunk& place);
  // What they read since this was last asked counts as a touch.
  bool collect_touched(Body& body, uint32_t chunk);
  void look_at_readers(uint64_t now);

  // --- room (placement_room.cc)
  // Of the chunk queue's entry, touches up to date; null: it is gone.
  ChunkQueueNode* queue_node(const ChunkQueue::Entry& entry);
  enum class Room : uint8_t { kFreed, kPending, kNone };
  std::optional<HostExtent> allocate(const Sentence& sentence,
                                     uint32_t chunk,
                                     Want::Urgency urgency);
  // Gives back the next to go, if nobody read it since it came and it is on NVMe.
  bool give_back_unread();
  // `only`: from this space (its quota is what is full).
  Room make_room(uint64_t bytes, std::optional<SpaceId> only);
  // What is waited for by now, so that room for it is made at one go: at least `bytes`, at most an
  // eighth of the budget.
  uint64_t room_goal(uint64_t bytes) const;
  bool may_come_free(SessionId asker) const;
  bool can_write() const { return parts.nvme != nullptr && !nvme_read_only; }
  bool write_refused(const Body& body) const {
    return body.write_failed_at == nvme_epoch || body.write_failed_at == kNever;
  }
  bool over_host_quota(SpaceId space, uint64_t bytes) const;
  void request_write(Sentence& sentence, bool demote);
  bool start_writes();
  enum class WriteStart : uint8_t { kStarted, kLater, kFailed };
  WriteStart start_write(Sentence& sentence, Body& body);
  void on_written(SentenceUid uid, const Result<void>& result);
  void write_failed(Sentence& sentence, Body& body, const Error& error);
  void end_of_demotion(Body& body);
  BodyRecord record_of(const Sentence& sentence, const Body& body);
  struct Eviction {
    const Sentence* sparing = nullptr;  // not this one
    std::optional<SpaceId> only = std::nullopt;
    bool holding_host = false;  // one that holds host memory
  };
  // A leaf out of its last tier; false: none may go.
  bool evict_one(const Eviction& wanted);
  // As NVMe's store asks for room ahead of the writes to come: leaves, until about twice the bytes
  // of what is being `written` went out of it.
  void evict_ahead(const Sentence& written);
  void write_behind();
  uint64_t storage(const Sentence& sentence) const { return sentence.shape->storage_bytes(); }

  // --- vectors (placement_vectors.cc)
  void hold_vectors(Sentence& sentence, VectorsBlob vectors);
  void forget_vectors(Sentence& sentence);
  void trim_vectors();
  void start_vectors_reads();
  // On NVMe without the vectors that it has by now.
  static bool vectors_unwritten(const Sentence& sentence) {
    return sentence.on_nvme && sentence.vectors != nullptr && !sentence.vectors_on_nvme;
  }
  void start_vectors_writes();
  void on_vectors(SentenceUid uid, const Result<VectorsBlob>& result);

  PlacementOptions options;
  Parts parts;
  PlacementCounters counters;
  uint64_t now_ns = 0;

  uint32_t depth = 0;
  bool ending = false;
  uint64_t change_count = 1;
  std::deque<std::function<void()>> callbacks;
  std::shared_ptr<State*> alive;  // what completions of the stores hold on to

  std::unordered_map<SpaceId, Space> spaces;
  std::unordered_map<SessionId, Session> sessions;
  std::unordered_map<SentenceUid, Body> bodies;
  ChunkQueue chunk_queue;
  LeafQueue leaf_queue;
  std::list<SentenceUid> waiting_sentences;  // kWaiting, oldest first

  std::list<OpenPut> puts;

  std::unordered_map<ChunkId, Want, ChunkIdHash> wants;
  std::deque<ChunkId> urgent_reads;  // entries without a want, or that became urgent, are stale
  std::deque<ChunkId> background_reads;
  std::deque<ChunkId> ahead_reads;  // best first
  uint32_t reads_in_flight = 0;
  uint32_t background_in_flight = 0;  // those ahead among them
  uint32_t ahead_in_flight = 0;
  uint64_t reads_failed_at_change = 0;
  struct Withdrawal {
    ChunkId id;
    uint64_t since_ns = 0;
  };
  std::deque<Withdrawal> withdrawals;  // oldest first; entries that were answered are stale
  uint64_t leaving_bytes = 0;
  uint64_t overdue_bytes = 0;  // of them: room that nobody should wait for alone

  std::deque<SentenceUid> write_queue;
  std::deque<SentenceUid> dirty_queue;  // stored, perhaps not on NVMe; oldest first
  uint32_t writes_in_flight = 0;
  uint64_t dirty_bytes = 0;     // stored and not on NVMe
  uint64_t demoting_bytes = 0;  // of sentences that will be given back when written
  uint64_t nvme_sentences = 0;
  bool nvme_read_only = false;
  uint64_t nvme_epoch = 1;  // moves when a refused write may fit: an eviction, a lease returned
  bool store_busy = false;  // a store took no more transfers: try again soon

  bool readers_stay = false;                     // a chunk was not given back because of them
  uint64_t readers_seen_ns = 0;                  // look_at_readers()
  std::unordered_set<SentenceUid> read_removed;  // left the directory, and are read still

  uint32_t chunk_leases = 0;
  uint32_t sentence_leases = 0;
  uint64_t vectors_bytes = 0;
  std::deque<SentenceUid> vectors_queue;
  std::unordered_map<SentenceUid, VectorsWait> vectors_waits;
  std::deque<SentenceUid> vectors_writes;            // vectors_unwritten()
  std::unordered_set<SentenceUid> vectors_in_write;  // each a sentence that is written anew
  std::list<FlushRun> flushes;
};

}  // namespace skv
