// Puts: reservations and what waits for room, commit, cancel; drop and flush.
#include <algorithm>
#include <utility>

#include "daemon/placement_state.h"

namespace skv {

void Placement::put_reserve(PutRequest request) {
  const State::Turn turn(*state_);
  ++state_->session_of(request.session).charge.requests;
  state_->puts.emplace_back().request = std::move(request);
  state_->changed();
}

bool Placement::State::serve_puts() {
  bool served = false;
  while (!puts.empty()) {
    OpenPut& put = puts.front();
    if (put.failed_at_change == change_count) return served;
    while (put.results.size() < put.request.sentences.size()) {
      const Placed placed = place_sentence(put, put.request.sentences[put.results.size()]);
      if (placed == Placed::kWait) {
        counters.reserve_waits += put.waited ? 0 : 1;
        put.waited = true;
        put.failed_at_change = change_count;
        return served;
      }
      if (placed == Placed::kFull) break;
    }
    finish_put(put);
    puts.pop_front();
    served = true;
  }
  return served;
}

Placement::State::Placed Placement::State::place_sentence(OpenPut& put,
                                                          const Directory::NewSentence& wanted) {
  const SessionId session_id = put.request.session;
  if (put.current == SentenceUid{}) {
    if (const Sentence* known = parts.directory->find(wanted.key)) {
      PutOutcome outcome = PutOutcome::kPending;
      if (known->state == SentenceState::kStored) {
        outcome = PutOutcome::kExists;
      } else if (known->owner == session_id) {
        const bool open = known->state == SentenceState::kReserved;
        outcome = open ? PutOutcome::kReserved : PutOutcome::kExists;
      }
      put.results.push_back({outcome, known->uid});
      return Placed::kDone;
    }
    if (wanted.shape->storage_bytes() > parts.host->stats().budget_bytes) return Placed::kFull;
    Sentence& fresh = *parts.directory->reserve(wanted);
    Body& body = body_of(fresh);
    body.end_prefix = wanted.end_prefix;
    body.summed.resize(fresh.shape->chunk_count());
    Session& session = session_of(session_id);
    session.puts.insert(fresh.uid);
    ++session.charge.open_puts;
    put.current = fresh.uid;
  }
  Sentence* sentence = parts.directory->find(put.current);
  if (sentence == nullptr) return Placed::kFull;
  for (uint32_t chunk = 0; chunk < sentence->shape->chunk_count(); ++chunk) {
    if (find_body(put.current)->chunks[chunk].state != ChunkState::kAbsent) continue;
    const auto extent = allocate(*sentence, chunk, Want::Urgency::kUrgent);
    if (!extent) return may_come_free(session_id) ? Placed::kWait : Placed::kFull;
    Body& body = *find_body(put.current);
    body.chunks[chunk].state = ChunkState::kReserved;
    body.chunks[chunk].offset = extent->offset;
    ++body.extents;
  }
  put.results.push_back({PutOutcome::kReserved, put.current});
  put.current = SentenceUid{};
  return Placed::kDone;
}

void Placement::State::finish_put(OpenPut& put) {
  if (put.current != SentenceUid{}) remove_sentence(put.current);
  counters.reserves_full += put.request.sentences.size() - put.results.size();
  put.results.resize(put.request.sentences.size());  // the rest is kFull
  --session_of(put.request.session).charge.requests;
  forget_session_if_idle(put.request.session);
  later([done = std::move(put.request.done), results = std::move(put.results)]() mutable {
    done(std::move(results));
  });
}

void Placement::chunk_written(SentenceUid uid, uint32_t chunk, const ChunkSum& sum) {
  State::Body* body = state_->find_body(uid);
  if (body == nullptr || body->removed != nullptr || chunk >= body->chunks.size() ||
      body->sentence->state != SentenceState::kReserved) {
    return;  // cancelled meanwhile
  }
  body->sums.resize(body->chunks.size());
  body->sums[chunk] = sum;
  body->summed[chunk] = true;
}

PutOutcome Placement::put_commit(SessionId session, SentenceUid uid, VectorsBlob vectors) {
  const State::Turn turn(*state_);
  State& state = *state_;
  Sentence* sentence = state.parts.directory->find(uid);
  if (sentence == nullptr || sentence->state != SentenceState::kReserved ||
      sentence->owner != session) {
    return PutOutcome::kNotReserved;
  }
  State::Body& body = *state.find_body(uid);
  if (!std::all_of(body.summed.begin(), body.summed.end(), [](bool summed) { return summed; })) {
    return PutOutcome::kIncomplete;
  }
  body.summed = {};
  for (uint32_t chunk = 0; chunk < body.chunks.size(); ++chunk) {
    body.chunks[chunk].state = State::ChunkState::kResident;
    state.parts.host->publish(uid, chunk);
  }
  body.resident = static_cast<uint32_t>(body.chunks.size());
  sentence->in_host = true;
  state.hold_vectors(*sentence, std::move(vectors));
  state.parts.directory->commit(*sentence);
  if (sentence->state == SentenceState::kWaiting) state.waiting_sentences.push_back(uid);
  state.changed();
  return PutOutcome::kCommitted;
}

PutOutcome Placement::put_cancel(SessionId session, SentenceUid uid) {
  const State::Turn turn(*state_);
  const Sentence* sentence = state_->parts.directory->find(uid);
  if (sentence == nullptr || sentence->state != SentenceState::kReserved ||
      sentence->owner != session) {
    return PutOutcome::kNotReserved;
  }
  state_->remove_sentence(uid);
  return PutOutcome::kCancelled;
}

void Placement::drop(std::span<const Digest> keys, std::function<void(Result<DropOutcome>)> done) {
  const State::Turn turn(*state_);
  DropOutcome outcome;
  std::vector<Digest> dropped;
  for (auto key = keys.rbegin(); key != keys.rend(); ++key) {
    const Sentence* sentence = state_->parts.directory->find(*key);
    if (sentence == nullptr || sentence->state != SentenceState::kStored) continue;
    const State::Body* body = state_->find_body(sentence->uid);
    const bool leased = sentence->leases > 0 || (body != nullptr && body->leases > 0) ||
                        state_->is_read(sentence->uid);
    if (leased || !Directory::removable(*sentence)) {
      ++outcome.kept;
      continue;
    }
    dropped.push_back(*key);
    state_->remove_sentence(sentence->uid);
    ++state_->counters.dropped;
    ++outcome.dropped;
  }
  if (dropped.empty() || state_->parts.nvme == nullptr) {
    state_->later([done = std::move(done), outcome] { done(outcome); });
    return;
  }
  // Also what is not on NVMe now: an eviction may have left it in the file.
  state_->parts.nvme->purge(dropped, [token = std::weak_ptr<State*>(state_->alive), outcome,
                                      done = std::move(done)](const Result<void>& result) {
    const auto state = token.lock();
    if (state == nullptr) return;
    const State::Turn answered(**state);
    (*state)->later([done, outcome, result] {
      done(result.ok() ? Result<DropOutcome>(outcome) : result.error());
    });
  });
}

void Placement::flush(SpaceId space, std::function<void(Result<uint64_t>)> done) {
  const State::Turn turn(*state_);
  state_->start_flush(space, std::move(done));
}

void Placement::flush_all(std::function<void(Result<uint64_t>)> done) {
  const State::Turn turn(*state_);
  state_->start_flush(std::nullopt, std::move(done));
}

void Placement::State::start_flush(std::optional<SpaceId> space,
                                   std::function<void(Result<uint64_t>)> done) {
  if (parts.nvme == nullptr) {
    later([done = std::move(done)] {
      done(Error{ErrorCode::kUnsupported, "flush(durable): no NVMe tier is configured"});
    });
    return;
  }
  std::vector<Sentence*> missing;
  parts.directory->for_each([&](Sentence& sentence) {
    if (sentence.state != SentenceState::kStored) return;
    if (sentence.on_nvme && !vectors_unwritten(sentence)) return;
    if (!space || sentence.space == *space) missing.push_back(&sentence);
  });
  // A prefix goes before what continues it: after a crash half-way what was written is reachable.
  std::sort(missing.begin(), missing.end(), [](const Sentence* left, const Sentence* right) {
    return std::pair(left->first_position, left->uid) <
           std::pair(right->first_position, right->uid);
  });
  FlushRun& run = flushes.emplace_back();
  run.space = space;
  run.done = std::move(done);
  for (Sentence* sentence : missing) run.missing.insert(sentence->uid);
  for (Sentence* sentence : missing) {
    if (sentence->on_nvme) {
      vectors_writes.push_back(sentence->uid);  // also where there was no room before
    } else {
      request_write(*sentence, /*demote=*/false);
    }
  }
}

void Placement::State::flush_progress(SentenceUid uid, const Result<void>& outcome) {
  for (FlushRun& run : flushes) {
    if (run.missing.erase(uid) > 0 && !outcome.ok() && run.outcome.ok()) run.outcome = outcome;
  }
}

void Placement::State::finish_flushes() {
  for (auto run = flushes.begin(); run != flushes.end();) {
    if (!run->missing.empty()) {
      ++run;
      continue;
    }
    FlushRun ready = std::move(*run);
    run = flushes.erase(run);
    if (!ready.outcome.ok()) {
      later([done = std::move(ready.done), error = ready.outcome.error()] { done(error); });
      continue;
    }
    // What is on NVMe now is durable when the store says so; what comes after may not be.
    const uint64_t on_nvme = count_on_nvme(ready.space);
    parts.nvme->flush([token = std::weak_ptr<State*>(alive), space = ready.space, on_nvme,
                       done = std::move(ready.done)](const Result<void>& result) {
      const auto state = token.lock();
      if (state == nullptr) return;
      const Turn turn(**state);
      if (!result.ok()) {
        (*state)->later([done, error = result.error()] { done(error); });
        return;
      }
      // Counted when it is answered: what this turn still evicts is not promised.
      (*state)->later([state = *state, space, on_nvme, done] {
        done(std::min(on_nvme, state->count_on_nvme(space)));
      });
    });
  }
}

uint64_t Placement::State::count_on_nvme(std::optional<SpaceId> space) const {
  uint64_t count = 0;
  parts.directory->for_each([&](const Sentence& sentence) {
    const bool counts = !space || sentence.space == *space;
    if (counts && sentence.state == SentenceState::kStored && sentence.on_nvme) ++count;
  });
  return count;
}

}  // namespace skv
