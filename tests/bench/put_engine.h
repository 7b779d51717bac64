#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "client/skv.h"

namespace skv::bench {

// An engine of bench_put: one session whose sentences are all of one size, and a registered memory
// that holds a few bodies, [K or V][layer][head][token][dim] each.
class PutEngine {
 public:
  static constexpr uint32_t kTokens = 64;  // of a sentence: as many as there can be
  static constexpr uint32_t kDim = 128;    // fp16

  // Layers and kv heads whose body of 64 tokens has `bytes`.
  struct Shape {
    uint64_t bytes = 0;
    uint32_t layers = 1;
    uint32_t heads = 8;
  };

  // `sentences` closed ones of tokens that nobody else has, `slots` bodies of memory, all touched.
  bool open(const std::string& socket,
            const Shape& shape,
            uint32_t sentences,
            uint32_t slots,
            uint32_t salt) {
    shape_ = shape;
    slots_ = slots;
    auto options = sized<skv_session_options>();
    options.socket_path = socket.c_str();
    options.client_name = "bench_put";
    layers_.assign(shape.layers, sized<skv_layer>());
    for (skv_layer& layer : layers_) {
      layer.kv_heads = shape.heads;
      layer.queries_per_kv_head = 4;
      layer.k_dim = layer.v_dim = kDim;
      layer.softmax_scale = 0.0883883476F;
      layer.rotary_index = SKV_NO_ROTARY;
    }
    const std::string weights = "bench " + std::to_string(shape.bytes);
    auto model = sized<skv_model_descriptor>();
    model.dtype = SKV_DTYPE_FP16;
    model.block_tokens = 8;
    model.tp_size = 1;
    model.weights_id = weights.c_str();
    model.layers = layers_.data();
    model.layer_count = shape.layers;
    return good(skv_session_open(&options, &session_)) &&
           good(skv_model_open(session_, &model, &model_)) &&
           good(skv_context_open(model_, nullptr, &context_)) && append(sentences, salt) &&
           make_memory();
  }
  ~PutEngine() {
    if (session_ != nullptr) (void)skv_session_close(session_);
  }
  PutEngine() = default;
  PutEngine(const PutEngine&) = delete;
  PutEngine& operator=(const PutEngine&) = delete;

  bool reserve() {
    std::vector<uint8_t> outcomes(sentences_);
    if (!good(skv_put_reserve(context_, 0, sentences_, outcomes.data()))) return false;
    for (const uint8_t outcome : outcomes) {
      if (outcome != SKV_PUT_RESERVED) {
        std::fprintf(stderr, "reserve: outcome %d\n", outcome);
        return false;
      }
    }
    return true;
  }
  // Without vectors unless asked for: they are what commit takes longest for.
  bool commit(bool vectors) {
    return good(skv_put_commit(context_, 0, sentences_, vectors ? 1 : 0, nullptr));
  }
  bool write(uint32_t index, skv_ticket* ticket) {
    auto put = sized<skv_put_write_options>();
    const skv_strided_kv view = view_of(index);
    put.first_sentence = index % sentences_;
    put.sentence_count = 1;
    put.layer_count = shape_.layers;
    put.source = &view;
    return good(skv_put_write(context_, &put, ticket));
  }
  bool load(uint32_t index, skv_ticket* ticket) {
    auto options = sized<skv_load_options>();
    const skv_strided_kv view = view_of(index);
    options.first_sentence = index % sentences_;
    options.sentence_count = 1;
    options.layer_count = shape_.layers;
    options.destination = &view;
    return good(skv_load(context_, &options, ticket, nullptr));
  }
  bool lease(uint32_t index, skv_lease* lease) {
    auto options = sized<skv_load_options>();
    options.first_sentence = index % sentences_;
    options.sentence_count = 1;
    options.layer_count = shape_.layers;
    return good(skv_load_in_place(context_, &options, lease, nullptr));
  }
  // Every 8 bytes of a lease, once.
  uint64_t read(skv_lease lease) const {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < shape_.layers; ++i) {
      auto at = sized<skv_leased_layer>();
      if (skv_lease_get_layer(lease, 0, i, &at) != 0) return 0;
      sum += read_words(at.pointer, uint64_t{at.kv_heads} * at.blocks * at.block_bytes);
    }
    return sum;
  }
  static uint64_t read_words(const void* from, uint64_t bytes) {
    const auto* words = static_cast<const uint64_t*>(from);
    uint64_t sums[8] = {};
    for (uint64_t i = 0; i + 8 <= bytes / 8; i += 8) {
      for (uint64_t j = 0; j < 8; ++j) sums[j] += words[i + j];
    }
    return std::accumulate(sums, sums + 8, uint64_t{0});
  }
  bool wait(skv_ticket ticket) { return good(skv_wait(session_, ticket, 60'000, nullptr)); }

  // A window over what was committed with vectors, and a prefetch of `layers` of them.
  bool open_window(uint32_t budget_blocks) {
    auto options = sized<skv_window_options>();
    options.budget_blocks = budget_blocks;
    if (!good(skv_window_open(context_, &options, &window_))) return false;
    query_.assign(size_t{shape_.layers} * shape_.heads * 4 * kDim, 0.01F);
    return true;
  }
  bool prefetch(uint32_t layer_count) {
    for (size_t i = 0; i < query_.size(); i += 37)
      query_[i] = 0.01F * static_cast<float>(turn_ % 97);
    ++turn_;
    auto options = sized<skv_prefetch_options>();
    options.layer_count = layer_count;
    auto result = sized<skv_prefetch_result>();
    return good(skv_prefetch(window_, query_.data(),
                             uint64_t{layer_count} * shape_.heads * 4 * kDim * sizeof(float),
                             &options, &result)) &&
           good(skv_readers_done(window_, result.version));
  }

  std::byte* slot(uint32_t index) const { return bytes_ + (index % slots_) * shape_.bytes; }
  skv_session session() const { return session_; }
  skv_context context() const { return context_; }

  template <typename Struct>
  static Struct sized() {
    Struct value{};
    value.size = sizeof(Struct);
    return value;
  }
  static bool good(int code) {
    if (code != SKV_OK) std::fprintf(stderr, "%s: %s\n", skv_error_name(code), skv_last_error());
    return code == SKV_OK;
  }

 private:
  bool append(uint32_t sentences, uint32_t salt) {
    // Half an edge more than the last sentence's end, so that it is decided.
    std::vector<uint32_t> tokens(size_t{sentences} * kTokens + 8);
    std::iota(tokens.begin(), tokens.end(), salt << 20);
    auto options = sized<skv_append_options>();
    options.first_position = SKV_AT_END;
    options.tokens = tokens.data();
    options.token_count = static_cast<uint32_t>(tokens.size());
    options.ends_final_to = options.token_count;
    auto result = sized<skv_append_result>();
    if (!good(skv_context_append(context_, &options, &result))) return false;
    sentences_ = sentences;
    if (result.closed_count >= sentences) return true;
    std::fprintf(stderr, "%u of %u sentences closed\n", result.closed_count, sentences);
    return false;
  }
  bool make_memory() {
    if (!good(skv_memory_create(session_, slots_ * shape_.bytes, &memory_))) return false;
    auto info = sized<skv_memory_info>();
    if (!good(skv_memory_get_info(memory_, &info))) return false;
    bytes_ = static_cast<std::byte*>(info.pointer);
    std::memset(bytes_, 0x11, slots_ * shape_.bytes);
    return true;
  }
  skv_strided_kv view_of(uint32_t index) const {
    auto view = sized<skv_strided_kv>();
    view.first_token = index % sentences_ * kTokens;
    view.memory = memory_;
    view.k_offset = (index % slots_) * shape_.bytes;
    view.v_offset = view.k_offset + shape_.bytes / 2;
    view.token_stride = uint64_t{kDim} * 2;
    view.head_stride = kTokens * view.token_stride;
    view.layer_stride = shape_.heads * view.head_stride;
    return view;
  }

  Shape shape_;
  uint32_t slots_ = 0;
  uint32_t sentences_ = 0;
  uint32_t turn_ = 0;
  std::vector<skv_layer> layers_;
  std::vector<float> query_;
  skv_session session_ = nullptr;
  skv_model model_ = nullptr;
  skv_context context_ = nullptr;
  skv_memory memory_ = nullptr;
  skv_window window_ = nullptr;
  std::byte* bytes_ = nullptr;
};

}  // namespace skv::bench
