#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "client/deadline.h"
#include "ipc/identity/model.h"
#include "ipc/layout/body_layout.h"
#include "ipc/layout/channel.h"
#include "ipc/layout/feed.h"
#include "ipc/shared_memory.h"
#include "ipc/types/result.h"
#include "kernels/head_ranker.h"
#include "kernels/kept_reads.h"
#include "kernels/rank_pages.h"
#include "kernels/recall.h"
#include "kernels/window_tables.h"

namespace skv::client {

// What one prefetch came to.
struct Ranked {
  uint64_t version = 0;
  uint32_t covered_to = 0;  // tokens
  uint32_t hits_host = 0;   // blocks
  uint32_t hits_nvme = 0;
  uint32_t misses = 0;
  uint32_t read_blocks = 0;
  uint32_t ranked_heads = 0;  // PrefetchRow::ranked_heads
  float unread_mass = 0.0F;   // mean over (layer, head)
  struct Spent {
    uint32_t rank_ns = 0;
    uint32_t cut_ns = 0;
    uint32_t write_ns = 0;  // tables
  } spent;
};

// A window that ranks in the thread that asks: vectors of the context, and where its blocks lie in
// host memory, are read from what the daemon shares; tables are written here. No message goes to
// the daemon while all that is wanted is in host memory.
//
// Steady state  no allocation, no lock, no system call: scratch is the thread's and grows to the
//               largest context it has ranked. Threads that prefetch on one window at once wait for
//               each other.
// Thread        any.
// Owns          its picture of the feed, copied as it grows. Shares the mappings.
// Errors        kBusy: readers_done is too far behind. kCorrupt: the feed does not hold together.
//               kTimeout: sentences that replies promised are not laid out in time.
class Ranker {
 public:
  // Chunks that are wanted in host memory. `wait`: until all of them came or the daemon's deadline
  // of deadline_us has passed; host_page and origin are set, and what came is leased for `version`.
  // Else the daemon is told, and nothing is waited for.
  struct Wanted {
    uint32_t sentence = 0;
    uint32_t chunk = 0;
    uint32_t host_page = 0;
    uint8_t origin = 0;
  };
  struct FillOptions {
    uint64_t version = 0;
    bool wait = false;
    uint32_t deadline_us = 0;
    Deadline deadline;  // of the call
  };
  using Fill = std::function<Result<void>(std::span<Wanted>, const FillOptions&)>;
  struct Parts {
    const ModelDescriptor* model = nullptr;  // outlives it, as `body` does
    const BodyLayout* body = nullptr;
    IndexDescriptor index;
    WindowShape shape;
    std::shared_ptr<MappedMemory> tables;
    std::shared_ptr<MappedMemory> feed;     // read-only
    std::shared_ptr<MappedMemory> vectors;  // read-only
    std::shared_ptr<MappedMemory> host;     // read-only
    Fill fill;
  };
  static Result<std::unique_ptr<Ranker>> create(Parts parts);

  struct Request {
    LayerRange layers;
    const float* query = nullptr;  // fp32 [layer of the range][query head][k_dim]
    bool wait = false;             // cold = wait
    uint32_t deadline_us = 0;      // of that
    Deadline deadline;             // of the call
  };
  Result<Ranked> prefetch(const Request& request);

 private:
  explicit Ranker(Parts parts);

  Result<void> follow_feed(Deadline deadline);
  Result<void> take_sentences(uint32_t count);
  Result<Ranked> work(const Request& request);
  // One head into its layer's table; absent blocks get kNoSlot.
  void write_head(uint32_t layer, uint32_t head, const ReadSet& read, const TableArrays& to);
  // Where the first block of a sentence lies, for one (layer, head): slot units of the host tier.
  struct HeadPlace {
    HeadPlace(const Ranker& ranker, uint32_t layer, uint32_t head);
    // kNoSlot: not in host memory.
    uint32_t first_slot(const RankSentence& span, uint32_t host_page) const;
    uint32_t chunk, block_units, page_units, head_units;
    uint64_t host_units;
  };
  Result<void> fill_absent(const Request& request, uint64_t version);
  template <typename Use>
  void each_entry(LayerRange layers, Use&& use);
  void add_recall(const RecallCounts& counts);
  void publish(LayerRange layers, uint64_t version, Ranked& result);
  const FeedHeader& feed_header() const;
  // By sentence: in units of 4 KiB, plus 1; 0: not in host memory.
  const std::atomic<uint32_t>* host_pages_of(uint32_t chunk) const;

  Parts parts_;
  WindowLayout layout_;
  RankPageLayout pages_layout_;
  FeedLayout feed_at_{};
  uint32_t capacity_ = 0;
  WindowTables tables_;
  enum Busy : uint32_t { kFree, kBusy, kAwaited };  // by one thread; others wait for it
  std::atomic<uint32_t> busy_{kFree};

  // The feed, as far as it was taken: private copies.
  std::vector<RankSentence> sentences_;
  std::vector<const std::byte*> pages_;
  uint32_t end_block_ = 0;

  uint64_t version_ = 0;  // last published
  // Of the prefetch under way, per (layer, head) of the window.
  struct HeadDone {
    uint32_t count = 0;
    uint32_t absent = 0;
    float unread_mass = 0.0F;
  };
  std::vector<HeadDone> heads_;
  KeptReads kept_reads_;
  std::vector<Wanted> wanted_;
  std::unordered_map<uint64_t, uint64_t> asked_;  // chunks, by the version that asked last
  Ranked::Spent spent_;
};

}  // namespace skv::client
