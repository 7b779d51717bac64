#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "client/skv.h"

namespace skv::bench {

// What one measurement of bench_decode is about: Llama-3-8B's attention over a context of so many
// tokens, with fewer layers where 32 of them do not fit.
struct DecodeShape {
  uint32_t tokens = 0;
  uint32_t rows = 1;  // sequences; they diverge in the last 5 %
  uint32_t layers = 32;
  uint32_t heads = 8;
  uint32_t queries = 4;  // per kv head
  uint32_t dim = 128;

  static constexpr uint32_t kBlockTokens = 8;
  uint32_t shared_tokens() const { return tokens - tokens / 20; }
  uint64_t block_bytes() const { return uint64_t{kBlockTokens} * 2 * dim * 2; }   // bf16
  size_t query_floats() const { return size_t{layers} * heads * queries * dim; }  // of one row
};

// One step's queries of all rows, fp32 [row][layer][query head][dim], which drift: each is a walk
// on its own, those of a kv head have most in common. Seeded: the same steps in every run.
class DriftingQueries {
 public:
  explicit DriftingQueries(const DecodeShape& shape);
  const std::vector<float>& next();

 private:
  float normal();
  void walk(std::vector<float>& values, float keep, float move);

  DecodeShape shape_;
  uint64_t state_ = 11;
  std::vector<float> common_;  // [row][layer][kv head][dim]
  std::vector<float> own_;     // [row][layer][query head][dim]
  std::vector<float> queries_;
};

// An engine that decodes a batch: one session, a context and a window per row, bodies put once. The
// rows after the first find the shared part stored and put what is theirs.
//
// Bodies  a stream of random keys, some tokens of which resemble their neighbours; every (row,
//         layer, head) reads it from another token on, so no two are alike and nothing is copied
//         on this side.
// Errors  end the program with their text.
class DecodeEngine {
 public:
  // `shape.rows` is the most that there will be.
  DecodeEngine(const std::string& socket, const DecodeShape& shape);
  ~DecodeEngine();
  DecodeEngine(const DecodeEngine&) = delete;
  DecodeEngine& operator=(const DecodeEngine&) = delete;

  // Puts rows that there were not yet; open_windows follows.
  void set_rows(uint32_t rows);
  uint64_t stored_bytes() const { return stored_bytes_; }  // bodies

  // Closes the windows there were. The read set has 1 sink and 4 recents beside the budget.
  void open_windows(uint32_t budget_blocks, uint32_t rank_in);
  static constexpr uint32_t kSinks = 1;
  static constexpr uint32_t kRecents = 4;

  struct Step {
    double call_s = 0;
    double cpu_s = 0;   // of this thread, in the call
    double rank_s = 0;  // with the cut
    double write_s = 0;
    uint64_t moved = 0;  // bytes
    uint64_t read = 0;   // table entries
    uint64_t fresh = 0;  // of the first row's, not in the step before
    uint64_t first_row_read = 0;
  };
  // All rows in one call over all layers; or a call per layer.
  Step step(const std::vector<float>& queries, bool layer_by_layer);

 private:
  void open_model();
  void make_stream();
  void open_row(uint32_t row);
  void put(skv_context context, uint32_t row, uint32_t first, uint32_t end);
  void prefetch(const float* queries, uint32_t first_layer, uint32_t layer_count, Step& to);
  void compare_tables(Step& to);

  DecodeShape shape_;
  uint64_t stored_bytes_ = 0;
  skv_session session_ = nullptr;
  skv_model model_ = nullptr;
  skv_memory memory_ = nullptr;
  std::vector<skv_context> contexts_;
  std::vector<skv_window> windows_;
  std::vector<skv_prefetch_result> results_;
  std::vector<float> layer_queries_;
  std::vector<std::vector<uint32_t>> before_;  // blocks of the first row, by (layer, head)
};

}  // namespace skv::bench
