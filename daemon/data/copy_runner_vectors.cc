// Derivation of vectors and vectors that an engine made: the other tasks of CopyRunner.
#include <string>
#include <utility>

#include "daemon/data/copy_runner.h"

namespace skv {
namespace {

// A byte derived takes as long as so many bytes copied.
constexpr uint64_t kDeriveCost = 4;

}  // namespace

Result<void> CopyRunner::start(Job& job, const DeriveTask& task) {
  job.arena = hooks_.arena(task.space);
  job.vectors.emplace(task.model->descriptor, task.index);
  return {};
}

CopyRunner::Unit CopyRunner::unit(Job& job, const DeriveTask& task) {
  if (job.sentence == task.sentences.size()) return {0, true};
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
  const uint64_t bytes =
      uint64_t{layout.kv_heads(job.layer)} * blocks * layout.block_bytes(job.layer);
  if (++job.layer == layout.layer_count()) {
    job.layer = 0;
    job.result.vectors.push_back(std::move(job.blob));
    ++job.sentence;
  }
  return {kDeriveCost * bytes, job.sentence == task.sentences.size()};
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

CopyRunner::Unit CopyRunner::unit(Job& job, const CopyVectorsTask& task) {
  if (job.sentence == task.spans.size()) return {0, true};
  const uint32_t blocks = task.spans[job.sentence].block_count;
  const std::byte* from = task.memory + task.offset + job.from;
  const uint64_t bytes = job.vectors->blob_bytes(blocks);
  auto blob = std::make_shared<std::vector<std::byte>>(from, from + bytes);
  if (Result<void> valid = check_blob(*job.vectors, blocks, *blob); !valid.ok()) {
    job.result.status =
        Error{valid.error().code,
              "vectors of sentence " + std::to_string(job.sentence) + ": " + valid.error().message};
    job.result.vectors.clear();
    return {bytes, true};
  }
  job.from += bytes;
  job.result.bytes += bytes;
  job.result.vectors.push_back(std::move(blob));
  return {bytes, ++job.sentence == task.spans.size()};
}

}  // namespace skv
