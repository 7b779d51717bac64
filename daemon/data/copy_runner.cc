#include "daemon/data/copy_runner.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "ipc/types/check.h"
#include "tiers/checksum.h"

namespace skv {
namespace {

// value + count * stride, or nothing when that leaves 64 bits.
std::optional<uint64_t> advance(uint64_t value, uint64_t count, uint64_t stride) {
  uint64_t product = 0;
  uint64_t sum = 0;
  if (__builtin_mul_overflow(count, stride, &product) ||
      __builtin_add_overflow(value, product, &sum)) {
    return std::nullopt;
  }
  return sum;
}

// Where the extent of a chunk begins in this process. The loop's numbers: a wrong one is our bug.
std::byte* chunk_at(const ArenaView& arena,
                    const BodyLayout& layout,
                    const SentenceExtents& sentence,
                    uint32_t first_chunk,
                    uint32_t chunk) {
  SKV_CHECK(chunk >= first_chunk && chunk - first_chunk < sentence.extents.size(),
            "a task has the extents of its chunks");
  const uint64_t offset = sentence.extents[chunk - first_chunk];
  const uint64_t bytes = layout.chunk_bytes(chunk, sentence.span.block_count);
  SKV_CHECK(bytes <= arena.bytes && offset <= arena.bytes - bytes, "an extent lies in its arena");
  return arena.base + offset;
}

struct Rows {
  std::byte* body;        // row 0 of the block
  std::byte* client;      // token 0 of the block
  uint64_t row_bytes;     // contiguous in the body
  uint64_t token_stride;  // of the client
  uint32_t count;
};

void copy_rows(const Rows& rows, CopyDirection direction) {
  const bool put = direction == CopyDirection::kPut;
  if (rows.token_stride == rows.row_bytes) {
    const uint64_t bytes = rows.row_bytes * rows.count;
    std::memcpy(put ? rows.body : rows.client, put ? rows.client : rows.body, bytes);
    return;
  }
  for (uint32_t row = 0; row < rows.count; ++row) {
    std::byte* body = rows.body + row * rows.row_bytes;
    std::byte* client = rows.client + row * rows.token_stride;
    std::memcpy(put ? body : client, put ? client : body, rows.row_bytes);
  }
}

// K and V of one (sentence, layer, kv head).
uint64_t copy_head(const CopyTask& task,
                   const SentenceExtents& sentence,
                   std::byte* chunk,
                   uint32_t layer,
                   uint32_t kv_head) {
  const BodyLayout& layout = task.model->layout;
  const uint32_t tokens = layout.block_tokens();
  const uint64_t k_row = uint64_t{layout.k_dim(layer)} * layout.element_bytes();
  const uint64_t v_row = uint64_t{layout.v_dim(layer)} * layout.element_bytes();
  const uint64_t head_at =
      (layer - task.layers.first) * task.view.layer_stride + kv_head * task.view.head_stride;
  for (uint32_t block = 0; block < sentence.span.block_count; ++block) {
    std::byte* body = chunk + layout.block_offset(layer, kv_head, block, sentence.span.block_count);
    const uint64_t token =
        uint64_t{sentence.span.first_block + block} * tokens - task.view.first_token;
    const uint64_t at = head_at + token * task.view.token_stride;
    copy_rows({body, task.memory + task.view.k_offset + at, k_row, task.view.token_stride, tokens},
              task.direction);
    copy_rows({body + k_row * tokens, task.memory + task.view.v_offset + at, v_row,
               task.view.token_stride, tokens},
              task.direction);
  }
  return uint64_t{sentence.span.block_count} * layout.block_bytes(layer);
}

}  // namespace

Result<void> check_view(const StridedKv& view,
                        uint64_t memory_bytes,
                        const BodyLayout& layout,
                        LayerRange layers,
                        SentenceSpan span) {
  const uint64_t first_token = uint64_t{span.first_block} * layout.block_tokens();
  const uint64_t end_token = uint64_t{span.end_block()} * layout.block_tokens();
  if (first_token < view.first_token) {
    return Error{ErrorCode::kInvalidArgument, "first_token is " + std::to_string(view.first_token) +
                                                  ", the first sentence begins at " +
                                                  std::to_string(first_token)};
  }
  // Strides are not negative, so the last row of each layer is its furthest.
  for (uint32_t layer = layers.first; layer < layers.end(); ++layer) {
    const struct {
      const char* name;
      uint64_t offset;
      uint64_t row_bytes;
    } parts[] = {
        {"k_offset", view.k_offset, uint64_t{layout.k_dim(layer)} * layout.element_bytes()},
        {"v_offset", view.v_offset, uint64_t{layout.v_dim(layer)} * layout.element_bytes()}};
    for (const auto& part : parts) {
      std::optional<uint64_t> end = advance(part.offset, layer - layers.first, view.layer_stride);
      if (end) end = advance(*end, layout.kv_heads(layer) - 1, view.head_stride);
      if (end) end = advance(*end, end_token - 1 - view.first_token, view.token_stride);
      if (end) end = advance(*end, 1, part.row_bytes);
      if (end && *end <= memory_bytes) continue;
      return Error{ErrorCode::kInvalidArgument,
                   std::string(part.name) + " and the strides reach " +
                       (end ? std::to_string(*end) : std::string("beyond 64 bits")) + " at layer " +
                       std::to_string(layer) + ", token " + std::to_string(end_token - 1) +
                       "; the memory has " + std::to_string(memory_bytes) + " bytes"};
    }
  }
  return {};
}

template <typename Task>
void CopyRunner::add(SessionId session, Task task) {
  Job job;
  job.result.task = task.task;
  job.result.session = session;
  job.task = std::move(task);
  auto queue = std::find_if(queues_.begin(), queues_.end(),
                            [&](const Queue& each) { return each.session == session; });
  if (queue == queues_.end()) {
    queues_.push_back({session, {}});
    queue = queues_.end() - 1;
  }
  queue->jobs.push_back(std::move(job));
}

template void CopyRunner::add(SessionId, CopyTask);
template void CopyRunner::add(SessionId, DeriveTask);
template void CopyRunner::add(SessionId, CopyVectorsTask);

void CopyRunner::drop(SessionId session) {
  std::erase_if(queues_, [&](const Queue& each) { return each.session == session; });
}

size_t CopyRunner::count() const {
  size_t jobs = 0;
  for (const Queue& queue : queues_) jobs += queue.jobs.size();
  return jobs;
}

bool CopyRunner::run(uint64_t slice_end_ns) {
  if (queues_.empty()) return false;
  Queue& queue = queues_.front();
  do {
    Job& job = queue.jobs.front();
    if (!step(job)) continue;
    DataCounters::add(counters_.tasks, 1);
    TaskDone result = std::move(job.result);
    queue.jobs.pop_front();
    hooks_.done(std::move(result));
  } while (!queue.jobs.empty() && hooks_.now_ns() < slice_end_ns);
  if (!queue.jobs.empty()) queues_.push_back(std::move(queue));
  queues_.pop_front();
  return !queues_.empty();
}

bool CopyRunner::step(Job& job) {
  return std::visit(
      [&](const auto& task) {
        if (!job.started) {
          job.started = true;
          job.result.status = start(job, task);
          return !job.result.status.ok();
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
  for (const SentenceExtents& sentence : task.sentences) {
    if (Result<void> inside =
            check_view(task.view, task.memory_bytes, layout, task.layers, sentence.span);
        !inside.ok()) {
      return inside;
    }
  }
  return {};
}

bool CopyRunner::unit(Job& job, const CopyTask& task) {
  if (job.sentence == task.sentences.size()) return true;
  const BodyLayout& layout = task.model->layout;
  const SentenceExtents& sentence = task.sentences[job.sentence];
  const uint32_t first_chunk = layout.chunk_of(task.layers.first);
  if (job.layer < task.layers.end()) {
    std::byte* chunk =
        chunk_at(job.arena, layout, sentence, first_chunk, layout.chunk_of(job.layer));
    const uint64_t bytes = copy_head(task, sentence, chunk, job.layer, job.kv_head);
    job.result.bytes += bytes;
    DataCounters::add(
        task.direction == CopyDirection::kPut ? counters_.bytes_put : counters_.bytes_loaded,
        bytes);
    if (++job.kv_head == layout.kv_heads(job.layer)) {
      job.kv_head = 0;
      ++job.layer;
    }
  } else if (job.sum < sentence.checksum_chunks.size()) {
    // Of the extent: the client cannot change what was copied.
    const uint32_t index = sentence.checksum_chunks[job.sum++];
    const std::byte* chunk = chunk_at(job.arena, layout, sentence, first_chunk, index);
    job.result.sums.push_back(
        {job.sentence, index,
         checksum({chunk, layout.chunk_bytes(index, sentence.span.block_count)})});
  }
  if (job.layer == task.layers.end() && job.sum == sentence.checksum_chunks.size()) {
    job.layer = task.layers.first;
    job.sum = 0;
    ++job.sentence;
  }
  return job.sentence == task.sentences.size();
}

// ---- vectors ------------------------------------------------------------------------------------

Result<void> CopyRunner::start(Job& job, const DeriveTask& task) {
  job.arena = hooks_.arena(task.space);
  job.vectors.emplace(task.model->descriptor, task.index);
  return {};
}

bool CopyRunner::unit(Job& job, const DeriveTask& task) {
  if (job.sentence == task.sentences.size()) return true;
  const BodyLayout& layout = task.model->layout;
  const SentenceExtents& sentence = task.sentences[job.sentence];
  const uint32_t blocks = sentence.span.block_count;
  if (job.layer == 0) {
    job.blob = std::make_shared<std::vector<std::byte>>(job.vectors->blob_bytes(blocks));
  }
  DeriveChunk part;
  part.chunk = chunk_at(job.arena, layout, sentence, 0, layout.chunk_of(job.layer));
  part.layers = {job.layer, 1};
  part.blocks = blocks;
  part.dtype = task.model->descriptor.dtype;
  derive_layers(layout, *job.vectors, part, *job.blob, derive_scratch_);
  if (++job.layer == layout.layer_count()) {
    job.layer = 0;
    job.result.vectors.push_back(std::move(job.blob));
    ++job.sentence;
  }
  return job.sentence == task.sentences.size();
}

Result<void> CopyRunner::start(Job& job, const CopyVectorsTask& task) {
  job.vectors.emplace(task.model->descriptor, task.index);
  uint64_t needed = 0;
  for (const SentenceSpan& span : task.spans) needed += job.vectors->blob_bytes(span.block_count);
  if (needed != task.bytes || task.bytes > task.memory_bytes ||
      task.offset > task.memory_bytes - task.bytes) {
    return Error{ErrorCode::kInvalidArgument,
                 "vectors of " + std::to_string(task.spans.size()) + " sentences are " +
                     std::to_string(needed) + " bytes; given are " + std::to_string(task.bytes) +
                     " at " + std::to_string(task.offset) + " of a memory of " +
                     std::to_string(task.memory_bytes)};
  }
  return {};
}

bool CopyRunner::unit(Job& job, const CopyVectorsTask& task) {
  if (job.sentence == task.spans.size()) return true;
  const uint32_t blocks = task.spans[job.sentence].block_count;
  const std::byte* from = task.memory + task.offset + job.from;
  const uint64_t bytes = job.vectors->blob_bytes(blocks);
  auto blob = std::make_shared<std::vector<std::byte>>(from, from + bytes);
  if (Result<void> valid = check_blob(*job.vectors, blocks, *blob); !valid.ok()) {
    job.result.status =
        Error{valid.error().code,
              "vectors of sentence " + std::to_string(job.sentence) + ": " + valid.error().message};
    job.result.vectors.clear();
    return true;
  }
  job.from += bytes;
  job.result.bytes += bytes;
  job.result.vectors.push_back(std::move(blob));
  return ++job.sentence == task.spans.size();
}

}  // namespace skv
