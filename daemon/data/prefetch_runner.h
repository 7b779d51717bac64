#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <unordered_map>
#include <vector>

#include "daemon/data/fair_turns.h"
#include "daemon/data/prefetch.h"
#include "daemon/data/read_ahead.h"
#include "daemon/data/statistics.h"
#include "kernels/head_ranker.h"
#include "kernels/recall.h"

namespace skv {

// Works prefetches: rank, cut, difference, moves, tables, completion. One per window at a time, in
// the order they came.
//
// A head's part of its table is written as soon as it is known where its blocks lie, while all that
// is needed for it is at hand; a table becomes current when all of it is there.
//
// Turns   go to the session that was worked least, by the clock (FairTurns); inside it to the
//         prefetch that waited longest. A turn is kTurnNs and the unit that is being done (one
//         (layer, kv head), one layer's tables): so a session with many or large prefetches takes
//         half of the time from another, not more.
//
// A guess ends where the others publish: what it moved lies in slots, first to be given up again,
// and the prefetch that confirms it finds it there.
//
// A prefetch publishes all its layers or none: when a slot or a buffer that it needs may still be
// read it completes kBusy, and what it had assigned is forgotten.
//
// A prefetch that finds everything in its slots allocates nothing once one of its size has been
// served, takes no lock and makes no system call.
//
// Thread  data thread.
class PrefetchRunner {
 public:
  struct Hooks {
    std::function<uint64_t()> now_ns;
    std::function<PoolTicket()> next_ticket;
    std::function<void(const Prefetch&)> complete;  // `result` and the times are final
    std::function<void(SpaceId, const ChunkRef&, bool urgent)> ask;
    uint32_t recall_every = 0;          // RecallSampler::due
    std::function<bool()> interrupted;  // something came that may be more urgent
  };
  PrefetchRunner(Hooks hooks, SlotPool& pool, Residency& residency, DataCounters& counters)
      : hooks_(std::move(hooks)),
        pool_(pool),
        residency_(residency),
        counters_(counters),
        ahead_(residency) {}

  // A prefetch whose request the caller fills in before the next call, validated against the
  // window.
  PrefetchRequest& add(std::shared_ptr<Window> window, uint64_t deadline_ns);

  // A turn, then more until the slice ends, it is interrupted or nothing can go on. True: there is
  // more to do at once.
  bool run(uint64_t slice_end_ns);
  // When something has to be done though nothing happened; UINT64_MAX: never.
  uint64_t next_deadline_ns() const;

  static constexpr uint64_t kTurnNs = 50'000;

  void chunk_arrived(const ChunkRef& chunk);
  void chunk_failed(const ChunkRef& chunk);
  // False: not a ticket of a batch.
  bool batch_done(PoolTicket ticket, const Result<void>& status);
  // Ends those of a window: no completion (`status` kOk) or with that status. Moves in flight are
  // waited for; idle(window) tells when the last one has ended.
  void abort(const Window& window, ErrorCode status);
  bool idle(const Window& window) const;

  size_t count() const { return prefetches_.size(); }
  bool moving() const { return !batches_.empty(); }
  // Chunks that the prefetches since the last call had below their cuts.
  std::vector<ChunkRef> take_ahead() { return ahead_.take(hooks_.now_ns()); }

 private:
  struct Batch {
    Prefetch* prefetch = nullptr;
    std::vector<ExtentLease> leases;
  };

  Prefetch* next_turn();
  bool runnable(const Prefetch& prefetch) const;
  void work(Prefetch& prefetch, uint64_t slice_end_ns);
  void begin(Prefetch& prefetch);
  void rank_head(Prefetch& prefetch);
  void place_head(Prefetch& prefetch, const ReadSet& read);
  void place_in_slots(Prefetch& prefetch, HeadPlan& plan);
  void place_in_host(Prefetch& prefetch, HeadPlan& plan);
  // Heads before `end` into their tables, as far as it is known where their blocks lie.
  static void write_heads(Prefetch& prefetch, size_t end);
  static void read_in_place(Prefetch& prefetch, const Prefetch::Place& place, const Extent& extent);
  // The chunk is leased: queues the move into the entry's slot, or reads it in place.
  void fill(Prefetch& prefetch, const Prefetch::Place& place, ExtentLease lease);
  // The chunk is not on the host. False: the entry is a miss.
  ExtentLease lease_again(const Prefetch& prefetch, const ChunkRef& chunk);
  bool ask_for(Prefetch& prefetch, const ChunkRef& chunk);
  static void wait_for(Prefetch& prefetch,
                       HeadPlan& plan,
                       const ChunkRef& chunk,
                       const Prefetch::Place& place);
  static void give_up(Prefetch& prefetch, const Prefetch::Place& place);
  static void next_head(const Prefetch& prefetch, Prefetch::Cursor& cursor);
  void move(Prefetch& prefetch);
  void submit_moves(Prefetch& prefetch);
  void publish_layer(Prefetch& prefetch);
  static void write_head(Prefetch& prefetch, const Prefetch::Cursor& at, const TableArrays& to);
  void complete(Prefetch& prefetch);
  void complete_guess(Prefetch& prefetch);
  static void take_out_absent(Prefetch& prefetch, HeadPlan& plan);
  static void count(Prefetch& prefetch, const HeadPlan& plan);
  void counted(Prefetch& prefetch);
  void fail(Prefetch& prefetch, ErrorCode status);
  void roll_back(Prefetch& prefetch);
  void finish(Prefetch& prefetch);
  void put_away();

  // From the start of its chunk.
  static uint64_t block_offset(const Prefetch& prefetch, const Prefetch::Place& place);
  static uint32_t heads_of(const Prefetch& prefetch, uint32_t layer);

  Hooks hooks_;
  SlotPool& pool_;
  Residency& residency_;
  DataCounters& counters_;
  std::vector<std::unique_ptr<Prefetch>> prefetches_;  // in order of arrival
  std::vector<std::unique_ptr<Prefetch>> spare_;       // done, kept for their memory
  FairTurns fair_{0};  // what one may save, the others' prefetches would wait for
  uint64_t turns_ = 0;
  std::unordered_map<uint64_t, Batch> batches_;  // by ticket
  HeadRanker ranker_;
  RecallSampler recall_;
  ReadAhead ahead_;
  std::vector<SlotPool::Move> batch_moves_;
};

}  // namespace skv
