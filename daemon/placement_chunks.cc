// Chunks: leases, what is wanted on the host, reads from NVMe, withdrawal, giving extents back.
#include <algorithm>
#include <utility>

#include "daemon/placement_state.h"

namespace skv {

ChunkLease Placement::State::take_lease(Body& body, uint32_t chunk, SessionId session) {
  Chunk& place = body.chunks[chunk];
  ++place.leases;
  ++body.leases;
  ++chunk_leases;
  ++session_of(session).charge.chunk_leases;
  ChunkQueue::touch(place.queue);
  return {.uid = body.sentence->uid,
          .session = session,
          .chunk = chunk,
          .bytes = static_cast<uint32_t>(body.sentence->shape->chunk_bytes[chunk]),
          .host_offset = place.offset,
          .origin = Origin::kHost};
}

bool Placement::lease(SessionId session,
                      SentenceUid uid,
                      uint32_t first_chunk,
                      uint32_t count,
                      std::vector<ChunkLease>& leases) {
  State& state = *state_;
  State::Body* body = state.find_body(uid);
  if (body == nullptr || body->removed != nullptr || first_chunk > body->chunks.size() ||
      count > body->chunks.size() - first_chunk) {
    return false;
  }
  const Sentence& sentence = *body->sentence;
  const bool own = sentence.state == SentenceState::kStored || sentence.owner == session;
  const auto first = body->chunks.begin() + first_chunk;
  const bool there = std::all_of(first, first + count, [](const State::Chunk& chunk) {
    return chunk.state == State::ChunkState::kResident ||
           chunk.state == State::ChunkState::kReserved;
  });
  if (!own || !there) return false;
  for (uint32_t i = 0; i < count; ++i) {
    leases.push_back(state.take_lease(*body, first_chunk + i, session));
  }
  if (sentence.state == SentenceState::kStored) state.counters.host_hits += count;
  return true;
}

void Placement::release(std::span<const ChunkLease> leases) {
  if (leases.empty()) return;
  const State::Turn turn(*state_);
  for (const ChunkLease& lease : leases) {
    State::Body* body = state_->find_body(lease.uid);
    SKV_CHECK(body != nullptr && lease.chunk < body->chunks.size(), "release of an unknown chunk");
    State::Chunk& place = body->chunks[lease.chunk];
    SKV_CHECK(place.leases > 0, "release of a chunk that is not leased");
    --place.leases;
    --body->leases;
    --state_->chunk_leases;
    --state_->session_of(lease.session).charge.chunk_leases;
    state_->forget_session_if_idle(lease.session);
    if (body->removed != nullptr) state_->settle_removed(*body);
  }
  ++state_->nvme_epoch;
  state_->changed();
}

void Placement::acquire(AcquireRequest request) {
  const State::Turn turn(*state_);
  State& state = *state_;
  const Sentence* sentence = state.stored(request.uid);
  const auto refuse = [&](ErrorCode code, const char* why) {
    state.later([done = std::move(request.done), error = Error{code, why}] { done(error); });
  };
  if (sentence == nullptr) {
    ++state.counters.chunk_misses;
    return refuse(ErrorCode::kNotFound, "the sentence is not stored");
  }
  if (request.chunk >= sentence->shape->chunk_count()) {
    return refuse(ErrorCode::kInvalidArgument, "chunk: the body has fewer");
  }
  State::Body* body = state.find_body(request.uid);
  if (body != nullptr && body->chunks[request.chunk].state == State::ChunkState::kResident) {
    ++state.counters.host_hits;
    const ChunkLease lease = state.take_lease(*body, request.chunk, request.session);
    state.later([done = std::move(request.done), lease] { done(lease); });
    return;
  }
  const State::ChunkId id{request.uid, request.chunk};
  state.want(id,
             request.urgent ? State::Want::Urgency::kUrgent : State::Want::Urgency::kBackground);
  ++state.session_of(request.session).charge.requests;
  state.wants[id].requests.push_back(std::move(request));
}

void Placement::need_chunks(SentenceUid uid, std::span<const uint32_t> chunks, bool urgent) {
  const State::Turn turn(*state_);
  State& state = *state_;
  for (const uint32_t chunk : chunks) {
    const Sentence* sentence = state.stored(uid);
    if (sentence == nullptr || chunk >= sentence->shape->chunk_count()) {
      ++state.counters.chunk_misses;
      state.parts.residency->chunk_failed(uid, chunk, ErrorCode::kNotFound);
      continue;
    }
    State::Body* body = state.find_body(uid);
    if (body != nullptr && body->chunks[chunk].state == State::ChunkState::kResident) {
      ++state.counters.host_hits;
      ChunkQueue::touch(body->chunks[chunk].queue);
      state.parts.residency->chunk_arrived(uid, chunk, body->chunks[chunk].offset, Origin::kHost);
      continue;
    }
    const State::ChunkId id{uid, chunk};
    state.want(id, urgent ? State::Want::Urgency::kUrgent : State::Want::Urgency::kBackground);
    State::Want& wanted = state.wants[id];
    if (!wanted.asked) wanted.asked_until = state.now_ns + state.options.need_ns;
    wanted.asked = true;
  }
}

void Placement::warm(SentenceUid uid) {
  const State::Turn turn(*state_);
  const Sentence* sentence = state_->stored(uid);
  if (sentence == nullptr || !sentence->on_nvme) return;
  const State::Body* body = state_->find_body(uid);
  for (uint32_t chunk = 0; chunk < sentence->shape->chunk_count(); ++chunk) {
    if (body == nullptr || body->chunks[chunk].state == State::ChunkState::kAbsent) {
      state_->want({uid, chunk}, State::Want::Urgency::kWarm);
    }
  }
}

void Placement::State::want(const ChunkId& id, Want::Urgency urgency) {
  const auto [at, fresh] = wants.try_emplace(id);
  Want& wanted = at->second;
  if (!fresh && wanted.urgency >= urgency) return;
  wanted.urgency = urgency;
  changed();
  if (Body* body = find_body(id.uid); body != nullptr) {
    Chunk& place = body->chunks[id.chunk];
    if (place.state == ChunkState::kLeaving) {
      place.wanted_again = true;  // still there: announced again when the data thread answers
      return;
    }
  }
  read_queue(urgency).push_back(id);
}

void Placement::read_ahead(SentenceUid uid, uint32_t chunk) {
  const State::Turn turn(*state_);
  State& state = *state_;
  const Sentence* sentence = state.stored(uid);
  if (sentence == nullptr || !sentence->on_nvme || chunk >= sentence->shape->chunk_count()) return;
  const State::Body* body = state.find_body(uid);
  if (body != nullptr && body->chunks[chunk].state != State::ChunkState::kAbsent) return;
  if (state.ahead_reads.size() >= state.options.ahead_queue_max) {
    ++state.counters.read_ahead_refused;
    return;
  }
  state.want({uid, chunk}, State::Want::Urgency::kAhead);
}

std::deque<Placement::State::ChunkId>& Placement::State::read_queue(Want::Urgency urgency) {
  switch (urgency) {
    case Want::Urgency::kUrgent:
      return urgent_reads;
    case Want::Urgency::kBackground:
    case Want::Urgency::kWarm:
      return background_reads;
    case Want::Urgency::kAhead:
      break;
  }
  return ahead_reads;
}

std::deque<Placement::State::ChunkId>* Placement::State::next_read_queue() {
  if (reads_in_flight >= options.reads_max) return nullptr;
  if (!urgent_reads.empty()) return &urgent_reads;
  if (background_in_flight >= options.background_reads_max) return nullptr;
  if (!background_reads.empty()) return &background_reads;
  if (ahead_reads.empty() || ahead_in_flight >= options.ahead_reads_max) return nullptr;
  return &ahead_reads;
}

bool Placement::State::start_reads() {
  if (reads_failed_at_change == change_count) return false;
  bool started = false;
  while (std::deque<ChunkId>* const queue = next_read_queue()) {
    const ChunkId id = queue->front();
    const auto at = wants.find(id);
    if (at == wants.end() || at->second.reading || &read_queue(at->second.urgency) != queue) {
      queue->pop_front();
      continue;
    }
    const ReadStart outcome = start_read(id, at->second);
    if (outcome == ReadStart::kBusy) store_busy = true;
    if (outcome == ReadStart::kNoRoom && at->second.demand() && may_come_free(SessionId{})) {
      reads_failed_at_change = change_count;
      break;
    }
    if (outcome == ReadStart::kBusy) break;
    queue->pop_front();
    if (outcome == ReadStart::kNoRoom) {
      counters.read_ahead_refused += at->second.urgency == Want::Urgency::kAhead ? 1 : 0;
      fail_want(id, {ErrorCode::kNoSpace, "no room in host memory for the chunk"});
    }
    started |= outcome == ReadStart::kStarted;
  }
  return started;
}

Placement::State::ReadStart Placement::State::start_read(const ChunkId& id, Want& wanted) {
  Sentence* sentence = stored(id.uid);
  if (sentence == nullptr || !sentence->on_nvme) {
    fail_want(id, {ErrorCode::kNotFound, "the sentence is not stored"});
    return ReadStart::kFailed;
  }
  if (Body* known = find_body(id.uid); known != nullptr) {
    Chunk& place = known->chunks[id.chunk];
    if (place.state == ChunkState::kResident) {
      arrived(id, *known);
      return ReadStart::kFailed;
    }
    if (place.state == ChunkState::kLeaving) {
      place.wanted_again = true;
      return ReadStart::kFailed;
    }
  }
  const auto extent = allocate(*sentence, id.chunk, wanted.urgency);
  if (!extent) return ReadStart::kNoRoom;
  // Making room may have evicted others, never this one: it is wanted, so it is in use.
  const bool background = wanted.urgency != Want::Urgency::kUrgent;
  const bool ahead = wanted.urgency == Want::Urgency::kAhead;
  BodyRead read;
  read.key = sentence->key;
  read.first_chunk = id.chunk;
  read.chunks = {parts.host->bytes(sentence->space, *extent)};
  read.urgent = !background;
  read.done = [token = std::weak_ptr<State*>(alive), id, background,
               ahead](const Result<void>& result) {
    const auto state = token.lock();
    if (state == nullptr) return;
    if (background) --(*state)->background_in_flight;
    if (ahead) --(*state)->ahead_in_flight;
    (*state)->on_read(id, result);
  };
  const Result<BodyReadOutcome> outcome = parts.nvme->read(read);
  if (outcome.ok() && outcome.value() == BodyReadOutcome::kAccepted) {
    Body& body = body_of(*sentence);
    Chunk& place = body.chunks[id.chunk];
    place.state = ChunkState::kLoading;
    place.offset = extent->offset;
    ++body.extents;
    ++body.transfers;
    ++reads_in_flight;
    if (background) ++background_in_flight;
    if (ahead) {
      ++ahead_in_flight;
      ++counters.read_ahead;
      counters.read_ahead_bytes += extent->bytes;
    }
    wanted.reading = true;
    return ReadStart::kStarted;
  }
  parts.host->erase(id.uid, id.chunk);
  if (outcome.ok() && outcome.value() == BodyReadOutcome::kBusy) return ReadStart::kBusy;
  if (!outcome.ok()) {
    fail_want(id, outcome.error());
    return ReadStart::kFailed;
  }
  // The store dropped it (another read of it found it corrupt): the sentence is a miss from now on.
  fail_want(id, {ErrorCode::kCorrupt, "the NVMe store has lost the sentence"});
  ++counters.evictions_corrupt;
  counters.evictions_unreachable += remove_sentence(id.uid) - 1;
  return ReadStart::kFailed;
}

void Placement::State::on_read(const ChunkId& id, const Result<void>& result) {
  const Turn turn(*this);
  changed();
  --reads_in_flight;
  Body& body = *find_body(id.uid);
  Chunk& place = body.chunks[id.chunk];
  --body.transfers;
  if (body.removed != nullptr) {
    free_extent(body, id.chunk);
    drop_body_if_idle(id.uid);
    return;
  }
  if (result.ok()) {
    const auto bytes = static_cast<uint32_t>(body.sentence->shape->chunk_storage_bytes(id.chunk));
    parts.host->publish(id.uid, id.chunk);
    place.state = ChunkState::kResident;
    place.origin = Origin::kNvme;
    ++body.resident;
    resident_changed(body);
    chunk_queue.push({id.uid, id.chunk, 0, bytes}, place.queue);
    ++counters.promotions;
    counters.promoted_bytes += bytes;
    arrived(id, body);
    return;
  }
  ++counters.promotion_failures;
  free_extent(body, id.chunk);
  drop_body_if_idle(id.uid);
  fail_want(id, result.error());
  if (result.error().code == ErrorCode::kCorrupt) {
    ++counters.evictions_corrupt;
    counters.evictions_unreachable += remove_sentence(id.uid) - 1;
  }
}

void Placement::State::arrived(const ChunkId& id, Body& body) {
  const Chunk& place = body.chunks[id.chunk];
  if (parts.readers != nullptr) parts.readers->show(id.uid, id.chunk, place.offset);
  const auto at = wants.find(id);
  const bool asked = at != wants.end() && at->second.asked;
  if (asked || body.sentence->feeds > 0) {
    parts.residency->chunk_arrived(id.uid, id.chunk, place.offset, place.origin);
  }
  if (at == wants.end()) return;
  for (AcquireRequest& request : at->second.requests) {
    ++(place.origin == Origin::kNvme ? counters.nvme_hits : counters.host_hits);
    ChunkLease lease = take_lease(body, id.chunk, request.session);
    lease.origin = place.origin;
    --session_of(request.session).charge.requests;
    later([done = std::move(request.done), lease] { done(lease); });
  }
  if (asked) ++(place.origin == Origin::kNvme ? counters.nvme_hits : counters.host_hits);
  wants.erase(at);
}

void Placement::State::fail_want(const ChunkId& id, const Error& error) {
  const auto at = wants.find(id);
  if (at == wants.end()) return;
  if (Body* body = find_body(id.uid); body != nullptr) body->chunks[id.chunk].wanted_again = false;
  if (at->second.asked) parts.residency->chunk_failed(id.uid, id.chunk, error.code);
  for (AcquireRequest& request : at->second.requests) {
    --session_of(request.session).charge.requests;
    forget_session_if_idle(request.session);
    later([done = std::move(request.done), error] { done(error); });
  }
  if (at->second.asked || !at->second.requests.empty()) ++counters.chunk_misses;
  wants.erase(at);
}

void Placement::State::fail_wants(const Sentence& sentence, const Error& error) {
  for (uint32_t chunk = 0; chunk < sentence.shape->chunk_count(); ++chunk) {
    fail_want({sentence.uid, chunk}, error);
  }
}

void Placement::State::expire_wants(uint64_t now) {
  std::vector<ChunkId> idle;
  for (auto& [id, wanted] : wants) {
    for (auto request = wanted.requests.begin(); request != wanted.requests.end();) {
      if (request->deadline_ns > now) {
        ++request;
        continue;
      }
      --session_of(request->session).charge.requests;
      forget_session_if_idle(request->session);
      later([done = std::move(request->done)] {
        done(Error{ErrorCode::kTimeout, "the chunk did not come to host memory in time"});
      });
      request = wanted.requests.erase(request);
    }
    if (wanted.asked && wanted.asked_until <= now) {
      parts.residency->chunk_failed(id.uid, id.chunk, ErrorCode::kTimeout);
      wanted.asked = false;
    }
    const bool nobody = !wanted.asked && wanted.requests.empty();
    if (nobody && !wanted.reading && wanted.demand()) idle.push_back(id);
  }
  for (const ChunkId& id : idle) fail_want(id, {ErrorCode::kTimeout, ""});
}

void Placement::State::give_back(Body& body, uint32_t chunk) {
  Chunk& place = body.chunks[chunk];
  const uint64_t bytes = body.sentence->shape->chunk_storage_bytes(chunk);
  chunk_queue.forget(place.queue, static_cast<uint32_t>(bytes));
  --body.resident;
  resident_changed(body);
  if (body.removed == nullptr) {
    ++counters.demotions;
    counters.demoted_bytes += bytes;
  }
  const SentenceUid uid = body.sentence->uid;
  if (body.sentence->feeds > 0) {
    place.state = ChunkState::kLeaving;
    leaving_bytes += bytes;
    withdrawals.push_back({{uid, chunk}, now_ns});
    parts.residency->withdraw(uid, chunk);
    return;
  }
  free_extent(body, chunk);
  if (body.removed == nullptr) drop_body_if_idle(uid);
}

void Placement::withdraw_done(SentenceUid uid, uint32_t chunk) {
  const State::Turn turn(*state_);
  State& state = *state_;
  State::Body* body = state.find_body(uid);
  SKV_CHECK(body != nullptr && chunk < body->chunks.size() &&
                body->chunks[chunk].state == State::ChunkState::kLeaving,
            "a withdrawal was answered that was not asked");
  State::Chunk& place = body->chunks[chunk];
  const uint64_t bytes = body->sentence->shape->chunk_storage_bytes(chunk);
  state.leaving_bytes -= bytes;
  if (place.overdue) state.overdue_bytes -= bytes;
  place.overdue = false;
  state.changed();
  if (place.wanted_again && body->removed == nullptr) {
    place.wanted_again = false;
    place.state = State::ChunkState::kResident;
    place.origin = Origin::kHost;
    ++body->resident;
    state.resident_changed(*body);
    state.chunk_queue.push({uid, chunk, 0, static_cast<uint32_t>(bytes)}, place.queue);
    state.arrived({uid, chunk}, *body);
    return;
  }
  state.free_extent(*body, chunk);
  state.drop_body_if_idle(uid);
}

// A window may read a chunk for as long as its engine likes (slots in host memory), and the engine
// may be waiting for the very room that is to be made: look for others.
void Placement::State::expire_withdrawals(uint64_t now) {
  while (!withdrawals.empty() &&
         withdrawals.front().since_ns + options.withdraw_patience_ns <= now) {
    const ChunkId id = withdrawals.front().id;
    withdrawals.pop_front();
    Body* body = find_body(id.uid);
    if (body == nullptr) continue;
    Chunk& place = body->chunks[id.chunk];
    if (place.state != ChunkState::kLeaving || place.overdue) continue;
    place.overdue = true;
    overdue_bytes += body->sentence->shape->chunk_storage_bytes(id.chunk);
    changed();
  }
}

void Placement::State::free_extent(Body& body, uint32_t chunk) {
  Chunk& place = body.chunks[chunk];
  SKV_CHECK(place.leases == 0, "an extent is given back while it is leased");
  const auto bytes = static_cast<uint32_t>(body.sentence->shape->chunk_storage_bytes(chunk));
  chunk_queue.forget(place.queue, bytes);
  parts.host->erase(body.sentence->uid, chunk);
  place = Chunk{};
  --body.extents;
  changed();
}

bool Placement::State::take_from_readers(const ChunkId& id, const Chunk& place) {
  if (parts.readers == nullptr) return true;
  if (!parts.readers->reads(id.uid, id.chunk)) {
    if (parts.readers->hide(id.uid, id.chunk)) return true;
    parts.readers->show(id.uid, id.chunk, place.offset);  // somebody began before it was hidden
  }
  readers_stay = true;
  return false;
}

bool Placement::State::collect_touched(Body& body, uint32_t chunk) {
  if (parts.readers == nullptr || !parts.readers->take_touched(body.sentence->uid, chunk)) {
    return false;
  }
  // As a load by message: its lease, and the path that it belongs to.
  ChunkQueue::touch(body.chunks[chunk].queue);
  ChunkQueue::touch(body.chunks[chunk].queue);
  LeafQueue::touch(*body.sentence);
  return true;
}

// Nothing tells when a reader ends: what waits for that looks again.
void Placement::State::look_at_readers(uint64_t now) {
  if (!readers_stay && read_removed.empty()) return;
  if (readers_seen_ns + options.readers_poll_ns > now) return;
  readers_seen_ns = now;
  readers_stay = false;
  changed();
  std::unordered_set<SentenceUid> uids;
  uids.swap(read_removed);
  for (const SentenceUid uid : uids) {
    Body* body = find_body(uid);
    if (body != nullptr && body->removed != nullptr) settle_removed(*body);
  }
}

void Placement::State::settle_removed(Body& body) {
  const SentenceUid uid = body.sentence->uid;
  if (!body.sentence->nvme_write) {  // a write reads the extents until its completion
    for (uint32_t chunk = 0; chunk < body.chunks.size(); ++chunk) {
      const Chunk& place = body.chunks[chunk];
      if (place.leases > 0) continue;
      if (place.state == ChunkState::kReserved) {
        free_extent(body, chunk);
      } else if (place.state == ChunkState::kResident) {
        if (parts.readers == nullptr || parts.readers->hide(uid, chunk)) {
          give_back(body, chunk);
        } else {
          read_removed.insert(uid);
        }
      }
    }
  }
  drop_body_if_idle(uid);
}

std::vector<HostChunk> Placement::host_chunks(SentenceUid uid) const {
  const Sentence* sentence = state_->stored(uid);
  if (sentence == nullptr) return {};
  std::vector<HostChunk> chunks(sentence->shape->chunk_count());
  if (const State::Body* body = state_->find_body(uid); body != nullptr) {
    for (size_t chunk = 0; chunk < chunks.size(); ++chunk) {
      const State::Chunk& place = body->chunks[chunk];
      if (place.state != State::ChunkState::kResident) continue;
      chunks[chunk] = {place.offset, place.origin};
    }
  }
  return chunks;
}

std::vector<uint64_t> Placement::extents(SentenceUid uid) const {
  const State::Body* body = state_->find_body(uid);
  if (body == nullptr) return {};
  std::vector<uint64_t> offsets(body->chunks.size(), kNoExtent);
  for (size_t chunk = 0; chunk < offsets.size(); ++chunk) {
    const State::Chunk& place = body->chunks[chunk];
    const bool there =
        place.state == State::ChunkState::kResident || place.state == State::ChunkState::kReserved;
    if (there) offsets[chunk] = place.offset;
  }
  return offsets;
}

Placement::TierTokens Placement::tier_tokens(std::span<const SentenceUid> path) const {
  TierTokens tokens;
  for (const SentenceUid uid : path) {
    const Sentence* sentence = state_->stored(uid);
    if (sentence == nullptr) continue;
    (sentence->in_host ? tokens.host : tokens.nvme) += sentence->token_count();
  }
  return tokens;
}

}  // namespace skv
