#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "client/skv.h"
#include "tests/client/fake_server.h"

namespace skv::test {

// A struct of skv.h with its size set.
template <typename T>
T sized() {
  T value{};
  value.size = sizeof(T);
  return value;
}

// small_model() in the ABI. The pointers stay valid with the object.
struct AbiModel {
  AbiModel() { reset(); }
  AbiModel(const AbiModel&) = delete;
  AbiModel& operator=(const AbiModel&) = delete;

  void reset() {
    table = sized<skv_rotary_table>();
    table.dims = 8;
    table.pairing = SKV_ROTARY_HALF_SPLIT;
    table.attention_factor = 1.0F;
    table.frequency_count = 4;
    table.frequencies = frequencies;
    for (uint32_t i = 0; i < 2; ++i) {
      layers[i] = sized<skv_layer>();
      layers[i].kv_heads = i + 1;
      layers[i].queries_per_kv_head = 2;
      layers[i].k_dim = 16;
      layers[i].v_dim = 16;
      layers[i].softmax_scale = 0.25F;
    }
    descriptor = sized<skv_model_descriptor>();
    descriptor.dtype = SKV_DTYPE_FP16;
    descriptor.block_tokens = 8;
    descriptor.tp_size = 1;
    descriptor.weights_id = "small";
    descriptor.rotary_tables = &table;
    descriptor.rotary_table_count = 1;
    descriptor.layers = layers;
    descriptor.layer_count = 2;
  }
  float frequencies[4] = {1.0F, 0.5F, 0.25F, 0.125F};
  skv_rotary_table table;
  skv_layer layers[2];
  skv_model_descriptor descriptor;
};

// A session on a fake daemon, with a model and a context; short timeouts.
class ClientTest : public ::testing::Test {
 protected:
  void SetUp() override {
    open_session();
    ASSERT_EQ(skv_model_open(session, &model_description.descriptor, &model), 0)
        << skv_last_error();
    ASSERT_EQ(skv_context_open(model, nullptr, &context), 0) << skv_last_error();
  }
  void TearDown() override { (void)skv_session_close(session); }

  void open_session(uint32_t call_timeout_ms = 10'000, uint32_t connect_timeout_ms = 5'000) {
    auto options = sized<skv_session_options>();
    options.socket_path = server.path().c_str();
    options.client_name = "client test";
    options.call_timeout_ms = call_timeout_ms;
    options.connect_timeout_ms = connect_timeout_ms;
    ASSERT_EQ(skv_session_open(&options, &session), 0) << skv_last_error();
  }

  // `count` tokens at the end; with one thread and no failures, token i is its position.
  int append(uint32_t count, uint32_t final_to = 0, const uint8_t* extra = nullptr) {
    std::vector<uint32_t> tokens(count);
    std::iota(tokens.begin(), tokens.end(), next_token.fetch_add(count));
    auto options = sized<skv_append_options>();
    options.first_position = SKV_AT_END;
    options.tokens = tokens.data();
    options.token_count = count;
    options.ends_final_to = final_to;
    options.extra = extra;
    return skv_context_append(context, &options, nullptr);
  }
  skv_context_info context_info() {
    auto info = sized<skv_context_info>();
    EXPECT_EQ(skv_context_get_info(context, &info), 0) << skv_last_error();
    return info;
  }
  uint32_t token_count() { return context_info().token_count; }

  skv_window open_window() {
    auto options = sized<skv_window_options>();
    options.budget_blocks = 4;
    skv_window window = nullptr;
    EXPECT_EQ(skv_window_open(context, &options, &window), 0) << skv_last_error();
    return window;
  }
  int prefetch(skv_window window, uint32_t timeout_ms = 0) {
    const std::vector<float> query(96, 1.0F);  // (1 + 2) kv heads x 2 queries x 16
    auto options = sized<skv_prefetch_options>();
    options.timeout_ms = timeout_ms;
    auto result = sized<skv_prefetch_result>();
    const int code =
        skv_prefetch(window, query.data(), query.size() * sizeof(float), &options, &result);
    if (code == 0) version = result.version;
    return code;
  }

  FakeServer server;
  AbiModel model_description;
  skv_session session = nullptr;
  skv_model model = nullptr;
  skv_context context = nullptr;
  std::atomic<uint32_t> next_token{0};
  uint64_t version = 0;  // of the last prefetch
};

}  // namespace skv::test
