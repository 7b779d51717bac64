// Vectors: kept in memory while somebody uses them, else while the budget allows; they stay on
// NVMe.
#include <algorithm>
#include <utility>

#include "daemon/placement_state.h"

namespace skv {

void Placement::State::hold_vectors(Sentence& sentence, VectorsBlob vectors) {
  if (vectors == nullptr || vectors->empty()) return;
  sentence.vectors = std::move(vectors);
  sentence.vectors_bytes = static_cast<uint32_t>(sentence.vectors->size());
  vectors_bytes += sentence.vectors_bytes;
  vectors_queue.push_back(sentence.uid);
  trim_vectors();
}

void Placement::State::forget_vectors(Sentence& sentence) {
  if (sentence.vectors == nullptr) return;
  vectors_bytes -= sentence.vectors_bytes;
  sentence.vectors.reset();
}

void Placement::State::trim_vectors() {
  // First in, first out, over those that nobody else holds. A blob is immutable and only we hand it
  // out, so a count of one cannot grow behind our back.
  constexpr size_t kLooksMax = 256;  // per turn
  for (size_t looks = std::min(vectors_queue.size(), kLooksMax);
       looks > 0 && vectors_bytes > options.vectors_bytes; --looks) {
    const SentenceUid uid = vectors_queue.front();
    vectors_queue.pop_front();
    Sentence* sentence = parts.directory->find(uid);
    if (sentence == nullptr || sentence->vectors == nullptr) continue;
    if (sentence->vectors_on_nvme && sentence->leases == 0 && sentence->vectors.use_count() == 1) {
      forget_vectors(*sentence);
      ++counters.vectors_dropped;
    } else {
      vectors_queue.push_back(uid);
    }
  }
}

Result<void> Placement::set_vectors(SentenceUid uid,
                                    const IndexDescriptor& index,
                                    VectorsBlob vectors) {
  const State::Turn turn(*state_);
  Sentence* sentence = state_->stored(uid);
  if (sentence == nullptr) return Error{ErrorCode::kNotFound, "the sentence is not stored"};
  if (sentence->vectors_bytes > 0) {
    if (sentence->index == index) return {};
    return Error{ErrorCode::kUnsupported,
                 "vectors: the sentence has those of another index, several are not served yet"};
  }
  sentence->index = index;
  state_->hold_vectors(*sentence, std::move(vectors));
  if (State::vectors_unwritten(*sentence)) {
    state_->vectors_writes.push_back(uid);
    state_->changed();
  }
  return {};
}

void Placement::State::start_vectors_writes() {
  constexpr uint32_t kInFlightMax = 2;  // behind whatever somebody waits for
  while (vectors_in_write.size() < kInFlightMax && !vectors_writes.empty()) {
    const SentenceUid uid = vectors_writes.front();
    const Sentence* sentence = stored(uid);
    if (sentence == nullptr || !vectors_unwritten(*sentence)) {
      vectors_writes.pop_front();
      flush_progress(uid, {});
      continue;
    }
    if (vectors_in_write.contains(uid)) {  // its write tells who waits
      vectors_writes.pop_front();
      continue;
    }
    const Result<StoreOutcome> outcome = parts.nvme->put_vectors(
        sentence->key, sentence->index, sentence->vectors,
        [token = std::weak_ptr<State*>(alive), uid](const Result<void>& result) {
          const auto state = token.lock();
          if (state == nullptr) return;
          const Turn turn(**state);
          (*state)->vectors_in_write.erase(uid);
          (*state)->changed();
          Sentence* written = (*state)->stored(uid);
          if (result.ok() && written != nullptr) {
            written->vectors_on_nvme = true;
            ++(*state)->counters.vectors_written;
          } else if (!result.ok() && result.error().code == ErrorCode::kCancelled) {
            (*state)->vectors_writes.push_back(uid);  // moved meanwhile, or gone
            return;
          }
          (*state)->flush_progress(uid, result);
        });
    if (outcome.ok() && outcome.value() == StoreOutcome::kBusy) {
      store_busy = true;
      return;
    }
    vectors_writes.pop_front();
    if (outcome.ok() && outcome.value() == StoreOutcome::kAccepted) {
      vectors_in_write.insert(uid);
      continue;
    }
    // No room, or a store that takes no writes: they stay in memory, and are derived again after a
    // restart.
    flush_progress(uid, outcome.ok() ? Error{ErrorCode::kNoSpace,
                                             "no room for the vectors of a stored sentence"}
                                     : outcome.error());
  }
}

void Placement::get_vectors(SessionId session,
                            SentenceUid uid,
                            std::function<void(Result<VectorsBlob>)> done) {
  const State::Turn turn(*state_);
  Sentence* sentence = state_->stored(uid);
  if (sentence == nullptr || sentence->vectors_bytes == 0) {
    const char* why = sentence == nullptr ? "the sentence is not stored" : "it has no vectors";
    state_->later([done = std::move(done), why] { done(Error{ErrorCode::kNotFound, why}); });
    return;
  }
  if (sentence->vectors != nullptr) {
    state_->later([done = std::move(done), blob = sentence->vectors] { done(blob); });
    return;
  }
  ++state_->session_of(session).charge.requests;
  state_->vectors_waits[uid].waiters.push_back({session, std::move(done)});
  state_->changed();
}

void Placement::State::start_vectors_reads() {
  for (auto at = vectors_waits.begin(); at != vectors_waits.end();) {
    auto& [uid, wait] = *at;
    ++at;
    if (wait.reading) continue;
    const Sentence* sentence = stored(uid);
    if (sentence == nullptr || parts.nvme == nullptr) {
      on_vectors(uid, Error{ErrorCode::kNotFound, "the sentence is not stored"});
      continue;
    }
    const BodyReadOutcome outcome = parts.nvme->read_vectors(
        sentence->key,
        [token = std::weak_ptr<State*>(alive), uid = uid](const Result<VectorsBlob>& blob) {
          if (const auto state = token.lock()) (*state)->on_vectors(uid, blob);
        });
    if (outcome == BodyReadOutcome::kBusy) {
      store_busy = true;
      return;
    }
    if (outcome == BodyReadOutcome::kAccepted) {
      wait.reading = true;
    } else {
      on_vectors(uid, Error{ErrorCode::kCorrupt, "the NVMe store has lost the sentence"});
    }
  }
}

void Placement::State::on_vectors(SentenceUid uid, const Result<VectorsBlob>& result) {
  const Turn turn(*this);
  changed();
  const auto at = vectors_waits.find(uid);
  Sentence* sentence = stored(uid);
  const bool usable = result.ok() && result.value() != nullptr && sentence != nullptr &&
                      result.value()->size() == sentence->vectors_bytes;
  Result<VectorsBlob> answer = result;
  if (usable && sentence->vectors == nullptr) {
    ++counters.vectors_read;
    hold_vectors(*sentence, result.value());
  } else if (!usable && result.ok()) {
    answer = Error{ErrorCode::kNotFound, "the sentence is not stored"};
  }
  if (at != vectors_waits.end()) {
    for (VectorsWait::Waiter& waiter : at->second.waiters) {
      --session_of(waiter.session).charge.requests;
      forget_session_if_idle(waiter.session);
      later([done = std::move(waiter.done), answer] { done(answer); });
    }
    vectors_waits.erase(at);
  }
  if (sentence != nullptr && !result.ok() && result.error().code == ErrorCode::kCorrupt) {
    ++counters.evictions_corrupt;
    counters.evictions_unreachable += remove_sentence(uid) - 1;
  }
}

}  // namespace skv
