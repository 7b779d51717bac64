#include "daemon/data/copy_runner.h"

#include <algorithm>
#include <string>
#include <utility>

#include "ipc/types/check.h"
#include "tiers/copy.h"

namespace skv {
namespace {

// A load of more than this goes around the caches: what its reader wants first would be gone from
// them by the time it looks.
constexpr uint64_t kCachedLoadBytesMax = 1ULL << 20;

// Where `layer` begins in its chunk.
uint64_t layer_offset(const BodyLayout& layout, uint32_t layer, uint32_t blocks) {
  return layout.block_offset(layer, 0, 0, blocks);
}

}  // namespace

template <typename Task>
void CopyRunner::add(SessionId session, Task task) {
  auto queue = std::find_if(queues_.begin(), queues_.end(),
                            [&](const Queue& each) { return each.session == session; });
  if (queue == queues_.end()) {
    if (spare_queues_.empty()) spare_queues_.emplace_back();
    queues_.splice(queues_.end(), spare_queues_, spare_queues_.begin());
    queue = std::prev(queues_.end());
    queue->session = session;
  }
  if (spare_jobs_.empty()) spare_jobs_.emplace_back();
  queue->jobs.splice(queue->jobs.end(), spare_jobs_, spare_jobs_.begin());
  Job& job = queue->jobs.back();
  job.result.task = task.task;
  job.result.session = session;
  job.task = std::move(task);
}

template void CopyRunner::add(SessionId, CopyTask);
template void CopyRunner::add(SessionId, DeriveTask);
template void CopyRunner::add(SessionId, CopyVectorsTask);

void CopyRunner::end_job(Queue& queue) {
  queue.jobs.front() = Job{};  // gives back what it held
  spare_jobs_.splice(spare_jobs_.end(), queue.jobs, queue.jobs.begin());
}

void CopyRunner::drop(SessionId session) {
  for (auto queue = queues_.begin(); queue != queues_.end(); ++queue) {
    if (queue->session != session) continue;
    while (!queue->jobs.empty()) end_job(*queue);
    spare_queues_.splice(spare_queues_.end(), queues_, queue);
    break;
  }
  sums_.drop(session);
}

size_t CopyRunner::count() const {
  size_t jobs = 0;
  for (const Queue& queue : queues_) jobs += queue.jobs.size();
  return jobs;
}

bool CopyRunner::run(uint64_t slice_end_ns) {
  if (queues_.empty()) return false;
  now_ns_ = hooks_.now_ns();
  while (!queues_.empty()) {
    const auto queue = next_turn();
    for (uint64_t taken = 0; taken < kTurnNs && !queue->jobs.empty();) taken += work(*queue);
    if (queue->jobs.empty()) {
      spare_queues_.splice(spare_queues_.end(), queues_, queue);
    } else {
      queues_.splice(queues_.end(), queues_, queue);
    }
    if (now_ns_ >= slice_end_ns || hooks_.interrupted()) break;
  }
  return !queues_.empty();
}

std::list<CopyRunner::Queue>::iterator CopyRunner::next_turn() {
  auto next = queues_.begin();
  uint64_t least = UINT64_MAX;
  for (auto queue = queues_.begin(); queue != queues_.end(); ++queue) {
    const uint64_t served = fair_.served(queue->session);
    if (served >= least) continue;
    next = queue;
    least = served;
  }
  fair_.chosen(next->session);
  return next;
}

// One unit of the first job; returns what it cost.
uint64_t CopyRunner::work(Queue& queue) {
  Job& job = queue.jobs.front();
  const Unit done = step(job);
  const uint64_t begun_ns = std::exchange(now_ns_, hooks_.now_ns());
  const uint64_t cost =
      std::max(now_ns_ - begun_ns, done.bytes / kBytesPerNs) + (done.last ? kTaskNs : 0);
  fair_.serve(queue.session, cost);
  if (!done.last) return cost;
  stores_done();
  DataCounters::add(counters_.tasks, 1);
  TaskDone result = std::move(job.result);
  end_job(queue);
  hooks_.done(std::move(result));
  return cost;
}

CopyRunner::Unit CopyRunner::step(Job& job) {
  return std::visit(
      [&](const auto& task) {
        if (!job.started) {
          job.started = true;
          job.result.status = start(job, task);
          if (!job.result.status.ok()) return Unit{0, true};
        }
        return unit(job, task);
      },
      job.task);
}

// ---- copy ---------------------------------------------------------------------------------------

Result<void> CopyRunner::start(Job& job, const CopyTask& task) {
  const BodyLayout& layout = task.model->layout;
  job.arena = hooks_.arena(task.space);
  job.layer = task.layers.first;
  if (task.layers.count == 0 || task.layers.count > layout.layer_count() ||
      task.layers.first > layout.layer_count() - task.layers.count) {
    return Error{ErrorCode::kInvalidArgument, "layers [" + std::to_string(task.layers.first) +
                                                  ", +" + std::to_string(task.layers.count) +
                                                  ") of a model of " +
                                                  std::to_string(layout.layer_count())};
  }
  uint64_t bytes = 0;
  for (const SentenceExtents& sentence : task.sentences) {
    if (Result<void> inside =
            check_view(task.view, task.memory_bytes, layout, task.layers, sentence.span);
        !inside.ok()) {
      return inside;
    }
    for (uint32_t layer = task.layers.first; layer < task.layers.end(); ++layer) {
      bytes +=
          uint64_t{layout.kv_heads(layer)} * sentence.span.block_count * layout.block_bytes(layer);
    }
  }
  job.around_caches = bytes > kCachedLoadBytesMax;
  return {};
}

CopyRunner::Unit CopyRunner::unit(Job& job, const CopyTask& task) {
  if (job.sentence == task.sentences.size()) return {0, true};
  const BodyLayout& layout = task.model->layout;
  const SentenceExtents& sentence = task.sentences[job.sentence];
  uint64_t bytes = 0;
  if (job.layer < task.layers.end()) {
    bytes = task.direction == CopyDirection::kPut ? put_unit(job, task) : load_unit(job, task);
    job.result.bytes += bytes;
    if (++job.kv_head == layout.kv_heads(job.layer)) {
      if (task.direction == CopyDirection::kPut) layer_written(job, task);
      job.kv_head = 0;
      ++job.layer;
    }
  } else {
    bytes = sum_unit(job, task);
  }
  if (job.layer == task.layers.end() && job.sum == sentence.checksum_chunks.size()) {
    job.layer = task.layers.first;
    job.sum = 0;
    job.whole.clear();
    ++job.sentence;
  }
  return {bytes, job.sentence == task.sentences.size()};
}

uint64_t CopyRunner::put_unit(Job& job, const CopyTask& task) {
  const BodyLayout& layout = task.model->layout;
  const SentenceExtents& sentence = task.sentences[job.sentence];
  const uint32_t index = layout.chunk_of(job.layer);
  const LayerRange of = layout.chunk_layers(index);
  if (job.kv_head == 0 && (job.layer == of.first || job.layer == task.layers.first)) {
    job.open_sum = sums_.take({job.result.session, sentence.uid, index},
                              layer_offset(layout, job.layer, sentence.span.block_count));
  }
  std::byte* chunk =
      chunk_at(job.arena, layout, sentence, layout.chunk_of(task.layers.first), index);
  ChecksumStream* const stream = job.open_sum == nullptr ? nullptr : &job.open_sum->stream;
  const uint64_t bytes = put_head({task, sentence, chunk, job.layer, job.kv_head}, stream);
  if (job.open_sum != nullptr) job.open_sum->bytes += bytes;
  DataCounters::add(counters_.bytes_put, bytes);
  return bytes;
}

// After the last head of a layer: what becomes of the chunk's sum.
void CopyRunner::layer_written(Job& job, const CopyTask& task) {
  const BodyLayout& layout = task.model->layout;
  const SentenceExtents& sentence = task.sentences[job.sentence];
  const uint32_t index = layout.chunk_of(job.layer);
  const bool ends =
      job.layer + 1 == layout.chunk_layers(index).end() || job.layer + 1 == task.layers.end();
  if (job.open_sum == nullptr || !ends) return;
  OpenSums::Sum& sum = *std::exchange(job.open_sum, nullptr);
  if (sum.bytes == layout.chunk_bytes(index, sentence.span.block_count)) {
    job.whole.push_back({job.sentence, index, sum.stream.sum()});
    sums_.free(sum);
  } else if (sentence.uid == SentenceUid{}) {
    sums_.free(sum);
  } else {
    sums_.give_back(sum);
  }
}

uint64_t CopyRunner::load_unit(const Job& job, const CopyTask& task) {
  const BodyLayout& layout = task.model->layout;
  const SentenceExtents& sentence = task.sentences[job.sentence];
  std::byte* chunk = chunk_at(job.arena, layout, sentence, layout.chunk_of(task.layers.first),
                              layout.chunk_of(job.layer));
  const uint64_t bytes =
      load_head({task, sentence, chunk, job.layer, job.kv_head}, job.around_caches);
  DataCounters::add(counters_.bytes_loaded, bytes);
  return bytes;
}

// The sum of the next chunk that is whole now: made while it was copied, or of the extent, where
// the client cannot change it.
uint64_t CopyRunner::sum_unit(Job& job, const CopyTask& task) {
  const BodyLayout& layout = task.model->layout;
  const SentenceExtents& sentence = task.sentences[job.sentence];
  const uint32_t index = sentence.checksum_chunks[job.sum++];
  const auto made = std::find_if(job.whole.begin(), job.whole.end(),
                                 [&](const TaskDone::Sum& sum) { return sum.chunk == index; });
  if (made != job.whole.end()) {
    job.result.sums.push_back(*made);
    return 0;
  }
  const std::byte* chunk =
      chunk_at(job.arena, layout, sentence, layout.chunk_of(task.layers.first), index);
  const uint64_t bytes = layout.chunk_bytes(index, sentence.span.block_count);
  job.result.sums.push_back({job.sentence, index, checksum({chunk, bytes})});
  DataCounters::add(counters_.bytes_summed_again, bytes);
  return bytes;
}

}  // namespace skv
