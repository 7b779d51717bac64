// Publishing, completing and ending early: the second half of PrefetchRunner.
#include <algorithm>
#include <utility>

#include "daemon/data/prefetch_runner.h"

namespace skv {

using Stage = Prefetch::Stage;

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
