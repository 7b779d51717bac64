#include <algorithm>
#include <utility>

#include "daemon/verbs.h"

namespace skv {
namespace {

// The sentence of a context that this session is putting and may still write; null otherwise.
Sentence* open_sentence(Core& core, Session& session, const Context& context, uint32_t index) {
  Sentence* sentence = context.find(core.directory, index);
  if (sentence == nullptr || sentence->owner != session.id ||
      sentence->state != SentenceState::kReserved || !session.puts.contains(sentence->uid)) {
    return nullptr;
  }
  return sentence;
}

uint8_t wire(PutOutcome outcome) { return static_cast<uint8_t>(outcome); }

// What a reserved sentence is to the data thread: a place for every chunk.
GrantPuts::Sentence place_of(uint32_t index,
                             SentenceUid uid,
                             SentenceSpan span,
                             const std::vector<ChunkLease>& leases) {
  GrantPuts::Sentence sentence{index, uid, {span, {}, {}}};
  for (const ChunkLease& lease : leases) {
    sentence.place.extents.push_back(lease.host_offset);
  }
  return sentence;
}

}  // namespace

void end_put(Core& core, Session& session, SentenceUid uid) {
  auto put = session.puts.extract(uid);
  if (put.empty()) {
    return;
  }
  session.revoked.emplace(uid, std::move(put.mapped().leases));
  core.data.post(RevokePuts{session.id, {uid}});
}

void put_reserve(Core& core, Session& session, const PutReserve& message, const ReplyPtr& reply) {
  const std::shared_ptr<Context> context = context_of(session, message.context, reply);
  if (context == nullptr ||
      !check_sentences(*context, {message.first_sentence, message.sentence_count}, reply)) {
    return;
  }
  context->mark_used();
  Placement::PutRequest request;
  request.session = session.id;
  request.deadline_ns = core.loop.now_ns() + core.config.reserve_deadline_ns;
  for (uint32_t i = 0; i < message.sentence_count; ++i) {
    request.sentences.push_back(context->describe(core.directory, message.first_sentence + i));
  }
  const SessionId id = session.id;
  request.done = [&core, id, context, first = message.first_sentence,
                  reply](const std::vector<Placement::PutReservation>& made) {
    Session* const owner = core.find_session(id);
    if (owner == nullptr || owner->state == SessionState::kEnding) {
      return;
    }
    const bool closed = !owner->contexts.contains(context->id());
    const uint32_t chunk_count = context->model()->layout().chunk_count();
    GrantPuts grant{id, context->id(), context->space(), context->model()->data, {}};
    PutOutcomes answer;
    for (uint32_t i = 0; i < made.size(); ++i) {
      const Placement::PutReservation& reservation = made[i];
      answer.outcomes.push_back(wire(reservation.outcome));
      if (reservation.outcome != PutOutcome::kReserved) {
        continue;
      }
      const bool known = owner->puts.contains(reservation.uid);  // reserved once more
      OpenPut& put = owner->puts[reservation.uid];
      if (!known &&
          (closed || !core.placement.lease(id, reservation.uid, 0, chunk_count, put.leases))) {
        owner->puts.erase(reservation.uid);  // nobody could write it any more
        core.placement.put_cancel(id, reservation.uid);
        answer.outcomes.back() = wire(PutOutcome::kCancelled);
        continue;
      }
      put.context = context->id();
      grant.sentences.push_back(
          place_of(first + i, reservation.uid, context->sentence(first + i).span, put.leases));
    }
    if (!grant.sentences.empty()) {
      core.data.post(std::move(grant));
    }
    reply->ok(answer);
  };
  core.placement.put_reserve(std::move(request));
}

// By the socket, or by a channel before its grant was seen: checked here so that what is wrong is
// named, done by the data thread as any other.
void put_write(Core& core, Session& session, const PutWrite& message, const ReplyPtr& reply) {
  const std::shared_ptr<Context> context = context_of(session, message.context, reply);
  const LayerRange layers{message.first_layer, message.layer_count};
  if (context == nullptr ||
      !check_sentences(*context, {message.first_sentence, message.sentence_count}, reply) ||
      !check_layers(*context, layers, reply)) {
    return;
  }
  if (memory_of(session, message.source.memory, reply) == nullptr) {
    return;
  }
  WritePuts write;
  write.session = session.id;
  write.message = message;
  write.task = core.tasks.begin(session.id, {}, [reply](TaskDone& done) {
    if (done.status.ok()) {
      reply->ok();
    } else {
      reply->error(done.status.error());
    }
  });
  core.data.post(write);
}

namespace {

// Commits one sentence that is whole, with its vectors (or null).
PutOutcome commit_one(Core& core,
                      Session& session,
                      SentenceUid uid,
                      const TaskDone::Put& written,
                      VectorsBlob vectors) {
  for (const TaskDone::Sum& sum : written.sums) {
    core.placement.chunk_written(uid, sum.chunk, sum.sum);
  }
  const PutOutcome outcome = core.placement.put_commit(session.id, uid, std::move(vectors));
  end_put(core, session, uid);
  return outcome;
}

}  // namespace

void put_commit(Core& core, Session& session, const PutCommit& message, const ReplyPtr& reply) {
  const std::shared_ptr<Context> context = context_of(session, message.context, reply);
  if (context == nullptr ||
      !check_sentences(*context, {message.first_sentence, message.sentence_count}, reply)) {
    return;
  }
  if (message.derive_vectors > 1) {
    reply->error({ErrorCode::kInvalidArgument, "derive_vectors is not 0 or 1"});
    return;
  }
  auto answer = std::make_shared<PutOutcomes>();
  std::vector<size_t> at;  // of each put that is sealed, in the answer
  SealPuts seal;
  for (uint32_t i = 0; i < message.sentence_count; ++i) {
    const Sentence* const sentence =
        open_sentence(core, session, *context, message.first_sentence + i);
    if (sentence == nullptr) {
      answer->outcomes.push_back(wire(PutOutcome::kNotReserved));
      continue;
    }
    answer->outcomes.push_back(wire(PutOutcome::kIncomplete));
    OpenPut& put = session.puts[sentence->uid];
    if (put.committing) {
      continue;
    }
    put.committing = true;
    at.push_back(i);
    seal.puts.push_back({sentence->uid, message.derive_vectors != 0 && put.vectors == nullptr});
  }
  if (seal.puts.empty()) {
    reply->ok(*answer);
    return;
  }
  const SessionId id = session.id;
  seal.session = id;
  seal.index = context->index();
  seal.task = core.tasks.begin(
      id, {}, [&core, id, answer, reply, at = std::move(at), puts = seal.puts](TaskDone& done) {
        Session* const owner = core.find_session(id);
        if (owner == nullptr) {
          return;
        }
        size_t next = 0;  // of done.vectors
        for (size_t i = 0; i < puts.size(); ++i) {
          const SentenceUid uid = puts[i].uid;
          const auto put = owner->puts.find(uid);
          const bool derived = puts[i].derive && done.puts[i].whole;
          const size_t vectors = derived ? next++ : 0;
          if (put == owner->puts.end()) {  // cancelled meanwhile
            answer->outcomes[at[i]] = wire(PutOutcome::kCancelled);
          } else if (!done.puts[i].whole) {
            put->second.committing = false;
          } else if (!done.status.ok() || (derived && vectors >= done.vectors.size())) {
            core.placement.put_cancel(id, uid);  // sealed, and without vectors
            end_put(core, *owner, uid);
          } else {
            VectorsBlob blob =
                derived ? std::move(done.vectors[vectors]) : std::move(put->second.vectors);
            answer->outcomes[at[i]] =
                wire(commit_one(core, *owner, uid, done.puts[i], std::move(blob)));
          }
        }
        core.feeds.run_pending();
        core.lease_maps.run_pending();
        if (done.status.ok()) {
          reply->ok(*answer);
        } else {
          reply->error(done.status.error());
        }
      });
  core.data.post(std::move(seal));
}

void put_cancel(Core& core, Session& session, const PutCancel& message, const ReplyPtr& reply) {
  const std::shared_ptr<Context> context = context_of(session, message.context, reply);
  if (context == nullptr ||
      !check_sentences(*context, {message.first_sentence, message.sentence_count}, reply)) {
    return;
  }
  PutOutcomes answer;
  for (uint32_t i = 0; i < message.sentence_count; ++i) {
    const Sentence* sentence = open_sentence(core, session, *context, message.first_sentence + i);
    if (sentence == nullptr) {
      answer.outcomes.push_back(wire(PutOutcome::kNotReserved));
      continue;
    }
    const SentenceUid uid = sentence->uid;
    answer.outcomes.push_back(wire(core.placement.put_cancel(session.id, uid)));
    end_put(core, session, uid);
  }
  reply->ok(answer);
}

}  // namespace skv
