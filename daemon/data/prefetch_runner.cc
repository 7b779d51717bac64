#include "daemon/data/prefetch_runner.h"

#include <algorithm>
#include <utility>

#include "ipc/types/check.h"

namespace skv {

using Stage = Prefetch::Stage;

namespace {
constexpr size_t kBatchMoves = 4096;
constexpr size_t kEarlyMoves = 512;  // fewer wait for the rest of the prefetch
}  // namespace

// ---- bookkeeping --------------------------------------------------------------------------------

PrefetchRequest& PrefetchRunner::add(std::shared_ptr<Window> window, uint64_t deadline_ns) {
  if (spare_.empty()) spare_.push_back(std::make_unique<Prefetch>());
  prefetches_.push_back(std::move(spare_.back()));
  spare_.pop_back();
  Prefetch& prefetch = *prefetches_.back();
  prefetch.window = std::move(window);
  prefetch.deadline_ns = deadline_ns;
  return prefetch.request;
}

bool PrefetchRunner::runnable(const Prefetch& prefetch) const {
  switch (prefetch.stage) {
    case Stage::kQueued:
      return prefetch.window->active == nullptr && !prefetch.window->feed().pending();
    case Stage::kRank:
    case Stage::kPublish:
      return true;
    case Stage::kMove:
      if (!prefetch.moves.empty()) return !prefetch.pool_full;
      if (prefetch.batches_in_flight > 0) return false;
      return prefetch.waiting.empty() || hooks_.now_ns() >= prefetch.deadline_ns;
    case Stage::kAborted:
    case Stage::kDone:
      return false;
  }
  return false;
}

bool PrefetchRunner::run(uint64_t slice_end_ns) {
  // In order of arrival, so that the prefetches of one window keep theirs.
  for (const std::unique_ptr<Prefetch>& each : prefetches_) {
    if (each->stage == Stage::kQueued && runnable(*each)) begin(*each);
  }
  for (Prefetch* turn = next_turn(); turn != nullptr; turn = next_turn()) {
    const SessionId session = turn->window->options().session;  // a finished one has no window
    const uint64_t begun_ns = hooks_.now_ns();
    work(*turn, std::min(slice_end_ns, begun_ns + kTurnNs));
    const uint64_t now_ns = hooks_.now_ns();
    fair_.serve(session, now_ns - begun_ns);
    turn->turn = ++turns_;
    if (now_ns >= slice_end_ns || hooks_.interrupted()) break;
  }
  put_away();
  return std::any_of(prefetches_.begin(), prefetches_.end(),
                     [&](const auto& each) { return runnable(*each); });
}

// Those that are done, for the next ones; more than a few are given back.
void PrefetchRunner::put_away() {
  constexpr size_t kSpareMax = 64;
  size_t kept = 0;
  for (std::unique_ptr<Prefetch>& each : prefetches_) {
    if (each->stage != Stage::kDone) {
      if (&prefetches_[kept] != &each) prefetches_[kept] = std::move(each);
      ++kept;
      continue;
    }
    each->reset();
    if (spare_.size() < kSpareMax) {
      spare_.push_back(std::move(each));
    } else {
      each.reset();
    }
  }
  prefetches_.resize(kept);
}

Prefetch* PrefetchRunner::next_turn() {
  Prefetch* next = nullptr;
  uint64_t least = 0;
  for (const std::unique_ptr<Prefetch>& each : prefetches_) {
    if (each->stage == Stage::kQueued || !runnable(*each)) continue;
    const uint64_t served = fair_.served(each->window->options().session);
    const bool first =
        next == nullptr || served < least || (served == least && each->turn < next->turn);
    if (!first) continue;
    next = each.get();
    least = served;
  }
  if (next != nullptr) fair_.chosen(next->window->options().session);
  return next;
}

void PrefetchRunner::work(Prefetch& prefetch, uint64_t slice_end_ns) {
  while (runnable(prefetch)) {
    switch (prefetch.stage) {
      case Stage::kRank:
        rank_head(prefetch);
        break;
      case Stage::kMove:
        move(prefetch);
        break;
      case Stage::kPublish:
        publish_layer(prefetch);
        break;
      default:
        return;
    }
    if (hooks_.now_ns() >= slice_end_ns) return;
  }
}

uint64_t PrefetchRunner::next_deadline_ns() const {
  uint64_t next = UINT64_MAX;
  for (const std::unique_ptr<Prefetch>& each : prefetches_) {
    if (each->stage == Stage::kMove && !each->waiting.empty()) {
      next = std::min(next, each->deadline_ns);
    }
  }
  return next;
}

bool PrefetchRunner::idle(const Window& window) const {
  return std::none_of(prefetches_.begin(), prefetches_.end(), [&](const auto& each) {
    return each->window.get() == &window && each->stage != Stage::kDone;
  });
}

uint32_t PrefetchRunner::heads_of(const Prefetch& prefetch, uint32_t layer) {
  return prefetch.window->feed().layout().kv_heads(layer);
}

uint64_t PrefetchRunner::block_offset(const Prefetch& prefetch, const Prefetch::Place& place) {
  Feed& feed = prefetch.window->feed();
  const HeadPlan& plan = prefetch.heads[place.head];
  const SentenceSpan span = feed.span(plan.sentences[place.entry]);
  return feed.layout().block_offset(place.layer, place.kv_head,
                                    plan.blocks[place.entry] - span.first_block, span.block_count);
}

void PrefetchRunner::next_head(const Prefetch& prefetch, Prefetch::Cursor& cursor) {
  ++cursor.head;
  if (++cursor.kv_head < heads_of(prefetch, cursor.layer)) return;
  cursor.kv_head = 0;
  ++cursor.layer;
}

// ---- rank ---------------------------------------------------------------------------------------

void PrefetchRunner::begin(Prefetch& prefetch) {
  Window& window = *prefetch.window;
  window.active = &prefetch;
  if (window.state != Window::State::kOpen) return fail(prefetch, ErrorCode::kStale);
  window.release_read();
  const uint64_t readers_done = window.readers_done();
  const LayerRange layers = prefetch.layers();
  uint32_t heads = 0;
  for (uint32_t layer = layers.first; layer < layers.end(); ++layer) {
    if (!prefetch.request.guesses && !window.buffer_is_free(layer, readers_done)) {
      return fail(prefetch, ErrorCode::kBusy);
    }
    heads += heads_of(prefetch, layer);
  }
  prefetch.version = window.version() + 1;
  prefetch.sentence_count = window.feed().sentence_count();
  prefetch.end_block = window.feed().end_block();
  prefetch.ranking.layer = prefetch.writing.layer = prefetch.publishing = layers.first;
  if (prefetch.plans.size() < heads) prefetch.plans.resize(heads);
  prefetch.heads = std::span(prefetch.plans).first(heads);
  for (HeadPlan& plan : prefetch.heads) plan.clear();
  prefetch.stage = prefetch.end_block > 0 ? Stage::kRank : Stage::kMove;
}

void PrefetchRunner::rank_head(Prefetch& prefetch) {
  const uint64_t start_ns = hooks_.now_ns();
  Window& window = *prefetch.window;
  Feed& feed = window.feed();
  const uint32_t layer_index = prefetch.ranking.layer;
  const uint32_t kv_head = prefetch.ranking.kv_head;
  const WindowShape& shape = window.layout().shape();
  const LayerDescriptor& layer = feed.model()->descriptor.layers[layer_index];
  const uint32_t head = window.layout().resident_set(layer_index, kv_head);
  const std::span<const float> queries =
      std::span(prefetch.request.query)
          .subspan(prefetch.query_at, size_t{layer.queries_per_kv_head} * layer.k_dim);
  prefetch.query_at += queries.size();
  KeptReads& kept_reads = window.kept_reads();
  const ReadSet* kept = prefetch.request.guesses
                            ? nullptr
                            : kept_reads.find(head, queries, layer.k_dim, prefetch.end_block);
  if (kept != nullptr) {
    prefetch.rank_ns += hooks_.now_ns() - start_ns;
    place_head(prefetch, *kept);
    return;
  }
  const RankView view = feed.view(layer_index, kv_head, prefetch.sentence_count);
  const CutOptions options = shape.cut_options(head);
  const RankResult ranked = ranker_.rank(view, layer, queries.data(), shape, options);
  const uint64_t ranked_ns = hooks_.now_ns();
  // Arrives during the cut; ranking would have driven it out of the caches.
  if (!window.slots_in_host()) window.resident(layer_index, kv_head).warm();
  const ReadSet read = ranker_.cut(ranked, options);
  const uint64_t cut_ns = hooks_.now_ns();
  prefetch.rank_ns += ranked_ns - start_ns;
  prefetch.cut_ns += cut_ns - ranked_ns;
  if (recall_.due(hooks_.recall_every, ranked)) {
    counters_.add_recall(
        recall_.compare({view, layer, queries.data(), shape, options}, ranked, read));
  }
  ahead_.collect(feed, layer_index, ranked, options, read.blocks);
  if (!prefetch.request.guesses) {
    kept_reads.keep(head, queries, layer.k_dim, prefetch.end_block, read);
  }
  ++prefetch.result.ranked_heads;
  place_head(prefetch, read);
}

// ---- place --------------------------------------------------------------------------------------

void PrefetchRunner::place_head(Prefetch& prefetch, const ReadSet& read) {
  const uint64_t start_ns = hooks_.now_ns();
  HeadPlan& plan = prefetch.heads[prefetch.ranking.head];
  plan.blocks.assign(read.blocks.begin(), read.blocks.end());
  plan.sentences.assign(read.sentences.begin(), read.sentences.end());
  plan.scores.assign(read.scores.begin(), read.scores.end());
  plan.unread_mass = read.unread_mass;
  plan.slots.assign(plan.blocks.size(), kNoSlot);
  plan.states.assign(plan.blocks.size(), EntryState::kAbsent);
  plan.origins.assign(plan.blocks.size(), Origin::kDevice);
  if (prefetch.window->slots_in_host()) {
    place_in_host(prefetch, plan);
  } else {
    place_in_slots(prefetch, plan);
  }
  if (prefetch.stage != Stage::kRank) return;  // busy
  next_head(prefetch, prefetch.ranking);
  if (!prefetch.request.guesses) write_heads(prefetch, prefetch.ranking.head);
  if (prefetch.ranking.head == prefetch.heads.size()) prefetch.stage = Stage::kMove;
  // Copied while the next heads are ranked.
  if (prefetch.moves.size() >= kEarlyMoves && !prefetch.pool_full) submit_moves(prefetch);
  prefetch.write_ns += hooks_.now_ns() - start_ns;
}

namespace {

using Way = Residency::Way;
constexpr Way kWays[] = {Way::kSentence, Way::kChunk, Way::kExtent};

}  // namespace

void PrefetchRunner::place_in_slots(Prefetch& prefetch, HeadPlan& plan) {
  Window& window = *prefetch.window;
  const Prefetch::Cursor at = prefetch.ranking;
  ResidentSet& resident = window.resident(at.layer, at.kv_head);
  const Difference difference =
      resident.difference(plan.blocks, prefetch.version, window.readers_done());
  for (size_t i = 0; i < plan.blocks.size(); ++i) {
    plan.slots[i] = difference.slots[i];
    if (plan.slots[i] != kNoSlot) plan.states[i] = EntryState::kResident;
  }
  size_t victim = 0;
  Feed& feed = window.feed();
  const uint32_t index = feed.layout().chunk_of(at.layer);
  for (const Way way : kWays) {
    for (const uint32_t entry : difference.misses) {
      Residency::warm(feed.resident(plan.sentences[entry]), index, way);
    }
  }
  for (const uint32_t entry : difference.misses) {
    const Prefetch::Place place{static_cast<uint32_t>(at.head), at.layer, at.kv_head, entry};
    const uint32_t sentence = plan.sentences[entry];
    const ChunkRef chunk{feed.uid(sentence), index};
    ExtentLease lease = residency_.lease(feed.resident(sentence), index);
    if (!lease && !ask_for(prefetch, chunk)) continue;
    if (victim == difference.victims.size()) return fail(prefetch, ErrorCode::kBusy);
    plan.slots[entry] = difference.victims[victim++];
    resident.assign(plan.slots[entry], plan.blocks[entry]);
    if (lease) {
      fill(prefetch, place, std::move(lease));
    } else {
      wait_for(prefetch, plan, chunk, place);
    }
  }
}

void PrefetchRunner::place_in_host(Prefetch& prefetch, HeadPlan& plan) {
  const Prefetch::Cursor at = prefetch.ranking;
  Feed& feed = prefetch.window->feed();
  const uint32_t index = feed.layout().chunk_of(at.layer);
  for (const Way way : kWays) {
    for (const uint32_t sentence : plan.sentences) {
      Residency::warm(feed.resident(sentence), index, way);
    }
  }
  for (uint32_t entry = 0; entry < plan.blocks.size(); ++entry) {
    const Prefetch::Place place{static_cast<uint32_t>(at.head), at.layer, at.kv_head, entry};
    const uint32_t sentence = plan.sentences[entry];
    if (entry > 0 && sentence == plan.sentences[entry - 1] &&
        plan.states[entry - 1] == EntryState::kInPlace) {
      read_in_place(prefetch, place, *prefetch.in_place.back());  // one lease for all its blocks
      continue;
    }
    ExtentLease lease = residency_.lease(feed.resident(sentence), index);
    const ChunkRef chunk{feed.uid(sentence), index};
    if (!lease) lease = lease_again(prefetch, chunk);
    if (lease) {
      fill(prefetch, place, std::move(lease));
    } else if (ask_for(prefetch, chunk)) {
      wait_for(prefetch, plan, chunk, place);
    }
  }
}

// A chunk that is being withdrawn, but not before this prefetch lets go of it.
ExtentLease PrefetchRunner::lease_again(const Prefetch& prefetch, const ChunkRef& chunk) {
  if (!residency_.withdrawals_wait()) return {};
  for (const ExtentLease& lease : prefetch.in_place) {
    if (lease->chunk == chunk) return residency_.lease_again(lease);
  }
  return {};
}

bool PrefetchRunner::ask_for(Prefetch& prefetch, const ChunkRef& chunk) {
  hooks_.ask(prefetch.window->feed().space(), chunk, prefetch.waits());
  return prefetch.waits();
}

void PrefetchRunner::wait_for(Prefetch& prefetch,
                              HeadPlan& plan,
                              const ChunkRef& chunk,
                              const Prefetch::Place& place) {
  plan.states[place.entry] = EntryState::kWaiting;
  ++plan.waiting;
  prefetch.waiting[chunk].push_back(place);
}

void PrefetchRunner::read_in_place(Prefetch& prefetch,
                                   const Prefetch::Place& place,
                                   const Extent& extent) {
  HeadPlan& plan = prefetch.heads[place.head];
  const uint64_t from = extent.offset + block_offset(prefetch, place);
  plan.origins[place.entry] = extent.origin;
  plan.slots[place.entry] = static_cast<uint32_t>(from / prefetch.window->slot_unit_bytes());
  plan.states[place.entry] = EntryState::kInPlace;
}

void PrefetchRunner::fill(Prefetch& prefetch, const Prefetch::Place& place, ExtentLease lease) {
  Window& window = *prefetch.window;
  HeadPlan& plan = prefetch.heads[place.head];
  if (lease->origin == Origin::kNvme &&
      (prefetch.from_nvme.empty() || !(prefetch.from_nvme.back() == lease->chunk))) {
    prefetch.from_nvme.push_back(lease->chunk);
  }
  if (window.slots_in_host()) {
    read_in_place(prefetch, place, *lease);
    prefetch.in_place.push_back(std::move(lease));
    return;
  }
  const uint64_t from = lease->offset + block_offset(prefetch, place);
  plan.origins[place.entry] = lease->origin;
  const uint64_t to = window.slot_offset(place.layer, place.kv_head, plan.slots[place.entry]);
  plan.states[place.entry] = EntryState::kMoving;
  prefetch.moves.push_back(
      {{from, to, window.feed().layout().block_bytes(place.layer)}, std::move(lease)});
}

void PrefetchRunner::give_up(Prefetch& prefetch, const Prefetch::Place& place) {
  HeadPlan& plan = prefetch.heads[place.head];
  --plan.waiting;
  if (!prefetch.window->slots_in_host()) {
    prefetch.window->resident(place.layer, place.kv_head).forget(plan.slots[place.entry]);
  }
  plan.slots[place.entry] = kNoSlot;
  plan.states[place.entry] = EntryState::kAbsent;
}

// ---- move ---------------------------------------------------------------------------------------

void PrefetchRunner::chunk_arrived(const ChunkRef& chunk) {
  for (const std::unique_ptr<Prefetch>& each : prefetches_) {
    auto waiting = each->waiting.extract(chunk);
    if (waiting.empty()) continue;
    for (const Prefetch::Place& place : waiting.mapped()) {
      ExtentLease lease = residency_.lease(chunk);
      SKV_CHECK(lease, "an arrived chunk of a fed sentence is resident");
      --each->heads[place.head].waiting;
      fill(*each, place, std::move(lease));
    }
  }
}

void PrefetchRunner::chunk_failed(const ChunkRef& chunk) {
  for (const std::unique_ptr<Prefetch>& each : prefetches_) {
    auto waiting = each->waiting.extract(chunk);
    if (waiting.empty()) continue;
    for (const Prefetch::Place& place : waiting.mapped()) give_up(*each, place);
  }
}

void PrefetchRunner::move(Prefetch& prefetch) {
  if (prefetch.failed) return fail(prefetch, *prefetch.failed);
  if (!prefetch.moves.empty()) return submit_moves(prefetch);
  for (const auto& [chunk, places] : prefetch.waiting) {  // the deadline has passed
    for (const Prefetch::Place& place : places) give_up(prefetch, place);
  }
  prefetch.waiting.clear();
  prefetch.stage = Stage::kPublish;
  if (prefetch.request.guesses) complete_guess(prefetch);
}

void PrefetchRunner::submit_moves(Prefetch& prefetch) {
  const size_t wanted = std::min(prefetch.moves.size(), kBatchMoves);
  batch_moves_.clear();
  for (size_t i = 0; i < wanted; ++i) batch_moves_.push_back(prefetch.moves[i].move);
  const PoolTicket ticket = hooks_.next_ticket();
  const size_t taken =
      pool_.submit(ticket, prefetch.window->feed().space(), prefetch.window->slab, batch_moves_);
  prefetch.pool_full = taken < wanted;
  if (taken == 0) return;
  Batch batch;
  batch.prefetch = &prefetch;
  for (size_t i = 0; i < taken; ++i) {
    prefetch.bytes_moved += prefetch.moves.front().move.bytes;
    batch.leases.push_back(std::move(prefetch.moves.front().lease));
    prefetch.moves.pop_front();
  }
  batches_.emplace(raw(ticket), std::move(batch));
  ++prefetch.batches_in_flight;
}

bool PrefetchRunner::batch_done(PoolTicket ticket, const Result<void>& status) {
  auto found = batches_.extract(raw(ticket));
  if (found.empty()) return false;
  Prefetch& prefetch = *found.mapped().prefetch;
  --prefetch.batches_in_flight;
  for (const std::unique_ptr<Prefetch>& each : prefetches_) each->pool_full = false;
  if (!status.ok()) prefetch.failed = status.error().code;
  if (prefetch.batches_in_flight == 0 && (prefetch.failed || prefetch.stage == Stage::kAborted)) {
    fail(prefetch, prefetch.failed.value_or(ErrorCode::kCancelled));
  }
  return true;
}

}  // namespace skv
