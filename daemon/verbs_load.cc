#include <algorithm>
#include <utility>

#include "daemon/data/copy_runner.h"
#include "daemon/gather.h"
#include "daemon/limits.h"
#include "daemon/verbs.h"

namespace skv {
namespace {

// One load: the sentences stay leased against eviction from first to last; chunks are leased batch
// by batch (a copy) or all at once (in place).
struct LoadJob {
  explicit LoadJob(Core& core_in) : core(core_in) {}

  Core& core;
  SessionId session{};
  std::shared_ptr<Context> context;
  Load message;
  ReplyPtr reply;
  uint64_t deadline_ns = 0;
  LayerRange layers;
  uint32_t first_chunk = 0;
  uint32_t chunk_count = 0;
  std::vector<SentenceUid> uids;
  std::shared_ptr<MappedMemory> memory;  // null: in place
  uint64_t memory_bytes = 0;
  DataModelPtr model;
  uint32_t next = 0;  // sentences before it are done
  LoadReply answer;

  uint64_t storage_bytes(uint32_t sentence) const {
    const uint32_t blocks = context->sentence(message.first_sentence + sentence).span.block_count;
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < chunk_count; ++i) {
      bytes += context->model()->layout().chunk_storage_bytes(first_chunk + i, blocks);
    }
    return bytes;
  }

  void count(const std::vector<ChunkLease>& leases) {
    for (const ChunkLease& lease : leases) {
      ++(lease.origin == Origin::kNvme ? answer.nvme_chunks : answer.host_chunks);
    }
  }

  // Bytes of the layers asked for.
  void count_bytes(uint32_t sentence) {
    const uint32_t blocks = context->sentence(message.first_sentence + sentence).span.block_count;
    const BodyLayout& layout = context->model()->layout();
    for (uint32_t layer = layers.first; layer < layers.end(); ++layer) {
      answer.bytes +=
          static_cast<uint64_t>(layout.kv_heads(layer)) * blocks * layout.block_bytes(layer);
    }
  }

  void unlease() {
    if (core.find_session(session) != nullptr) {
      for (const SentenceUid uid : uids) {
        core.placement.release_sentence(session, uid);
      }
    }
  }
  void fail(const Error& error) {
    unlease();
    reply->error(error);
  }
  void finish() {
    unlease();
    reply->ok(answer);
  }
};
using LoadJobPtr = std::shared_ptr<LoadJob>;

std::vector<ChunkRef> chunks_of(const LoadJob& job, uint32_t first, uint32_t end) {
  std::vector<ChunkRef> chunks;
  for (uint32_t i = first; i < end; ++i) {
    for (uint32_t c = 0; c < job.chunk_count; ++c) {
      chunks.push_back({job.uids[i], job.first_chunk + c});
    }
  }
  return chunks;
}

void lend(LoadJob& job, std::vector<ChunkLease> leases) {
  job.count(leases);
  job.answer.extents.reserve(leases.size());
  for (const ChunkLease& lease : leases) {
    job.answer.extents.push_back(lease.host_offset);
  }
  for (uint32_t i = 0; i < job.uids.size(); ++i) {
    job.count_bytes(i);
  }
  const auto id = job.core.next_id<LeaseId>();
  job.core.find_session(job.session)->loans.emplace(id, std::move(leases));
  job.answer.lease = raw(id);
  job.finish();
}

void load_in_place(const LoadJobPtr& job) {
  const auto count = static_cast<uint32_t>(job->uids.size());
  // What is on the host is lent at once; only for the rest has anything to be waited for.
  std::vector<ChunkLease> there;
  there.reserve(size_t{count} * job->chunk_count);
  const bool all = std::all_of(job->uids.begin(), job->uids.end(), [&](SentenceUid uid) {
    return job->core.placement.lease(job->session, uid, job->first_chunk, job->chunk_count, there);
  });
  if (all) {
    lend(*job, std::move(there));
    return;
  }
  job->core.placement.release(there);
  gather(job->core, {job->session, chunks_of(*job, 0, count), job->deadline_ns,
                     [job](Result<std::vector<ChunkLease>> leases) {
                       if (leases.ok()) {
                         lend(*job, std::move(leases).value());
                       } else {
                         job->fail(leases.error());
                       }
                     }});
}

void copy_batch(const LoadJobPtr& job) {
  Core& core = job->core;
  const auto count = static_cast<uint32_t>(job->uids.size());
  if (job->next >= count) {
    job->finish();
    return;
  }
  const uint64_t batch_max = std::min(kLoadBatchBytes, core.config.host_budget_bytes / 8);
  const uint32_t first = job->next;
  uint64_t bytes = job->storage_bytes(first);
  uint32_t end = first + 1;
  while (end < count && bytes + job->storage_bytes(end) <= batch_max) {
    bytes += job->storage_bytes(end++);
  }
  job->next = end;
  gather(core, {job->session, chunks_of(*job, first, end), job->deadline_ns,
                [job, first, end](Result<std::vector<ChunkLease>> leases) {
                  if (!leases.ok()) {
                    job->fail(leases.error());
                    return;
                  }
                  job->count(leases.value());
                  CopyTask copy;
                  for (uint32_t i = first; i < end; ++i) {
                    SentenceExtents extents;
                    extents.span = job->context->sentence(job->message.first_sentence + i).span;
                    for (uint32_t c = 0; c < job->chunk_count; ++c) {
                      extents.extents.push_back(
                          leases.value()[(i - first) * job->chunk_count + c].host_offset);
                    }
                    copy.sentences.push_back(std::move(extents));
                    job->count_bytes(i);
                  }
                  copy.task = job->core.tasks.begin(job->session, std::move(leases).value(),
                                                    [job](TaskDone& done) {
                                                      if (!done.status.ok()) {
                                                        job->fail(done.status.error());
                                                        return;
                                                      }
                                                      copy_batch(job);
                                                    });
                  copy.session = job->session;
                  copy.space = job->context->space();
                  copy.direction = CopyDirection::kLoad;
                  copy.model = job->model;
                  copy.hold = job->memory;
                  copy.memory = job->memory->data();
                  copy.memory_bytes = job->memory_bytes;
                  copy.view = job->message.destination;
                  copy.layers = job->layers;
                  job->core.data.post(std::move(copy));
                }});
}

// The stored sentences of the range, leased; false after an answer.
bool lease_sentences(LoadJob& job) {
  for (uint32_t i = 0; i < job.message.sentence_count; ++i) {
    const uint32_t index = job.message.first_sentence + i;
    const Sentence* sentence = job.context->find(job.core.directory, index);
    if (sentence == nullptr || sentence->state != SentenceState::kStored ||
        !job.core.placement.lease_sentence(job.session, sentence->uid)) {
      job.fail({ErrorCode::kNotFound, "sentence " + std::to_string(index) + " of context " +
                                          std::to_string(raw(job.context->id())) +
                                          " is not stored"});
      return false;
    }
    job.uids.push_back(sentence->uid);
  }
  return true;
}

}  // namespace

void load(Core& core, Session& session, const Load& message, const ReplyPtr& reply) {
  const std::shared_ptr<Context> context = context_of(session, message.context, reply);
  const LayerRange layers{message.first_layer, message.layer_count};
  if (context == nullptr ||
      !check_sentences(*context, {message.first_sentence, message.sentence_count}, reply) ||
      !check_layers(*context, layers, reply)) {
    return;
  }
  if (message.in_place > 1) {
    reply->error({ErrorCode::kInvalidArgument, "in_place is not 0 or 1"});
    return;
  }
  const BodyLayout& layout = context->model()->layout();
  const auto job = std::make_shared<LoadJob>(core);
  job->session = session.id;
  job->context = context;
  job->message = message;
  job->reply = reply;
  job->layers = layers;
  job->first_chunk = layout.chunk_of(layers.first);
  job->chunk_count = layout.chunk_of(layers.end() - 1) - job->first_chunk + 1;
  job->model = context->model()->data;
  const uint64_t deadline_ns =
      message.deadline_ms == 0
          ? core.config.load_deadline_ns
          : std::min<uint64_t>(message.deadline_ms * 1'000'000ULL, core.config.reply_deadline_ns);
  job->deadline_ns = core.loop.now_ns() + deadline_ns;

  if (message.in_place == 0) {
    const ClientMemory* memory = memory_of(session, message.destination.memory, reply);
    if (memory == nullptr) {
      return;
    }
    if (!memory->writable) {
      reply->error({ErrorCode::kDenied, "memory " + std::to_string(message.destination.memory) +
                                            " was registered by a descriptor that only reads"});
      return;
    }
    job->memory = memory->mapping;
    job->memory_bytes = memory->bytes;
    const SentenceSpan& first = context->sentence(message.first_sentence).span;
    const SentenceSpan& last =
        context->sentence(message.first_sentence + message.sentence_count - 1).span;
    const Result<void> inside =
        check_view(message.destination, memory->bytes, layout, layers,
                   {first.first_block, last.end_block() - first.first_block});
    if (!inside.ok()) {
      reply->error(inside.error());
      return;
    }
  } else {
    if (session.loans.size() >= core.config.session_leases_max) {
      reply->error(
          limit_error("sessions.leases", session.loans.size(), core.config.session_leases_max));
      return;
    }
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < message.sentence_count; ++i) {
      bytes += job->storage_bytes(i);
    }
    if (bytes > core.config.host_budget_bytes / 4) {
      reply->error({ErrorCode::kTooLarge, "a load in place of " + std::to_string(bytes) +
                                              " bytes; allowed are " +
                                              std::to_string(core.config.host_budget_bytes / 4) +
                                              ", a quarter of tiers.host.budget"});
      return;
    }
  }
  context->mark_used();
  if (!lease_sentences(*job)) {
    return;
  }
  core.placement.touch(job->uids);
  if (message.in_place == 1) {
    load_in_place(job);
  } else {
    copy_batch(job);
  }
}

void release(Core& core, Session& session, const Release& message, const ReplyPtr& reply) {
  const auto loan = session.loans.extract(LeaseId{message.lease});
  if (loan.empty()) {
    reply->error({ErrorCode::kUnknownHandle,
                  "lease " + std::to_string(message.lease) + " is not one of this session"});
    return;
  }
  core.placement.release(loan.mapped());
  reply->ok();
}

void lease_map_open(Core& core,
                    Session& session,
                    const LeaseMapOpen& message,
                    const ReplyPtr& reply) {
  const std::shared_ptr<Context> context = context_of(session, message.context, reply);
  if (context == nullptr) {
    return;
  }
  context->mark_used();
  const auto id = core.next_id<LeaseMapId>();
  Result<LeaseMaps::Opened> opened = core.lease_maps.open(
      id, context, core.config.session_context_tokens_max / kSentenceTokensMin + 1);
  if (!opened.ok()) {
    reply->error(opened.error());
    return;
  }
  std::vector<UniqueFd> fds;
  fds.push_back(std::move(opened.value().places));
  fds.push_back(std::move(opened.value().words));
  reply->ok(LeaseMapOpenReply{raw(id), opened.value().bytes}, std::move(fds));
}

void lease_map_close(Core& core,
                     Session& session,
                     const LeaseMapClose& message,
                     const ReplyPtr& reply) {
  if (!core.lease_maps.close(session.id, LeaseMapId{message.map})) {
    reply->error({ErrorCode::kUnknownHandle,
                  "lease map " + std::to_string(message.map) + " is not one of this session"});
    return;
  }
  reply->ok();
}

}  // namespace skv
