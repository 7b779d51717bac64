#include "daemon/placement.h"

#include <algorithm>
#include <string>
#include <utility>

#include "daemon/placement_state.h"

namespace skv {

Placement::Placement(const PlacementOptions& options, const Parts& parts)
    : state_(std::make_unique<State>(options, parts)) {
  state_->alive = std::make_shared<State*>(state_.get());
  parts.directory->set_leaf_watcher(this);
}

Placement::~Placement() { state_->parts.directory->set_leaf_watcher(nullptr); }

// --- turns ---------------------------------------------------------------------------------------

void Placement::State::end_of_turn() {
  if (ending) return;  // from a callback: the loop below goes on
  ending = true;
  for (;;) {
    ++depth;  // entries of stores that answer at once do not end a turn of their own
    pump();
    --depth;
    if (callbacks.empty()) break;
    std::deque<std::function<void()>> ready;
    ready.swap(callbacks);
    for (auto& callback : ready) callback();
  }
  ending = false;
}

void Placement::State::pump() {
  store_busy = false;
  for (bool again = true; again;) {
    const uint64_t before = change_count;
    write_behind();
    start_writes();
    start_reads();
    serve_puts();
    start_vectors_reads();
    start_vectors_writes();
    finish_flushes();
    again = change_count != before;
  }
}

void Placement::poll(uint64_t now_ns) {
  const State::Turn turn(*state_);
  State& state = *state_;
  state.now_ns = now_ns;
  for (auto put = state.puts.begin(); put != state.puts.end();) {
    if (put->request.deadline_ns > now_ns) {
      ++put;
      continue;
    }
    state.finish_put(*put);
    put = state.puts.erase(put);
  }
  state.expire_wants(now_ns);
  state.expire_withdrawals(now_ns);
  state.look_at_readers(now_ns);
  state.trim_vectors();
  if (state.store_busy) state.changed();
}

uint64_t Placement::next_deadline_ns() const {
  const State& state = *state_;
  uint64_t next = state.store_busy ? state.now_ns + 1'000'000 : 0;
  const auto consider = [&next](uint64_t deadline) {
    if (next == 0 || deadline < next) next = deadline;
  };
  if (!state.read_removed.empty()) consider(state.readers_seen_ns + state.options.readers_poll_ns);
  for (const State::OpenPut& put : state.puts) consider(put.request.deadline_ns);
  for (const auto& [id, wanted] : state.wants) {
    if (wanted.asked) consider(wanted.asked_until);
    for (const AcquireRequest& request : wanted.requests) consider(request.deadline_ns);
  }
  return next;
}

// --- sentences -----------------------------------------------------------------------------------

Sentence* Placement::State::stored(SentenceUid uid) const {
  Sentence* sentence = parts.directory->find(uid);
  return sentence != nullptr && sentence->state == SentenceState::kStored ? sentence : nullptr;
}

Placement::State::Body* Placement::State::find_body(SentenceUid uid) {
  const auto found = bodies.find(uid);
  return found == bodies.end() ? nullptr : &found->second;
}

Placement::State::Body& Placement::State::body_of(Sentence& sentence) {
  Body& body = bodies[sentence.uid];
  if (body.sentence == nullptr) {
    body.sentence = &sentence;
    body.chunks.resize(sentence.shape->chunk_count());
  }
  return body;
}

void Placement::State::resident_changed(Body& body) {
  const bool whole = body.resident == body.chunks.size();
  if (body.sentence->in_host == whole) return;
  body.sentence->in_host = whole;
  parts.directory->residency_changed(*body.sentence);
}

void Placement::State::drop_body_if_idle(SentenceUid uid) {
  const auto found = bodies.find(uid);
  if (found == bodies.end()) return;
  const Body& body = found->second;
  const bool reserved = body.sentence->state == SentenceState::kReserved;
  if (body.extents > 0 || body.transfers > 0 || reserved) return;
  if (body.removed != nullptr && parts.readers != nullptr) parts.readers->forget(uid);
  bodies.erase(found);
}

void Placement::removable_changed(Sentence& sentence) {
  if (sentence.state != SentenceState::kStored) return;
  if (sentence.order == 0) state_->on_stored(sentence);
  state_->leaf_queue.update(sentence);
}

void Placement::State::on_stored(Sentence& sentence) {
  leaf_queue.stored(sentence);
  if (sentence.on_nvme) {  // recovered
    ++nvme_sentences;
    spaces.at(sentence.space).nvme_bytes += storage(sentence);
    return;
  }
  waiting_sentences.remove(sentence.uid);
  Session& session = session_of(sentence.owner);
  if (session.puts.erase(sentence.uid) > 0) --session.charge.open_puts;
  forget_session_if_idle(sentence.owner);
  dirty_bytes += storage(sentence);
  dirty_queue.push_back(sentence.uid);
  Body& body = *find_body(sentence.uid);
  for (uint32_t chunk = 0; chunk < body.chunks.size(); ++chunk) {
    const auto bytes = static_cast<uint32_t>(sentence.shape->chunk_storage_bytes(chunk));
    chunk_queue.push({sentence.uid, chunk, 0, bytes}, body.chunks[chunk].queue);
  }
}

uint32_t Placement::State::remove_sentence(SentenceUid uid) {
  std::vector<Directory::Removed> gone = parts.directory->remove(uid);
  const auto count = static_cast<uint32_t>(gone.size());
  for (auto& sentence : gone) on_removed(std::move(sentence));
  changed();
  return count;
}

void Placement::State::on_removed(Directory::Removed owned) {
  Sentence& sentence = *owned;
  const SentenceUid uid = sentence.uid;
  ++nvme_epoch;
  if (sentence.order != 0) {  // it was stored
    leaf_queue.removed(sentence);
    if (sentence.on_nvme) {
      --nvme_sentences;
      spaces.at(sentence.space).nvme_bytes -= storage(sentence);
    } else {
      dirty_bytes -= storage(sentence);
    }
    if (sentence.on_nvme || sentence.nvme_write) parts.nvme->erase(sentence.key);
  } else {
    waiting_sentences.remove(uid);
    Session& session = session_of(sentence.owner);
    if (session.puts.erase(uid) > 0) --session.charge.open_puts;
    forget_session_if_idle(sentence.owner);
  }
  fail_wants(sentence, {ErrorCode::kNotFound, "the sentence is gone"});
  forget_vectors(sentence);
  flush_progress(uid, {});
  const auto found = bodies.find(uid);
  if (found == bodies.end()) {
    if (parts.readers != nullptr) parts.readers->forget(uid);
    return;
  }
  Body& body = found->second;
  if (body.demote) {
    body.demote = false;
    demoting_bytes -= storage(sentence);
  }
  body.removed = std::move(owned);
  settle_removed(body);
}

bool Placement::State::in_use(const Sentence& sentence) {
  if (sentence.leases > 0 || sentence.nvme_write) return true;
  if (vectors_waits.contains(sentence.uid)) return true;
  if (is_read(sentence.uid)) return true;
  const auto found = bodies.find(sentence.uid);
  if (found != bodies.end() && (found->second.leases > 0 || found->second.transfers > 0)) {
    return true;
  }
  if (wants.empty()) return false;
  for (uint32_t chunk = 0; chunk < sentence.shape->chunk_count(); ++chunk) {
    const auto at = wants.find({sentence.uid, chunk});
    if (at != wants.end() && at->second.demand()) return true;
  }
  return false;
}

void Placement::touch(std::span<const SentenceUid> path) {
  for (const SentenceUid uid : path) {
    Sentence* sentence = state_->stored(uid);
    if (sentence == nullptr) continue;
    LeafQueue::touch(*sentence);
    if (State::Body* body = state_->find_body(uid); body != nullptr) {
      for (State::Chunk& chunk : body->chunks) ChunkQueue::touch(chunk.queue);
    }
  }
}

bool Placement::lease_sentence(SessionId session, SentenceUid uid) {
  Sentence* sentence = state_->stored(uid);
  if (sentence == nullptr) return false;
  ++sentence->leases;
  ++state_->sentence_leases;
  State::Session& owner = state_->session_of(session);
  ++owner.sentence_leases[uid];
  ++owner.charge.sentence_leases;
  return true;
}

void Placement::release_sentence(SessionId session, SentenceUid uid) {
  const State::Turn turn(*state_);
  const auto known = state_->sessions.find(session);
  if (known == state_->sessions.end()) return;
  State::Session& owner = known->second;
  const auto held = owner.sentence_leases.find(uid);
  if (held == owner.sentence_leases.end()) return;  // end_session() was faster
  if (--held->second == 0) owner.sentence_leases.erase(held);
  --owner.charge.sentence_leases;
  --state_->sentence_leases;
  // A corrupt sentence may have gone in spite of its leases.
  if (Sentence* sentence = state_->parts.directory->find(uid)) --sentence->leases;
  state_->forget_session_if_idle(session);
  ++state_->nvme_epoch;
  state_->changed();
}

void Placement::add_feed(SentenceUid uid) {
  if (Sentence* sentence = state_->stored(uid)) ++sentence->feeds;
}

void Placement::remove_feed(SentenceUid uid) {
  Sentence* sentence = state_->parts.directory->find(uid);
  if (sentence == nullptr) {
    const State::Body* body = state_->find_body(uid);
    sentence = body == nullptr ? nullptr : body->sentence;
  }
  if (sentence != nullptr && sentence->feeds > 0) --sentence->feeds;
}

// --- spaces and sessions -------------------------------------------------------------------------

Result<void> Placement::add_space(SpaceId space, uint32_t uid, const SpaceQuota& quota) {
  if (Result<HostStore::Arena> arena = state_->parts.host->arena(space); !arena.ok()) {
    return arena.error();
  }
  State::Space& known = state_->spaces[space];
  known.uid = uid;
  known.quota = quota;
  return {};
}

void Placement::State::forget_session_if_idle(SessionId id) {
  const auto found = sessions.find(id);
  if (found != sessions.end() && found->second.charge.zero()) sessions.erase(found);
}

SessionCharge Placement::charge(SessionId session) const {
  const auto found = state_->sessions.find(session);
  return found == state_->sessions.end() ? SessionCharge{} : found->second.charge;
}

void Placement::end_session(SessionId id) {
  const State::Turn turn(*state_);
  State& state = *state_;
  for (auto put = state.puts.begin(); put != state.puts.end();) {
    if (put->request.session != id) {
      ++put;
      continue;
    }
    if (put->current != SentenceUid{}) state.remove_sentence(put->current);
    --state.session_of(id).charge.requests;
    put = state.puts.erase(put);
  }
  std::vector<State::ChunkId> idle;
  for (auto& [chunk, wanted] : state.wants) {
    const size_t gone = wanted.requests.remove_if(
        [id](const AcquireRequest& request) { return request.session == id; });
    state.session_of(id).charge.requests -= static_cast<uint32_t>(gone);
    if (gone > 0 && wanted.requests.empty() && !wanted.asked && !wanted.reading) {
      idle.push_back(chunk);
    }
  }
  for (const State::ChunkId& chunk : idle) state.fail_want(chunk, {ErrorCode::kCancelled, ""});
  for (auto& [uid, wait] : state.vectors_waits) {
    state.session_of(id).charge.requests -= static_cast<uint32_t>(
        wait.waiters.remove_if([id](const auto& waiter) { return waiter.session == id; }));
  }
  const std::unordered_set<SentenceUid> open = state.session_of(id).puts;
  for (const SentenceUid uid : open) state.remove_sentence(uid);

  State::Session& session = state.session_of(id);
  for (const auto& [uid, count] : session.sentence_leases) {
    state.sentence_leases -= count;
    session.charge.sentence_leases -= count;
    if (Sentence* sentence = state.parts.directory->find(uid)) sentence->leases -= count;
  }
  session.sentence_leases.clear();
  state.forget_session_if_idle(id);
  ++state.nvme_epoch;
  state.changed();
}

// --- life ----------------------------------------------------------------------------------------

void Placement::recover() {
  const State::Turn turn(*state_);
  State& state = *state_;
  if (state.parts.nvme == nullptr) return;
  std::unordered_map<Digest, std::shared_ptr<const Model>, DigestHash> models;
  for (const std::vector<uint8_t>& encoded : state.parts.nvme->models()) {
    Result<ModelDescriptor> descriptor = decode_model(encoded.data(), encoded.size());
    if (!descriptor.ok() || !validate(descriptor.value()).ok()) continue;
    auto model = std::make_shared<const Model>(std::move(descriptor).value());
    models.emplace(model->fingerprint, model);
  }
  std::unordered_map<uint32_t, SpaceId> space_of;
  for (const auto& [id, space] : state.spaces) space_of.emplace(space.uid, id);

  std::vector<BodyRecordRef> records = state.parts.nvme->records();
  // A prefix before what continues it.
  std::sort(records.begin(), records.end(), [](const auto& left, const auto& right) {
    return std::pair(left->first_position, left->key) <
           std::pair(right->first_position, right->key);
  });
  for (const BodyRecordRef& record : records) {
    if (!state.recover_one(*record, models, space_of)) {
      ++state.counters.recovered_unreachable;
      state.parts.nvme->erase(record->key);
    }
  }
}

bool Placement::State::recover_one(
    const BodyRecord& record,
    const std::unordered_map<Digest, std::shared_ptr<const Model>, DigestHash>& models,
    const std::unordered_map<uint32_t, SpaceId>& space_of) {
  const auto model = models.find(record.fingerprint);
  const auto space = space_of.find(record.space_uid);
  if (model == models.end() || space == space_of.end()) return false;
  const uint32_t block_tokens = model->second->layout().block_tokens();
  if (record.token_count < kSentenceTokensMin || record.token_count > kSentenceTokensMax ||
      record.token_count % block_tokens != 0 || record.first_position % block_tokens != 0) {
    return false;
  }
  Directory::NewSentence fresh;
  fresh.shape = parts.directory->shape(*model->second, record.token_count / block_tokens);
  if (fresh.shape->chunk_bytes != record.chunk_bytes) return false;
  fresh.space = space->second;
  fresh.index = record.index;
  fresh.first_position = record.first_position;
  fresh.key = record.key;
  fresh.start_key = record.parent_boundary;
  fresh.end_key = record.end_boundary;
  fresh.end_prefix = record.end_digest;
  Sentence* sentence = parts.directory->reserve(fresh);
  if (sentence == nullptr) return false;
  if (!sentence->start->reachable()) {
    parts.directory->remove(sentence->uid);
    return false;
  }
  sentence->on_nvme = true;
  sentence->vectors_bytes = record.vectors_bytes;
  sentence->vectors_on_nvme = record.vectors_bytes > 0;
  parts.directory->commit(*sentence);
  ++counters.recovered;
  return true;
}

const PlacementCounters& Placement::counters() const { return state_->counters; }

PlacementUsage Placement::usage() const {
  const State& state = *state_;
  PlacementUsage usage;
  usage.host_bytes = state.parts.host->stats().used_bytes;
  usage.nvme_sentences = state.nvme_sentences;
  usage.vectors_bytes = state.vectors_bytes;
  usage.chunk_leases = state.chunk_leases;
  usage.sentence_leases = state.sentence_leases;
  usage.reads_in_flight = state.reads_in_flight;
  usage.writes_in_flight = state.writes_in_flight;
  usage.waiting = static_cast<uint32_t>(state.puts.size() + state.wants.size());
  return usage;
}

}  // namespace skv
