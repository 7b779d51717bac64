#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "daemon/data/data_messages.h"
#include "daemon/data/residency.h"
#include "daemon/data/window.h"
#include "ipc/layout/channel.h"
#include "tiers/slot_pool.h"

namespace skv {

struct ChunkRefHash {
  size_t operator()(const ChunkRef& chunk) const {
    return static_cast<size_t>(raw(chunk.uid) * 0x9E3779B97F4A7C15ULL + chunk.chunk);
  }
};

// One row of a submission as the data thread took it: all of it is a private copy.
struct PrefetchRequest {
  ChannelId channel{};
  uint64_t submission = 0;  // of the channel
  uint32_t row = 0;         // of the submission
  LayerRange layers;
  bool waits = false;    // cold = wait
  bool guesses = false;  // moves, and publishes nothing
  std::vector<float> query;
  uint64_t taken_ns = 0;
};

enum class EntryState : uint8_t {
  kResident,  // in its slot already
  kMoving,    // its move is queued or under way
  kWaiting,   // its chunk is not on the host
  kInPlace,   // `none`: read in the arena, leased
  kAbsent,    // unread: a miss
};

// The read set of one (layer, head) on its way into a table.
struct HeadPlan {
  std::vector<uint32_t> blocks;
  std::vector<uint32_t> sentences;
  std::vector<float> scores;
  std::vector<uint32_t> slots;  // of the resident set; `none`: units of the arena
  std::vector<EntryState> states;
  std::vector<Origin> origins;
  uint32_t waiting = 0;  // entries
  float unread_mass = 0.0F;

  void resize(size_t count) {
    blocks.resize(count);
    sentences.resize(count);
    scores.resize(count);
    slots.resize(count);
    states.resize(count);
    origins.resize(count);
  }
  void clear() {
    resize(0);
    waiting = 0;
    unread_mass = 0.0F;
  }
};

// One prefetch from its entry to its completion. State only: PrefetchRunner works it.
struct Prefetch {
  enum class Stage : uint8_t {
    kQueued,   // its window works on an earlier one, or its feed still grows
    kRank,     // head by head: rank, cut, where its blocks lie, its part of the table
    kMove,     // until moves and chunks are there, or the deadline
    kPublish,  // what of the tables had to wait; then they are current, and the completion
    kAborted,  // only waits for its moves in flight
    kDone,
  };
  // One block of one head: where an arriving chunk goes.
  struct Place {
    uint32_t head = 0;  // index into heads
    uint32_t layer = 0;
    uint32_t kv_head = 0;
    uint32_t entry = 0;
  };
  struct PendingMove {
    SlotPool::Move move;
    ExtentLease lease;
  };

  PrefetchRequest request;
  std::shared_ptr<Window> window;
  Stage stage = Stage::kQueued;
  uint64_t turn = 0;  // when it was last worked

  uint64_t version = 0;         // that it will publish
  uint32_t sentence_count = 0;  // of the feed, when it began
  uint32_t end_block = 0;
  uint64_t deadline_ns = 0;

  // One (layer, head) of the range after the other.
  struct Cursor {
    uint32_t layer = 0;
    uint32_t kv_head = 0;
    size_t head = 0;  // index into heads
  };
  Cursor ranking;           // where it goes on
  Cursor writing;           // the first head that is in no table yet
  uint32_t entries = 0;     // of the layer that is being written
  uint32_t publishing = 0;  // layer
  size_t published_heads = 0;
  size_t query_at = 0;            // floats
  bool pool_full = false;         // submit again after a batch ended
  bool silent = false;            // its client is gone: no completion
  PrefetchRow result{};           // counts, while it publishes
  float unread_mass = 0.0F;       // sum over heads
  std::vector<HeadPlan> plans;    // as many as it ever had
  std::span<HeadPlan> heads;      // of plans: [layer of the range][kv head]
  std::deque<PendingMove> moves;  // not submitted yet
  uint32_t batches_in_flight = 0;
  std::unordered_map<ChunkRef, std::vector<Place>, ChunkRefHash> waiting;
  std::vector<ExtentLease> in_place;  // `none`: leases to publish
  std::vector<ChunkRef> from_nvme;    // host hits from now on
  std::optional<ErrorCode> failed;
  uint64_t bytes_moved = 0;
  uint64_t rank_ns = 0;
  uint64_t cut_ns = 0;
  uint64_t write_ns = 0;

  // As new, but for the memory it has taken.
  void reset() {
    window = nullptr;
    stage = Stage::kQueued;
    turn = 0;
    version = 0;
    sentence_count = end_block = 0;
    deadline_ns = 0;
    ranking = writing = {};
    entries = publishing = 0;
    published_heads = query_at = 0;
    pool_full = silent = false;
    result = {};
    unread_mass = 0.0F;
    heads = {};
    moves.clear();
    batches_in_flight = 0;
    waiting.clear();
    in_place.clear();
    from_nvme.clear();
    failed.reset();
    bytes_moved = rank_ns = cut_ns = write_ns = 0;
  }

  LayerRange layers() const { return request.layers; }
  bool waits() const { return request.waits; }
};

}  // namespace skv
