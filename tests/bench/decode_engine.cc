#include "tests/bench/decode_engine.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <numeric>

#include "ipc/layout/half.h"
#include "tests/bench/rank_world.h"
#include "tests/bench/report.h"

namespace skv::bench {
namespace {

// Where in the stream of keys a row, layer and head begin, in tokens: primes, so that no two meet.
constexpr uint32_t kRowStep = 5003;
constexpr uint32_t kLayerStep = 997;
constexpr uint32_t kHeadStep = 101;
constexpr uint32_t kValueStep = 53;
constexpr uint32_t kPutSentences = 256;  // at once
constexpr uint32_t kCallMs = 120'000;

void check(int code, const char* what) {
  if (code >= 0) return;
  std::fprintf(stderr, "bench_decode: %s: %s: %s\n", what, skv_error_name(code), skv_last_error());
  std::exit(1);
}

template <typename T>
T sized() {
  T value{};
  value.size = sizeof(T);
  return value;
}

// Ends after 32, 40, 48 tokens and so on: sentences of 40 on average.
std::vector<uint32_t> sentence_ends(uint32_t tokens) {
  std::vector<uint32_t> ends;
  uint32_t end = 0;
  for (uint32_t i = 0; (end += 32 + 8 * (i % 3)) <= tokens; ++i) ends.push_back(end);
  return ends;
}

}  // namespace

// ---- queries ------------------------------------------------------------------------------------

DriftingQueries::DriftingQueries(const DecodeShape& shape) : shape_(shape) {
  queries_.resize(shape.rows * shape.query_floats());
  own_.resize(queries_.size());
  common_.resize(queries_.size() / shape.queries);
  walk(common_, 0, 1);
  walk(own_, 0, 1);
}

// Four 16 bit numbers added: near enough to normal, variance 1.
float DriftingQueries::normal() {
  state_ += 0x9E3779B97F4A7C15U;
  uint64_t z = state_;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
  z ^= z >> 31;
  const auto sum =
      static_cast<int32_t>((z & 0xFFFF) + ((z >> 16) & 0xFFFF) + ((z >> 32) & 0xFFFF) + (z >> 48)) -
      2 * 0xFFFF;
  return static_cast<float>(sum) * 0x1.bb67aep-16F;
}

void DriftingQueries::walk(std::vector<float>& values, float keep, float move) {
  for (float& value : values) value = keep * value + move * normal();
}

const std::vector<float>& DriftingQueries::next() {
  // So that a quarter to a third of what a step reads was not read by the step before, as in the
  // recorded steps of a real model (step.new).
  constexpr float kKeep = 0.95F;
  constexpr float kLength = 2.0F;  // attention with peaks: logits of standard deviation 2
  const float move = std::sqrt(1 - kKeep * kKeep);
  walk(common_, kKeep, move);
  walk(own_, kKeep, move);
  for (size_t i = 0; i < queries_.size(); ++i) {
    const size_t head = i / shape_.dim / shape_.queries;
    const float common = common_[head * shape_.dim + i % shape_.dim];
    queries_[i] = kLength * (0.8F * common + 0.6F * own_[i]);
  }
  return queries_;
}

// ---- set-up -------------------------------------------------------------------------------------

DecodeEngine::DecodeEngine(const std::string& socket, const DecodeShape& shape) : shape_(shape) {
  auto options = sized<skv_session_options>();
  options.socket_path = socket.c_str();
  options.client_name = "bench_decode";
  options.call_timeout_ms = kCallMs;
  check(skv_session_open(&options, &session_), "session");
  open_model();
  make_stream();
}

DecodeEngine::~DecodeEngine() { (void)skv_session_close(session_); }

void DecodeEngine::open_model() {
  std::vector<skv_layer> layers(shape_.layers, sized<skv_layer>());
  for (skv_layer& layer : layers) {
    layer.kv_heads = shape_.heads;
    layer.queries_per_kv_head = shape_.queries;
    layer.k_dim = layer.v_dim = shape_.dim;
    layer.softmax_scale = 1.0F / std::sqrt(static_cast<float>(shape_.dim));
    layer.rotary_index = SKV_NO_ROTARY;
  }
  auto model = sized<skv_model_descriptor>();
  model.dtype = SKV_DTYPE_BF16;
  model.block_tokens = DecodeShape::kBlockTokens;
  model.tp_size = 1;
  model.weights_id = "bench-decode";
  model.layers = layers.data();
  model.layer_count = shape_.layers;
  check(skv_model_open(session_, &model, &model_), "model");
}

void DecodeEngine::make_stream() {
  const uint32_t tokens = shape_.tokens + shape_.rows * kRowStep + shape_.layers * kLayerStep +
                          shape_.heads * kHeadStep + kValueStep;
  check(skv_memory_create(session_, uint64_t{tokens} * shape_.dim * 2, &memory_), "memory");
  auto info = sized<skv_memory_info>();
  check(skv_memory_get_info(memory_, &info), "memory info");
  auto* to = static_cast<uint16_t*>(info.pointer);
  // What neighbours share changes within some 20 tokens; half of a key is its own.
  std::vector<float> topic(shape_.dim, 0.0F);
  constexpr uint32_t kAtOnce = 1024;
  for (uint32_t first = 0; first < tokens; first += kAtOnce) {
    const uint32_t count = std::min(kAtOnce, tokens - first);
    const std::vector<float> noise = random_queries(2 * count, shape_.dim, first + 1);
    for (uint32_t t = 0; t < count; ++t) {
      const float* moves = &noise[size_t{2} * t * shape_.dim];
      for (uint32_t d = 0; d < shape_.dim; ++d) {
        topic[d] = 0.95F * topic[d] + 0.3122F * moves[d];
        *to++ = float_to_bfloat(0.7071F * (topic[d] + moves[shape_.dim + d]));
      }
    }
  }
}

void DecodeEngine::set_rows(uint32_t rows) {
  for (auto row = static_cast<uint32_t>(contexts_.size()); row < rows; ++row) open_row(row);
  shape_.rows = rows;
  results_.assign(rows, sized<skv_prefetch_result>());
}

void DecodeEngine::open_row(uint32_t row) {
  skv_context context = nullptr;
  check(skv_context_open(model_, nullptr, &context), "context");
  contexts_.push_back(context);
  std::vector<uint32_t> tokens(shape_.tokens);
  std::iota(tokens.begin(), tokens.end(), 0);
  for (uint32_t t = shape_.shared_tokens(); t < shape_.tokens; ++t) tokens[t] += row << 24;
  const std::vector<uint32_t> ends = sentence_ends(shape_.tokens);
  auto append = sized<skv_append_options>();
  append.first_position = SKV_AT_END;
  append.tokens = tokens.data();
  append.token_count = shape_.tokens;
  append.ends = ends.data();
  append.end_count = static_cast<uint32_t>(ends.size());
  append.ends_final_to = shape_.tokens;
  check(skv_context_append(context, &append, nullptr), "append");
  auto match = sized<skv_match_result>();
  check(skv_match(context, /*adopt=*/1, &match), "match");
  auto known = sized<skv_context_info>();
  check(skv_context_get_info(context, &known), "context info");
  uint32_t sentences = known.sentence_count;
  std::vector<uint32_t> blocks(sentences);
  check(skv_context_get_sentences(context, 0, blocks.data(), sentences, &sentences), "sentences");
  uint32_t first = 0;
  for (uint32_t at = 0; first < sentences && at < match.hit_tokens; ++first) {
    at += blocks[first] * DecodeShape::kBlockTokens;
  }
  uint64_t stored = 0;
  for (uint32_t i = first; i < sentences; ++i) stored += blocks[i];
  stored_bytes_ += stored * shape_.layers * shape_.heads * shape_.block_bytes();
  put(context, row, first, sentences);
}

void DecodeEngine::put(skv_context context, uint32_t row, uint32_t first, uint32_t end) {
  const uint64_t token_bytes = uint64_t{shape_.dim} * 2;
  auto view = sized<skv_strided_kv>();
  view.memory = memory_;
  view.k_offset = uint64_t{row} * kRowStep * token_bytes;
  view.v_offset = view.k_offset + kValueStep * token_bytes;
  view.token_stride = token_bytes;
  view.head_stride = kHeadStep * token_bytes;
  view.layer_stride = kLayerStep * token_bytes;
  for (; first < end; first += kPutSentences) {
    const uint32_t count = std::min(kPutSentences, end - first);
    std::vector<uint8_t> outcomes(count);
    check(skv_put_reserve(context, first, count, outcomes.data()), "reserve");
    auto write = sized<skv_put_write_options>();
    write.first_sentence = first;
    write.sentence_count = count;
    write.layer_count = shape_.layers;
    write.source = &view;
    check(skv_put_write(context, &write, nullptr), "write");
    check(skv_put_commit(context, first, count, /*derive_vectors=*/1, outcomes.data()), "commit");
    for (const uint8_t outcome : outcomes) {
      if (outcome == SKV_PUT_COMMITTED) continue;
      std::fprintf(stderr, "bench_decode: commit: outcome %d\n", outcome);
      std::exit(1);
    }
  }
}

void DecodeEngine::open_windows(uint32_t budget_blocks, uint32_t rank_in) {
  for (skv_window window : windows_) check(skv_window_close(window), "window close");
  windows_.clear();
  before_.clear();
  auto options = sized<skv_window_options>();
  options.budget_blocks = budget_blocks;
  options.sink_blocks = kSinks;
  options.recent_blocks = kRecents;
  options.rank_in = rank_in;
  for (uint32_t row = 0; row < shape_.rows; ++row) {
    check(skv_window_open(contexts_[row], &options, &windows_.emplace_back(nullptr)), "window");
  }
}

// ---- steps --------------------------------------------------------------------------------------

void DecodeEngine::prefetch(const float* queries,
                            uint32_t first_layer,
                            uint32_t layer_count,
                            Step& to) {
  auto options = sized<skv_prefetch_options>();
  options.first_layer = first_layer;
  options.layer_count = layer_count;
  const uint64_t bytes =
      shape_.rows * shape_.query_floats() / shape_.layers * layer_count * sizeof(float);
  const double cpu = thread_seconds();
  const double begin = now();
  check(skv_prefetch_rows(windows_.data(), shape_.rows, queries, bytes, &options, results_.data()),
        "prefetch");
  to.call_s += now() - begin;
  to.cpu_s += thread_seconds() - cpu;
  to.rank_s += 1e-9 * static_cast<double>(uint64_t{results_[0].rank_ns} +
                                          results_[0].cut_ns);  // of all rows
  to.write_s += 1e-9 * results_[0].write_ns;
  for (const skv_prefetch_result& row : results_) {
    to.moved += row.bytes_moved;
    to.read += row.read_blocks;
    if (row.misses != 0) {
      std::fprintf(stderr, "bench_decode: %u blocks are not there\n", row.misses);
      std::exit(1);
    }
  }
}

DecodeEngine::Step DecodeEngine::step(const std::vector<float>& queries, bool layer_by_layer) {
  Step done;
  const size_t layer_floats = shape_.query_floats() / shape_.layers;
  if (!layer_by_layer) prefetch(queries.data(), 0, shape_.layers, done);
  layer_queries_.resize(shape_.rows * layer_floats);
  for (uint32_t layer = 0; layer_by_layer && layer < shape_.layers; ++layer) {
    for (uint32_t row = 0; row < shape_.rows; ++row) {
      std::copy_n(&queries[row * shape_.query_floats() + layer * layer_floats], layer_floats,
                  &layer_queries_[row * layer_floats]);
    }
    prefetch(layer_queries_.data(), layer, 1, done);
  }
  compare_tables(done);
  for (uint32_t row = 0; row < shape_.rows; ++row) {
    check(skv_readers_done(windows_[row], results_[row].version), "readers_done");
  }
  return done;
}

void DecodeEngine::compare_tables(Step& to) {
  before_.resize(size_t{shape_.layers} * shape_.heads);
  std::vector<uint32_t> fresh;
  for (uint32_t layer = 0; layer < shape_.layers; ++layer) {
    auto table = sized<skv_table>();
    check(skv_window_table(windows_[0], layer, &table), "table");
    for (uint32_t head = 0; head < shape_.heads; ++head) {
      const uint32_t* begin = table.block + table.indptr[head];
      const uint32_t* end = table.block + table.indptr[head + 1];
      std::vector<uint32_t>& before = before_[size_t{layer} * shape_.heads + head];
      fresh.clear();
      std::set_difference(begin, end, before.begin(), before.end(), std::back_inserter(fresh));
      to.fresh += fresh.size();
      to.first_row_read += static_cast<uint64_t>(end - begin);
      before.assign(begin, end);
    }
  }
}

}  // namespace skv::bench
