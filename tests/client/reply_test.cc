// Replies that a right daemon never sends: each ends in an error, none in a crash or a hang.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <random>

#include "tests/client/client_fixture.h"

namespace skv::test {
namespace {

class ReplyTest : public ClientTest {
 protected:
  struct Call {
    Verb verb;
    std::function<int()> run;
  };

  void SetUp() override {
    ClientTest::SetUp();
    ASSERT_EQ(append(96), 0) << skv_last_error();
    ASSERT_EQ(skv_memory_create(session, 4096, &memory), 0);
  }

  // One call for each verb of the control socket, after hello.
  std::vector<Call> calls() {
    return {
        {Verb::kContextOpen, [this] { return skv_context_open(model, nullptr, &other_context); }},
        {Verb::kContextAppend, [this] { return append(32); }},
        {Verb::kMatch,
         [this] {
           auto result = sized<skv_match_result>();
           return skv_match(context, 0, &result);
         }},
        {Verb::kMemoryRegister, [this] { return skv_memory_create(session, 4096, &other_memory); }},
        {Verb::kPutReserve, [this] { return skv_put_reserve(context, 0, 3, nullptr); }},
        {Verb::kPutWrite,
         [this] {
           auto strided = sized<skv_strided_kv>();
           strided.memory = memory;
           auto options = sized<skv_put_write_options>();
           options.source = &strided;
           return skv_put_write(context, &options, nullptr);
         }},
        {Verb::kPutCommit, [this] { return skv_put_commit(context, 0, 3, 1, nullptr); }},
        {Verb::kPutCancel, [this] { return skv_put_cancel(context, 0, 3, nullptr); }},
        {Verb::kVectorsDerive, [this] { return skv_vectors_derive(context, 0, 3, nullptr); }},
        {Verb::kWindowOpen,
         [this] {
           auto options = sized<skv_window_options>();
           options.budget_blocks = 2;
           skv_window window = nullptr;
           const int code = skv_window_open(context, &options, &window);
           return code < 0 ? code : prefetch(window, 2'000);
         }},
        {Verb::kChannelOpen,
         [this] {
           // A thread of its own has no channel yet.
           int code = 0;
           auto options = sized<skv_window_options>();
           options.budget_blocks = 2;
           skv_window window = nullptr;
           code = skv_window_open(context, &options, &window);
           if (code == 0) std::thread([&] { code = prefetch(window, 2'000); }).join();
           return code;
         }},
        {Verb::kLoad,
         [this] {
           auto options = sized<skv_load_options>();
           options.sentence_count = 2;
           options.layer_count = 2;
           skv_lease lease = nullptr;
           const int code = skv_load_in_place(context, &options, &lease, nullptr);
           if (code < 0) return code;
           auto where = sized<skv_leased_layer>();
           return skv_lease_get_layer(lease, 1, 1, &where);
         }},
        {Verb::kFlush, [this] { return skv_flush(session, SKV_FLUSH_HOST, 2'000, nullptr); }},
        {Verb::kDrop, [this] { return skv_drop(context, 0, nullptr, nullptr); }},
        {Verb::kStat,
         [this] {
           char* json = nullptr;
           const int code = skv_stat(session, SKV_STAT_STATUS, 0, &json, nullptr);
           if (code == 0) skv_free(json);
           return code;
         }},
    };
  }

  // Back to a session that works, whatever the last reply did to it.
  void recover() {
    server.always_well();
    int code = -1;
    for (int i = 0; i < 3 && code != 0; ++i) {
      code = skv_flush(session, SKV_FLUSH_HOST, 5'000, nullptr);
    }
    ASSERT_EQ(code, 0) << skv_last_error();
    // The replay, and a look at what became of the sentences.
    (void)skv_put_reserve(context, 0, 1, nullptr);
    (void)context_info();
    ASSERT_EQ(skv_put_reserve(context, 0, 1, nullptr), 0) << skv_last_error();
  }

  skv_memory memory = nullptr, other_memory = nullptr;
  skv_context other_context = nullptr;
};

TEST_F(ReplyTest, ErrorsPassThroughWithTheirText) {
  for (const Call& call : calls()) {
    server.on(call.verb, {.error = Error{ErrorCode::kNoSpace, "the tier is full"}}, 1);
    EXPECT_EQ(call.run(), SKV_E_NO_SPACE) << static_cast<int>(call.verb);
    EXPECT_STREQ(skv_last_error(), "the tier is full");
    server.always_well();
  }
}

TEST_F(ReplyTest, EveryTruncation) {
  for (const Call& call : calls()) {
    SCOPED_TRACE(static_cast<int>(call.verb));
    server.on(call.verb, {.change = [](Frame& reply) { reply.body.push_back(0); }}, 1);
    EXPECT_EQ(call.run(), SKV_E_PROTOCOL);
    recover();
    for (size_t keep = 0;; ++keep) {
      std::atomic<bool> whole = false;
      server.on(call.verb,
                {.change =
                     [&](Frame& reply) {
                       whole = reply.body.size() <= keep;
                       if (!whole) reply.body.resize(keep);
                     }},
                1);
      const int code = call.run();
      if (whole) break;  // NOLINT: written by the server before it answered
      EXPECT_EQ(code, SKV_E_PROTOCOL) << "first " << keep << " bytes: " << skv_last_error();
      recover();
    }
    recover();
  }
}

// A flipped byte may give another valid answer; it must never give a crash or a hang.
TEST_F(ReplyTest, EveryFlippedByteOfSmallReplies) {
  std::minstd_rand random(1);
  for (const Call& call : calls()) {
    for (size_t at = 0; at < 48; ++at) {
      bool past_end = false;
      server.on(call.verb,
                {.change =
                     [&](Frame& reply) {
                       past_end = at >= reply.body.size();
                       if (!past_end) {
                         reply.body[at] ^= static_cast<uint8_t>(1 + random() % 255);
                       }
                     }},
                1);
      const int code = call.run();
      EXPECT_LE(code, 0);
      recover();
      if (past_end) break;
    }
  }
}

TEST_F(ReplyTest, WrongDescriptors) {
  for (const Verb verb : {Verb::kWindowOpen, Verb::kChannelOpen}) {
    for (const Call& call : calls()) {
      if (call.verb != verb) continue;
      const auto drop_last = [](Frame& reply) {
        reply.fds.pop_back();
        --reply.header.fd_count;
      };
      server.on(verb, {.change = drop_last}, 1);
      EXPECT_EQ(call.run(), SKV_E_PROTOCOL) << skv_last_error();
      recover();
      // Memory that is smaller than announced would be a SIGBUS.
      const auto shrink = [](Frame& reply) {
        reply.fds.front() = create_shared_memory("small", 64).value();
      };
      server.on(verb, {.change = shrink}, 1);
      EXPECT_LT(call.run(), 0);
      recover();
    }
  }
}

TEST_F(ReplyTest, WrongHeaders) {
  const std::vector<std::function<void(FrameHeader&)>> changes = {
      [](FrameHeader& header) { header.magic ^= 1; },
      [](FrameHeader& header) { header.version = 9; },
      [](FrameHeader& header) { header.verb = static_cast<uint16_t>(Verb::kDrop); },
      [](FrameHeader& header) { header.ticket += 1000; },
      [](FrameHeader& header) { header.reserved = 1; },
      [](FrameHeader& header) { header.fd_count = 1; },
  };
  for (size_t i = 0; i < changes.size(); ++i) {
    server.on(Verb::kFlush, {.change = [&](Frame& reply) { changes[i](reply.header); }}, 1);
    EXPECT_LT(skv_flush(session, SKV_FLUSH_HOST, 5'000, nullptr), 0) << i;
    recover();
  }
}

TEST_F(ReplyTest, HelloThatDoesNotFit) {
  const std::vector<std::function<void(HelloReply&)>> changes = {
      [](HelloReply& reply) { reply.version = 2; },
      [](HelloReply& reply) { reply.host_bytes = uint64_t{1} << 40; },
      [](HelloReply& reply) { reply.staging_bytes = 0; },
  };
  auto options = sized<skv_session_options>();
  options.socket_path = server.path().c_str();
  options.connect_timeout_ms = 500;
  for (size_t i = 0; i < changes.size(); ++i) {
    server.on(Verb::kHello,
              {.change =
                   [&](Frame& reply) {
                     HelloReply hello = decode_body<HelloReply>(reply.body).value();
                     changes[i](hello);
                     reply.body = encode_body(hello);
                   }},
              1);
    skv_session refused = nullptr;
    const int code = skv_session_open(&options, &refused);
    EXPECT_TRUE(code == SKV_E_PROTOCOL || code == SKV_E_UNSUPPORTED) << code;
    EXPECT_EQ(refused, nullptr);
  }
}

}  // namespace
}  // namespace skv::test
