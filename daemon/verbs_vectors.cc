#include <algorithm>
#include <utility>

#include "daemon/gather.h"
#include "daemon/verbs.h"
#include "ipc/layout/vectors.h"

namespace skv {
namespace {

uint8_t wire(PutOutcome outcome) { return static_cast<uint8_t>(outcome); }

// A stored sentence, or one that this session is putting; null otherwise.
Sentence* writable_sentence(Core& core, Session& session, const Context& context, uint32_t index) {
  Sentence* sentence = context.find(core.directory, index);
  if (sentence == nullptr) {
    return nullptr;
  }
  const bool own = sentence->owner == session.id && session.puts.contains(sentence->uid);
  return sentence->state == SentenceState::kStored || own ? sentence : nullptr;
}

// Gives vectors to a sentence: to the put while it is open, else to what is stored.
PutOutcome give_vectors(Core& core,
                        Session& session,
                        const IndexDescriptor& index,
                        SentenceUid uid,
                        VectorsBlob vectors) {
  Sentence* const sentence = core.directory.find(uid);
  if (sentence == nullptr) {
    return PutOutcome::kNotReserved;
  }
  if (const auto put = session.puts.find(uid); put != session.puts.end()) {
    if (put->second.committing) {
      return PutOutcome::kPending;
    }
    put->second.vectors = std::move(vectors);
    return PutOutcome::kCommitted;
  }
  if (!core.placement.set_vectors(uid, index, std::move(vectors)).ok()) {
    return PutOutcome::kExists;
  }
  core.feeds.vectors_came(sentence->key);
  return PutOutcome::kCommitted;
}

// Sentences are derived one by one, so that a long range holds the chunks of one at a time.
struct DeriveJob {
  explicit DeriveJob(Core& core_in) : core(core_in) {}

  Core& core;
  SessionId session{};
  std::shared_ptr<Context> context;
  DataModelPtr model;
  uint32_t first_sentence = 0;
  uint32_t sentence_count = 0;
  uint64_t deadline_ns = 0;
  ReplyPtr reply;
  PutOutcomes answer;
};

void derive_next(const std::shared_ptr<DeriveJob>& job) {
  Core& core = job->core;
  Session* const session = core.find_session(job->session);
  if (session == nullptr) {
    return;
  }
  while (job->answer.outcomes.size() < job->sentence_count) {
    const uint32_t index = job->first_sentence + static_cast<uint32_t>(job->answer.outcomes.size());
    const Sentence* sentence = job->context->find(core.directory, index);
    if (sentence == nullptr || sentence->state != SentenceState::kStored) {
      job->answer.outcomes.push_back(wire(PutOutcome::kNotReserved));
      continue;
    }
    if (sentence->vectors_bytes != 0) {
      job->answer.outcomes.push_back(wire(PutOutcome::kExists));
      continue;
    }
    GatherRequest request;
    request.session = job->session;
    request.deadline_ns = job->deadline_ns;
    const SentenceUid uid = sentence->uid;
    for (uint32_t c = 0; c < sentence->shape->chunk_count(); ++c) {
      request.chunks.push_back({uid, c});
    }
    request.done = [job, uid, index](Result<std::vector<ChunkLease>> leases) {
      if (!leases.ok()) {
        job->reply->error(leases.error());
        return;
      }
      DeriveTask task;
      SentenceExtents extents;
      extents.span = job->context->sentence(index).span;
      for (const ChunkLease& lease : leases.value()) {
        extents.extents.push_back(lease.host_offset);
      }
      task.sentences.push_back(std::move(extents));
      task.session = job->session;
      task.space = job->context->space();
      task.model = job->model;
      task.index = job->context->index();
      task.task = job->core.tasks.begin(
          job->session, std::move(leases).value(), [job, uid](TaskDone& done) {
            Session* const owner = job->core.find_session(job->session);
            if (owner == nullptr) {
              return;
            }
            if (!done.status.ok() || done.vectors.size() != 1) {
              job->reply->error(done.status.ok()
                                    ? Error{ErrorCode::kInternal, "a derivation has no vectors"}
                                    : done.status.error());
              return;
            }
            job->answer.outcomes.push_back(wire(give_vectors(
                job->core, *owner, job->context->index(), uid, std::move(done.vectors[0]))));
            derive_next(job);
          });
      job->core.data.post(std::move(task));
    };
    gather(core, std::move(request));
    return;
  }
  core.feeds.run_pending();
  job->reply->ok(job->answer);
}

}  // namespace

void vectors_derive(Core& core,
                    Session& session,
                    const VectorsDerive& message,
                    const ReplyPtr& reply) {
  const std::shared_ptr<Context> context = context_of(session, message.context, reply);
  if (context == nullptr ||
      !check_sentences(*context, {message.first_sentence, message.sentence_count}, reply)) {
    return;
  }
  const auto job = std::make_shared<DeriveJob>(core);
  job->session = session.id;
  job->context = context;
  job->model = context->model()->data;
  job->first_sentence = message.first_sentence;
  job->sentence_count = message.sentence_count;
  job->deadline_ns = core.loop.now_ns() + core.config.load_deadline_ns;
  job->reply = reply;
  derive_next(job);
}

void vectors_put(Core& core, Session& session, const VectorsPut& message, const ReplyPtr& reply) {
  const std::shared_ptr<Context> context = context_of(session, message.context, reply);
  if (context == nullptr ||
      !check_sentences(*context, {message.first_sentence, message.sentence_count}, reply)) {
    return;
  }
  const ClientMemory* memory = memory_of(session, message.memory, reply);
  if (memory == nullptr) {
    return;
  }
  const DataModelPtr model = context->model()->data;
  const VectorsLayout layout(model->descriptor, context->index());
  uint64_t expected = 0;
  CopyVectorsTask copy;
  for (uint32_t i = 0; i < message.sentence_count; ++i) {
    const SentenceSpan& span = context->sentence(message.first_sentence + i).span;
    expected += layout.blob_bytes(span.block_count);
    copy.spans.push_back(span);
  }
  if (message.bytes != expected) {
    reply->error({ErrorCode::kInvalidArgument, "bytes is " + std::to_string(message.bytes) +
                                                   ", the blobs of these sentences are " +
                                                   std::to_string(expected)});
    return;
  }
  if (message.offset > memory->bytes || message.bytes > memory->bytes - message.offset) {
    reply->error({ErrorCode::kInvalidArgument, "offset " + std::to_string(message.offset) +
                                                   " and bytes " + std::to_string(message.bytes) +
                                                   " leave the memory's " +
                                                   std::to_string(memory->bytes)});
    return;
  }
  auto answer = std::make_shared<PutOutcomes>();
  auto uids = std::make_shared<std::vector<SentenceUid>>();
  for (uint32_t i = 0; i < message.sentence_count; ++i) {
    const Sentence* sentence =
        writable_sentence(core, session, *context, message.first_sentence + i);
    uids->push_back(sentence == nullptr ? SentenceUid{} : sentence->uid);
  }
  const SessionId id = session.id;
  copy.task = core.tasks.begin(id, {}, [&core, id, context, answer, uids, reply](TaskDone& done) {
    Session* const owner = core.find_session(id);
    if (owner == nullptr) {
      return;
    }
    if (!done.status.ok() || done.vectors.size() != uids->size()) {
      reply->error(done.status.ok()
                       ? Error{ErrorCode::kInternal, "vectors are missing after a copy"}
                       : done.status.error());
      return;
    }
    for (size_t i = 0; i < uids->size(); ++i) {
      answer->outcomes.push_back((*uids)[i] == SentenceUid{}
                                     ? wire(PutOutcome::kNotReserved)
                                     : wire(give_vectors(core, *owner, context->index(), (*uids)[i],
                                                         std::move(done.vectors[i]))));
    }
    core.feeds.run_pending();
    reply->ok(*answer);
  });
  copy.session = id;
  copy.model = model;
  copy.index = context->index();
  copy.hold = memory->mapping;
  copy.memory = memory->mapping->data();
  copy.memory_bytes = memory->bytes;
  copy.offset = message.offset;
  copy.bytes = message.bytes;
  core.data.post(std::move(copy));
}

}  // namespace skv
