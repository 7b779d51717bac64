#include <algorithm>
#include <utility>

#include "daemon/data/copy_runner.h"
#include "daemon/small_copies.h"
#include "daemon/verbs.h"

namespace skv {
namespace {

// Chunks of `shape` that hold any of the layers.
struct ChunkRange {
  uint32_t first = 0;
  uint32_t count = 0;
};
ChunkRange chunks_of(const BodyLayout& layout, const LayerRange& layers) {
  const uint32_t first = layout.chunk_of(layers.first);
  return {first, layout.chunk_of(layers.end() - 1) - first + 1};
}

// The sentence of a context that this session is putting and may still write; null otherwise.
Sentence* open_sentence(Core& core, Session& session, const Context& context, uint32_t index) {
  Sentence* sentence = context.find(core.directory, index);
  if (sentence == nullptr || sentence->owner != session.id ||
      sentence->state != SentenceState::kReserved || !session.puts.contains(sentence->uid)) {
    return nullptr;
  }
  return sentence;
}

std::vector<uint64_t> offsets_of(const std::vector<ChunkLease>& leases, size_t first) {
  std::vector<uint64_t> offsets;
  for (size_t i = first; i < leases.size(); ++i) {
    offsets.push_back(leases[i].host_offset);
  }
  return offsets;
}

uint8_t wire(PutOutcome outcome) { return static_cast<uint8_t>(outcome); }

bool whole(const OpenPut& put) {
  return put.copies == 0 && !put.committing &&
         std::all_of(put.layers.begin(), put.layers.end(), [](bool written) { return written; });
}

}  // namespace

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
  request.done = [&core, id, context, reply](const std::vector<Placement::PutReservation>& made) {
    Session* const owner = core.find_session(id);
    if (owner == nullptr) {
      return;
    }
    const bool closed = !owner->contexts.contains(context->id());
    PutOutcomes answer;
    for (const Placement::PutReservation& reservation : made) {
      answer.outcomes.push_back(wire(reservation.outcome));
      if (reservation.outcome != PutOutcome::kReserved) {
        continue;
      }
      if (closed) {  // nobody could write it any more
        core.placement.put_cancel(id, reservation.uid);
        answer.outcomes.back() = wire(PutOutcome::kCancelled);
        continue;
      }
      OpenPut put;
      put.context = context->id();
      put.layers.assign(context->model()->layout().layer_count(), false);
      owner->puts[reservation.uid] = std::move(put);
    }
    reply->ok(answer);
  };
  core.placement.put_reserve(std::move(request));
}

void put_write(Core& core, Session& session, const PutWrite& message, const ReplyPtr& reply) {
  const std::shared_ptr<Context> context = context_of(session, message.context, reply);
  const LayerRange layers{message.first_layer, message.layer_count};
  if (context == nullptr ||
      !check_sentences(*context, {message.first_sentence, message.sentence_count}, reply) ||
      !check_layers(*context, layers, reply)) {
    return;
  }
  const ClientMemory* memory = memory_of(session, message.source.memory, reply);
  if (memory == nullptr) {
    return;
  }
  const BodyLayout& layout = context->model()->layout();
  const ChunkRange chunks = chunks_of(layout, layers);

  CopyTask copy;
  std::vector<ChunkLease> leases;
  std::vector<SentenceUid> uids;
  for (uint32_t i = 0; i < message.sentence_count; ++i) {
    const uint32_t index = message.first_sentence + i;
    const Sentence* sentence = open_sentence(core, session, *context, index);
    if (sentence == nullptr || session.puts[sentence->uid].committing) {
      continue;
    }
    const SentenceSpan& span = context->sentence(index).span;
    const Result<void> inside = check_view(message.source, memory->bytes, layout, layers, span);
    const size_t first_lease = leases.size();
    if (!inside.ok() ||
        !core.placement.lease(session.id, sentence->uid, chunks.first, chunks.count, leases)) {
      core.placement.release(leases);
      reply->error(inside.ok() ? Error{ErrorCode::kInternal, "a reserved chunk has no extent"}
                               : inside.error());
      return;
    }
    copy.sentences.push_back({span, offsets_of(leases, first_lease), {}, sentence->uid});
    uids.push_back(sentence->uid);
  }
  if (uids.empty()) {
    reply->ok();
    return;
  }
  // Copies of one session run in the order in which they were posted, so a chunk is whole after the
  // last of them, and that one is asked for its checksum.
  const bool in_parts = layout.chunk_layers(chunks.first).first != layers.first ||
                        layout.chunk_layers(chunks.first + chunks.count - 1).end() != layers.end();
  bool here = true;
  for (size_t i = 0; i < uids.size(); ++i) {
    OpenPut& put = session.puts[uids[i]];
    put.in_parts = put.in_parts || in_parts;
    here = here && put.copies == 0 && !put.in_parts;
    ++put.copies;
    std::fill_n(put.layers.begin() + layers.first, layers.count, true);
    for (uint32_t c = 0; c < chunks.count; ++c) {
      const LayerRange of = layout.chunk_layers(chunks.first + c);
      if (std::all_of(put.layers.begin() + of.first, put.layers.begin() + of.end(),
                      [](bool written) { return written; })) {
        copy.sentences[i].checksum_chunks.push_back(chunks.first + c);
      }
    }
  }
  const SessionId id = session.id;
  copy.task = core.tasks.begin(id, std::move(leases), [&core, id, uids, reply](TaskDone& done) {
    Session* const owner = core.find_session(id);
    if (owner == nullptr) {
      return;
    }
    for (const SentenceUid uid : uids) {
      if (const auto put = owner->puts.find(uid); put != owner->puts.end()) {
        --put->second.copies;
        if (!done.status.ok()) {  // what it holds is not known: it cannot be committed
          core.placement.put_cancel(id, uid);
          owner->puts.erase(put);
        }
      }
    }
    if (!done.status.ok()) {
      reply->error(done.status.error());
      return;
    }
    for (const TaskDone::Sum& sum : done.sums) {
      if (sum.sentence < uids.size() && owner->puts.contains(uids[sum.sentence])) {
        core.placement.chunk_written(uids[sum.sentence], sum.chunk, sum.sum);
      }
    }
    reply->ok();
  });
  copy.session = id;
  copy.space = context->space();
  copy.direction = CopyDirection::kPut;
  copy.model = context->model()->data;
  copy.hold = memory->mapping;
  copy.memory = memory->mapping->data();
  copy.memory_bytes = memory->bytes;
  copy.view = message.source;
  copy.layers = layers;
  start_copy(core, std::move(copy), here);
}

namespace {

// Commits one sentence whose vectors are there (or null), and forgets the put if that ended it.
PutOutcome commit_one(Core& core, Session& session, SentenceUid uid, VectorsBlob vectors) {
  const PutOutcome outcome = core.placement.put_commit(session.id, uid, std::move(vectors));
  if (outcome == PutOutcome::kIncomplete) {
    if (const auto put = session.puts.find(uid); put != session.puts.end()) {
      put->second.committing = false;
    }
  } else {
    session.puts.erase(uid);
  }
  return outcome;
}

struct Derivation {
  std::vector<size_t> outcome_index;  // by sentence of the task
  std::vector<SentenceUid> uids;
  std::vector<ChunkLease> leases;
  DeriveTask task;
};

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
  const BodyLayout& layout = context->model()->layout();
  auto answer = std::make_shared<PutOutcomes>();
  Derivation derive;
  for (uint32_t i = 0; i < message.sentence_count; ++i) {
    const uint32_t index = message.first_sentence + i;
    Sentence* const sentence = open_sentence(core, session, *context, index);
    if (sentence == nullptr) {
      answer->outcomes.push_back(wire(PutOutcome::kNotReserved));
      continue;
    }
    OpenPut& put = session.puts[sentence->uid];
    if (!whole(put)) {
      answer->outcomes.push_back(wire(PutOutcome::kIncomplete));
      continue;
    }
    put.committing = true;
    if (message.derive_vectors == 0 || put.vectors != nullptr) {
      answer->outcomes.push_back(
          wire(commit_one(core, session, sentence->uid, std::move(put.vectors))));
      continue;
    }
    const size_t first_lease = derive.leases.size();
    if (!core.placement.lease(session.id, sentence->uid, 0, layout.chunk_count(), derive.leases)) {
      put.committing = false;
      answer->outcomes.push_back(wire(PutOutcome::kIncomplete));
      continue;
    }
    derive.outcome_index.push_back(answer->outcomes.size());
    answer->outcomes.push_back(wire(PutOutcome::kIncomplete));
    derive.uids.push_back(sentence->uid);
    derive.task.sentences.push_back(
        {context->sentence(index).span, offsets_of(derive.leases, first_lease), {}, sentence->uid});
  }
  if (derive.uids.empty()) {
    core.feeds.run_pending();
    reply->ok(*answer);
    return;
  }
  const SessionId id = session.id;
  derive.task.task = core.tasks.begin(
      id, std::move(derive.leases),
      [&core, id, answer, reply, uids = derive.uids, at = derive.outcome_index](TaskDone& done) {
        Session* const owner = core.find_session(id);
        if (owner == nullptr) {
          return;
        }
        const bool derived = done.status.ok() && done.vectors.size() == uids.size();
        for (size_t i = 0; i < uids.size(); ++i) {
          if (derived) {
            answer->outcomes[at[i]] =
                wire(commit_one(core, *owner, uids[i], std::move(done.vectors[i])));
          } else if (const auto put = owner->puts.find(uids[i]); put != owner->puts.end()) {
            put->second.committing = false;
          }
        }
        if (!derived) {
          reply->error(done.status.ok()
                           ? Error{ErrorCode::kInternal, "vectors are missing after derivation"}
                           : done.status.error());
          return;
        }
        core.feeds.run_pending();
        reply->ok(*answer);
      });
  derive.task.session = id;
  derive.task.space = context->space();
  derive.task.model = context->model()->data;
  derive.task.index = context->index();
  core.data.post(std::move(derive.task));
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
    session.puts.erase(uid);
  }
  reply->ok(answer);
}

}  // namespace skv
