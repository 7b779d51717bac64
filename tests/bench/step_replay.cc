// Replays the queries and keys of a real model's decoding (tests/bench/bench_step.py records them)
// through derive, rank, cut and difference, and tells how much of the read set has to be moved in a
// step when 2.5 times the read set stays in slots by recency.
//
//   step_replay RECORDING [--quick] [--json FILE]
//
// The recording, little endian, is ours but read with care: u32 {magic, layers, kv_heads,
// queries_per_kv_head, k_dim, tokens, prefix_tokens, ends}, f32 softmax_scale, u32 sentence
// ends[ends]; fp16 keys [layer][kv_head][token][k_dim]; fp32 queries [step][layer][query head]
// [k_dim], one step per token behind the prefix.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ipc/identity/sentence_cut.h"
#include "kernels/cut.h"
#include "kernels/difference.h"
#include "kernels/rank.h"
#include "kernels/vectors.h"
#include "tests/bench/report.h"

namespace skv::bench {
namespace {

constexpr uint32_t kRecordingMagic = 0x52564B53;  // "SKVR"
constexpr uint32_t kBlockTokens = 8;
constexpr uint32_t kSinkBlocks = 1;
constexpr uint32_t kRecentBlocks = 4;
constexpr double kResident = 2.5;  // times the read set

struct Recording {
  uint32_t layers, kv_heads, group, k_dim, tokens, prefix_tokens;
  float softmax_scale;
  std::vector<uint32_t> ends;
  std::vector<uint16_t> keys;
  std::vector<float> queries;

  const uint16_t* keys_of(uint32_t layer, uint32_t head, uint32_t token) const {
    return &keys[((size_t{layer} * kv_heads + head) * tokens + token) * k_dim];
  }
  const float* queries_of(uint32_t step, uint32_t layer, uint32_t head) const {
    return &queries[((size_t{step} * layers + layer) * kv_heads + head) * group * k_dim];
  }
  uint32_t steps() const { return tokens - prefix_tokens; }
};

template <typename Item>
bool take(std::istream& from, std::vector<Item>& items, size_t count) {
  items.resize(count);
  return static_cast<bool>(from.read(reinterpret_cast<char*>(items.data()),
                                     static_cast<std::streamsize>(count * sizeof(Item))));
}

std::optional<Recording> read_recording(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<uint32_t> head;
  std::vector<float> scale;
  if (!take(file, head, 8) || head[0] != kRecordingMagic || !take(file, scale, 1))
    return std::nullopt;
  Recording made{head[1], head[2], head[3], head[4], head[5], head[6], scale[0], {}, {}, {}};
  for (size_t i = 1; i < 8; ++i) {
    if (head[i] > 1U << 20U) return std::nullopt;
  }
  if (made.prefix_tokens >= made.tokens) return std::nullopt;
  const size_t rows = size_t{made.layers} * made.kv_heads;
  if (!take(file, made.ends, head[7]) || !take(file, made.keys, rows * made.tokens * made.k_dim) ||
      !take(file, made.queries, rows * made.steps() * made.group * made.k_dim)) {
    return std::nullopt;
  }
  return made;
}

ModelDescriptor model_of(const Recording& recording) {
  ModelDescriptor model;
  model.weights_id = "recorded";
  model.dtype = BodyDtype::kFp16;
  model.block_tokens = kBlockTokens;
  for (uint32_t i = 0; i < recording.layers; ++i) {
    LayerDescriptor layer;
    layer.kv_heads = static_cast<uint16_t>(recording.kv_heads);
    layer.queries_per_kv_head = static_cast<uint16_t>(recording.group);
    layer.k_dim = layer.v_dim = static_cast<uint16_t>(recording.k_dim);
    layer.softmax_scale = recording.softmax_scale;
    model.layers.push_back(layer);
  }
  return model;
}

// The context as it grows: its sentences enter when their cut is decided, as in the daemon.
class Growing {
 public:
  explicit Growing(const Recording& recording)
      : recording_(recording),
        vectors_(model_of(recording), IndexDescriptor{IndexKind::kMeanSpreadRuns, 2}),
        pages_(std::make_shared<RankPageLayout>(vectors_)),
        cut_(kBlockTokens) {}

  void know(uint32_t token_count) {
    const auto last = std::upper_bound(recording_.ends.begin(), recording_.ends.end(), token_count);
    const std::vector<uint32_t> ends(recording_.ends.begin() + static_cast<ptrdiff_t>(ends_told_),
                                     last);
    ends_told_ += ends.size();
    Result<std::vector<SentenceSpan>> closed = cut_.extend(ends, token_count, token_count);
    for (const SentenceSpan& span : closed.value()) append(span);
  }
  const VectorPages& pages() const { return pages_; }

 private:
  void append(const SentenceSpan& span) {
    std::vector<std::byte> blob(vectors_.blob_bytes(span.block_count));
    for (uint32_t layer = 0; layer < recording_.layers; ++layer) {
      for (uint32_t head = 0; head < recording_.kv_heads; ++head) {
        KeyRows rows;
        rows.blocks = reinterpret_cast<const std::byte*>(
            recording_.keys_of(layer, head, span.first_block * kBlockTokens));
        rows.row_stride = size_t{recording_.k_dim} * 2;
        rows.block_stride = rows.row_stride * kBlockTokens;
        rows.dtype = BodyDtype::kFp16;
        rows.block_count = span.block_count;
        rows.block_tokens = kBlockTokens;
        rows.k_dim = recording_.k_dim;
        derive_record(rows, vectors_.index(), nullptr,
                      std::span(blob).subspan(vectors_.offset(layer, head, span.block_count),
                                              vectors_.record(layer, span.block_count).bytes),
                      scratch_);
      }
    }
    pages_.append(span.block_count, blob);
  }

  const Recording& recording_;
  VectorsLayout vectors_;
  VectorPages pages_;
  SentenceCut cut_;
  size_t ends_told_ = 0;
  DeriveScratch scratch_;
};

struct Moved {
  uint64_t read = 0;   // blocks, all steps but the first
  uint64_t fresh = 0;  // of them not in the step before
  uint64_t moved = 0;  // of them not resident
  uint32_t width = 0;
};

// One (layer, kv head) through all steps of one share; `growing` per step is shared by all.
class Row {
 public:
  Row(uint32_t width)
      : width_(width), resident_(static_cast<uint32_t>(std::lround(kResident * width))) {}

  void step(const RankView& view, const RankQuery& query, uint64_t version, Moved& counts) {
    RankOptions options;
    options.sink_blocks = kSinkBlocks;
    options.recent_blocks = kRecentBlocks;
    const uint32_t budget = width_ - kSinkBlocks - kRecentBlocks;
    options.coarse_blocks = 4 * budget;
    const RankResult ranked = rank(view, query, options, scratch());
    CutOptions to;
    to.budget_blocks = budget;
    const ReadSet set = cut(ranked, to, cut_scratch());
    const Difference lacks = resident_.difference(set.blocks, version, version - 1);
    if (version > 1) {
      counts.read += set.blocks.size();
      counts.moved += lacks.misses.size();
      for (const uint32_t block : set.blocks) {
        counts.fresh += std::binary_search(before_.begin(), before_.end(), block) ? 0 : 1;
      }
    }
    std::vector<uint32_t> slots(lacks.slots.begin(), lacks.slots.end());
    const std::vector<uint32_t> misses(lacks.misses.begin(), lacks.misses.end());
    const std::vector<uint32_t> victims(lacks.victims.begin(), lacks.victims.end());
    for (size_t i = 0; i < victims.size(); ++i) {
      resident_.assign(victims[i], set.blocks[misses[i]]);
      resident_.arrived(victims[i]);
      slots[misses[i]] = victims[i];
    }
    resident_.publish(version, slots);
    before_.assign(set.blocks.begin(), set.blocks.end());
  }

 private:
  static RankScratch& scratch() {
    static RankScratch made;
    return made;
  }
  static CutScratch& cut_scratch() {
    static CutScratch made;
    return made;
  }

  uint32_t width_;
  ResidentSet resident_;
  std::vector<uint32_t> before_;
};

Moved replay(const Recording& recording, double share) {
  Growing growing(recording);
  growing.know(recording.prefix_tokens);
  Moved counts;
  const double wanted = std::ceil(share * recording.prefix_tokens / kBlockTokens);
  counts.width = std::max(kSinkBlocks + kRecentBlocks + 1, static_cast<uint32_t>(wanted));
  std::vector<Row> rows;
  for (uint32_t i = 0; i < recording.layers * recording.kv_heads; ++i)
    rows.emplace_back(counts.width);
  for (uint32_t step = 0; step < recording.steps(); ++step) {
    growing.know(recording.prefix_tokens + step + 1);
    for (uint32_t layer = 0; layer < recording.layers; ++layer) {
      for (uint32_t head = 0; head < recording.kv_heads; ++head) {
        const RankQuery query{recording.queries_of(step, layer, head), recording.group,
                              recording.softmax_scale};
        rows[layer * recording.kv_heads + head].step(growing.pages().view(layer, head), query,
                                                     step + 1, counts);
      }
    }
  }
  return counts;
}

int run(int argc, char** argv) {
  Report report(argc, argv);
  if (report.rest().size() != 1) {
    std::fprintf(stderr, "step_replay RECORDING [--quick] [--json FILE]\n");
    return 2;
  }
  const std::optional<Recording> recording = read_recording(report.rest()[0]);
  if (!recording) {
    std::fprintf(stderr, "%s is not a whole recording; make one with tests/bench/bench_step.py\n",
                 report.rest()[0].c_str());
    return 1;
  }
  struct Share {
    const char* name;
    double percent, target;
  };
  for (const Share& share :
       {Share{"12.5", 12.5, 0.08}, Share{"3", 3, 0.15}, Share{"1.6", 1.6, 0.20}}) {
    const Moved moved = replay(*recording, share.percent / 100);
    char of[96];
    std::snprintf(of, sizeof of, "%u tokens, %u of %u blocks per head, %u steps",
                  recording->prefix_tokens, moved.width, recording->prefix_tokens / kBlockTokens,
                  recording->steps());
    const double block_bytes = 2.0 * kBlockTokens * recording->k_dim * 2;
    const double steps = recording->steps() - 1.0;
    Figure figure;
    figure.name = std::string("step.moved.") + share.name;
    figure.of = of;
    figure.value = static_cast<double>(moved.moved) * block_bytes / steps / 1024;
    figure.unit = "KiB/step";
    figure.limit = static_cast<double>(moved.read) * block_bytes / steps / 1024;
    figure.limit_name = "bytes of the read set";
    figure.target = share.target;
    figure.better = Better::kLower;
    report.add(figure);
    figure.name = std::string("step.new.") + share.name;
    figure.value = static_cast<double>(moved.fresh) * block_bytes / steps / 1024;
    figure.target = 0;
    report.add(figure);
  }
  return report.finish();
}

}  // namespace
}  // namespace skv::bench

int main(int argc, char** argv) { return skv::bench::run(argc, argv); }
