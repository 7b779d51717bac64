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

ChunkRef PrefetchRunner::chunk_of(const Prefetch& prefetch, uint32_t layer, uint32_t sentence) {
  Feed& feed = prefetch.window->feed();
  return {feed.uid(sentence), feed.layout().chunk_of(layer)};
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
  const ReadSet* kept = kept_reads.find(head, queries, layer.k_dim, prefetch.end_block);
  if (kept != nullptr && !prefetch.request.guesses) {
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
  for (const uint32_t entry : difference.misses) {
    const Prefetch::Place place{static_cast<uint32_t>(at.head), at.layer, at.kv_head, entry};
    const ChunkRef chunk = chunk_of(prefetch, at.layer, plan.sentences[entry]);
    ExtentLease lease = residency_.lease(chunk);
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
  for (uint32_t entry = 0; entry < plan.blocks.size(); ++entry) {
    const Prefetch::Place place{static_cast<uint32_t>(at.head), at.layer, at.kv_head, entry};
    const ChunkRef chunk = chunk_of(prefetch, at.layer, plan.sentences[entry]);
    ExtentLease lease = residency_.lease(chunk);
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

void PrefetchRunner::fill(Prefetch& prefetch, const Prefetch::Place& place, ExtentLease lease) {
  Window& window = *prefetch.window;
  HeadPlan& plan = prefetch.heads[place.head];
  const uint64_t from = lease->offset + block_offset(prefetch, place);
  plan.origins[place.entry] = lease->origin;
  if (lease->origin == Origin::kNvme &&
      (prefetch.from_nvme.empty() || !(prefetch.from_nvme.back() == lease->chunk))) {
    prefetch.from_nvme.push_back(lease->chunk);
  }
  if (window.slots_in_host()) {
    plan.slots[place.entry] = static_cast<uint32_t>(from / window.slot_unit_bytes());
    plan.states[place.entry] = EntryState::kInPlace;
    prefetch.in_place.push_back(std::move(lease));
    return;
  }
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

// ---- publish ------------------------------------------------------------------------------------

void PrefetchRunner::publish_layer(Prefetch& prefetch) {
  const uint64_t start_ns = hooks_.now_ns();
  Window& window = *prefetch.window;
  const uint32_t layer = prefetch.publishing++;
  const uint32_t heads = heads_of(prefetch, layer);
  write_heads(prefetch, prefetch.published_heads + heads);
  uint32_t entries = 0;
  float unread_mass = 0.0F;
  for (uint32_t kv_head = 0; kv_head < heads; ++kv_head) {
    HeadPlan& plan = prefetch.heads[prefetch.published_heads++];
    if (!window.slots_in_host()) {
      ResidentSet& resident = window.resident(layer, kv_head);
      for (size_t i = 0; i < plan.states.size(); ++i) {
        if (plan.states[i] != EntryState::kMoving) continue;
        resident.arrived(plan.slots[i]);
        plan.states[i] = EntryState::kResident;
      }
      // What is in the table is not forgotten any more, whatever becomes of this prefetch.
      resident.publish(prefetch.version, plan.slots);
    }
    entries += static_cast<uint32_t>(plan.blocks.size());
    unread_mass += plan.unread_mass;
  }
  prefetch.unread_mass += unread_mass;
  prefetch.result.read_blocks += entries;
  prefetch.result.covered_to = prefetch.end_block * window.feed().layout().block_tokens();
  window.publish(layer, {prefetch.version, prefetch.result.covered_to, entries,
                         unread_mass / static_cast<float>(heads)});
  prefetch.write_ns += hooks_.now_ns() - start_ns;
  if (prefetch.publishing == prefetch.layers().end()) complete(prefetch);
}

void PrefetchRunner::write_heads(Prefetch& prefetch, size_t end) {
  for (Prefetch::Cursor& at = prefetch.writing; at.head < end;) {
    if (prefetch.heads[at.head].waiting > 0) return;
    const TableArrays table = prefetch.window->buffer(at.layer);
    if (at.kv_head == 0) table.indptr[0] = prefetch.entries = 0;
    write_head(prefetch, at, table.from(prefetch.entries));
    prefetch.entries += static_cast<uint32_t>(prefetch.heads[at.head].blocks.size());
    table.indptr[at.kv_head + 1] = prefetch.entries;
    next_head(prefetch, at);
  }
}

// All that is there of one head, into the arrays of its layer's table.
void PrefetchRunner::write_head(Prefetch& prefetch,
                                const Prefetch::Cursor& at,
                                const TableArrays& to) {
  Window& window = *prefetch.window;
  HeadPlan& plan = prefetch.heads[at.head];
  take_out_absent(prefetch, plan);
  count(prefetch, plan);
  const size_t size = plan.blocks.size();
  std::copy_n(plan.blocks.data(), size, to.block);
  std::copy_n(plan.sentences.data(), size, to.sentence);
  std::copy_n(plan.scores.data(), size, to.score);
  std::transform(plan.origins.begin(), plan.origins.end(), to.origin,
                 [](Origin origin) { return static_cast<uint8_t>(origin); });
  uint32_t touched = UINT32_MAX;
  for (const uint32_t sentence : plan.sentences) {
    if (sentence != touched) window.feed().touch(sentence);
    touched = sentence;
  }
  if (window.slots_in_host()) {
    std::copy_n(plan.slots.data(), size, to.slot);
  } else {
    const WindowLayout& layout = window.layout();
    const uint32_t first = layout.slot_index(at.layer, at.kv_head, 0);
    const uint32_t step = layout.body().block_bytes(at.layer) / layout.slot_unit_bytes();
    for (size_t i = 0; i < size; ++i) to.slot[i] = first + plan.slots[i] * step;
  }
}

// Slots that were filled stay filled; no table names them yet.
void PrefetchRunner::complete_guess(Prefetch& prefetch) {
  Window& window = *prefetch.window;
  size_t at = 0;
  for (uint32_t layer = prefetch.layers().first; layer < prefetch.layers().end(); ++layer) {
    for (uint32_t kv_head = 0; kv_head < heads_of(prefetch, layer); ++kv_head, ++at) {
      HeadPlan& plan = prefetch.heads[at];
      for (size_t i = 0; i < plan.blocks.size(); ++i) {
        if (plan.states[i] == EntryState::kMoving) {
          window.resident(layer, kv_head).arrived(plan.slots[i]);
        }
      }
      take_out_absent(prefetch, plan);
      count(prefetch, plan);
      prefetch.unread_mass += plan.unread_mass;
    }
  }
  prefetch.in_place.clear();
  prefetch.result.covered_to = prefetch.end_block * window.feed().layout().block_tokens();
  counted(prefetch);
}

// Misses are in no table; what they would have weighed is unread.
void PrefetchRunner::take_out_absent(Prefetch& prefetch, HeadPlan& plan) {
  const auto first = std::find(plan.states.begin(), plan.states.end(), EntryState::kAbsent);
  auto kept = static_cast<size_t>(first - plan.states.begin());
  for (size_t i = kept; i < plan.states.size(); ++i) {
    if (plan.states[i] == EntryState::kAbsent) {
      plan.unread_mass += plan.scores[i];
      ++prefetch.result.misses;
      continue;
    }
    plan.blocks[kept] = plan.blocks[i];
    plan.sentences[kept] = plan.sentences[i];
    plan.scores[kept] = plan.scores[i];
    plan.slots[kept] = plan.slots[i];
    plan.states[kept] = plan.states[i];
    plan.origins[kept] = plan.origins[i];
    ++kept;
  }
  // Relative scores may say more than there is.
  plan.unread_mass = std::min(plan.unread_mass, 1.0F);
  plan.resize(kept);
}

// Where its hits were.
void PrefetchRunner::count(Prefetch& prefetch, const HeadPlan& plan) {
  const auto in = [&](Origin origin) {
    return static_cast<uint32_t>(std::count(plan.origins.begin(), plan.origins.end(), origin));
  };
  const uint32_t host = in(Origin::kHost);
  const uint32_t nvme = in(Origin::kNvme);
  prefetch.result.hits_host += host;
  prefetch.result.hits_nvme += nvme;
  prefetch.result.hits_device += static_cast<uint32_t>(plan.origins.size()) - host - nvme;
}

void PrefetchRunner::complete(Prefetch& prefetch) {
  prefetch.window->published(prefetch.version, prefetch.in_place);
  prefetch.result.version = prefetch.version;
  counted(prefetch);
}

void PrefetchRunner::counted(Prefetch& prefetch) {
  for (const ChunkRef& chunk : prefetch.from_nvme) residency_.settle(chunk);
  PrefetchRow& result = prefetch.result;
  result.bytes_moved = prefetch.bytes_moved;
  result.unread_mass = prefetch.unread_mass / static_cast<float>(prefetch.heads.size());
  DataCounters::add(counters_.prefetches, 1);
  DataCounters::add(counters_.hits_device, result.hits_device);
  DataCounters::add(counters_.hits_host, result.hits_host);
  DataCounters::add(counters_.hits_nvme, result.hits_nvme);
  DataCounters::add(counters_.misses, result.misses);
  DataCounters::add(counters_.blocks_read, result.read_blocks);
  DataCounters::add(counters_.bytes_moved, result.bytes_moved);
  finish(prefetch);
}

void PrefetchRunner::finish(Prefetch& prefetch) {
  DataCounters::add(counters_.rank_ns, prefetch.rank_ns);
  if (prefetch.result.status == 0) {
    const uint64_t elapsed_us = (hooks_.now_ns() - prefetch.request.taken_ns) / 1000;
    DataCounters::add(counters_.prefetch_us, elapsed_us);
    counters_.latency_us.add(elapsed_us);
  }
  if (prefetch.window->active == &prefetch) prefetch.window->active = nullptr;
  prefetch.stage = Stage::kDone;
  if (!prefetch.silent) hooks_.complete(prefetch);
}

// ---- the ways it ends early ---------------------------------------------------------------------

void PrefetchRunner::abort(const Window& window, ErrorCode status) {
  for (const std::unique_ptr<Prefetch>& each : prefetches_) {
    if (each->window.get() != &window || each->stage == Stage::kDone) continue;
    if (status == ErrorCode::kOk) each->silent = true;
    fail(*each, status == ErrorCode::kOk ? ErrorCode::kCancelled : status);
  }
}

void PrefetchRunner::fail(Prefetch& prefetch, ErrorCode status) {
  prefetch.moves.clear();
  prefetch.waiting.clear();
  if (!prefetch.failed) prefetch.failed = status;
  if (prefetch.batches_in_flight > 0) {
    prefetch.stage = Stage::kAborted;  // a slot must not be given away while a move may write it
    return;
  }
  roll_back(prefetch);
  prefetch.in_place.clear();
  prefetch.result = {};
  prefetch.result.status = static_cast<int32_t>(*prefetch.failed);
  DataCounters::add(*prefetch.failed == ErrorCode::kBusy ? counters_.prefetches_busy
                                                         : counters_.prefetches_failed,
                    1);
  finish(prefetch);
}

void PrefetchRunner::roll_back(Prefetch& prefetch) {
  Window& window = *prefetch.window;
  if (window.slots_in_host()) return;
  size_t head = 0;
  for (uint32_t layer = prefetch.layers().first;
       layer < prefetch.layers().end() && head < prefetch.heads.size(); ++layer) {
    for (uint32_t kv_head = 0; kv_head < heads_of(prefetch, layer); ++kv_head, ++head) {
      HeadPlan& plan = prefetch.heads[head];
      for (size_t i = 0; i < plan.states.size(); ++i) {
        if (plan.states[i] == EntryState::kMoving || plan.states[i] == EntryState::kWaiting) {
          window.resident(layer, kv_head).forget(plan.slots[i]);
        }
      }
    }
  }
}

}  // namespace skv
