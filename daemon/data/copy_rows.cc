#include "daemon/data/copy_rows.h"

#include <optional>
#include <string>

#include "ipc/types/check.h"
#include "tiers/copy.h"

namespace skv {
namespace {

// Stores of shorter rows that go around the caches leave lines half written.
constexpr uint64_t kStreamedRowBytesMin = 512;

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

// K, then V of one block, on both sides.
struct BlockSides {
  struct Side {
    uint64_t body;       // from the start of the chunk
    uint64_t client;     // of token 0, from the start of the memory
    uint64_t row_bytes;  // contiguous in the body
  };
  Side sides[2];
};

BlockSides sides_of(const HeadCopy& head, uint32_t block) {
  const CopyTask& task = head.task;
  const BodyLayout& layout = task.model->layout;
  const uint32_t tokens = layout.block_tokens();
  const uint64_t k_row = uint64_t{layout.k_dim(head.layer)} * layout.element_bytes();
  const uint64_t v_row = uint64_t{layout.v_dim(head.layer)} * layout.element_bytes();
  const uint64_t body =
      layout.block_offset(head.layer, head.kv_head, block, head.sentence.span.block_count);
  const uint64_t token =
      uint64_t{head.sentence.span.first_block + block} * tokens - task.view.first_token;
  const uint64_t client = (head.layer - task.layers.first) * task.view.layer_stride +
                          head.kv_head * task.view.head_stride + token * task.view.token_stride;
  return {{{body, task.view.k_offset + client, k_row},
           {body + k_row * tokens, task.view.v_offset + client, v_row}}};
}

// Calls `copy(body offset, client offset, bytes)` for each run of bytes that is contiguous on both
// sides, in the order of the body.
template <typename Copy>
uint64_t for_each_run(const HeadCopy& head, const Copy& copy) {
  const BodyLayout& layout = head.task.model->layout;
  const uint32_t tokens = layout.block_tokens();
  const uint64_t stride = head.task.view.token_stride;
  const uint32_t blocks = head.sentence.span.block_count;
  for (uint32_t block = 0; block < blocks; ++block) {
    for (const BlockSides::Side& side : sides_of(head, block).sides) {
      if (stride == side.row_bytes) {
        copy(side.body, side.client, side.row_bytes * tokens);
        continue;
      }
      for (uint32_t row = 0; row < tokens; ++row) {
        copy(side.body + row * side.row_bytes, side.client + row * stride, side.row_bytes);
      }
    }
  }
  return uint64_t{blocks} * layout.block_bytes(head.layer);
}

}  // namespace

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

uint64_t put_head(const HeadCopy& head, ChecksumStream* stream) {
  ChecksumStream unused;
  ChecksumStream& sum = stream == nullptr ? unused : *stream;
  // K and V are two streams, in runs of a block or a row: each line asks for the one that lies a
  // block later in its stream.
  const uint64_t next_block = head.task.model->layout.block_tokens() * head.task.view.token_stride;
  return for_each_run(head, [&](uint64_t body, uint64_t client, uint64_t count) {
    sum.copy(head.chunk + body, head.task.memory + client, count, next_block);
  });
}

uint64_t load_head(const HeadCopy& head, bool around_caches) {
  return for_each_run(head, [&](uint64_t body, uint64_t client, uint64_t count) {
    if (around_caches && count >= kStreamedRowBytesMin) {
      copy_around_caches(head.task.memory + client, head.chunk + body, count);
    } else {
      copy_run(head.task.memory + client, head.chunk + body, count);
    }
  });
}

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

}  // namespace skv
