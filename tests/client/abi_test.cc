// What the border of the C ABI promises about structs, handles and errors, on a daemon that
// behaves.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <vector>

#include "client/handles.h"
#include "tests/client/client_fixture.h"

namespace skv::test {
namespace {

using ::testing::HasSubstr;

class AbiTest : public ClientTest {};

extern "C" int skv_header_compiles_as_c(void);

TEST(AbiHeaderTest, CompilesAndLinksAsC) { EXPECT_EQ(skv_header_compiles_as_c(), SKV_OK); }

TEST(AbiErrorTest, NamesEveryCode) {
  for (int code = 0; code >= -16; --code) {
    EXPECT_STRNE(skv_error_name(code), "SKV_E_?") << code;
  }
  EXPECT_STREQ(skv_error_name(-17), "SKV_E_?");
  EXPECT_STREQ(skv_error_name(1), "SKV_E_?");
}

TEST_F(AbiTest, StructsFromOlderAndNewerCallers) {
  // Older: it ends before `connected`; nothing is written past its end.
  struct {
    skv_session_info info;
    uint32_t behind;
  } older{};
  older.info.size = offsetof(skv_session_info, connected);
  older.info.connected = 77;
  ASSERT_EQ(skv_session_get_info(session, &older.info), 0) << skv_last_error();
  EXPECT_EQ(older.info.size, offsetof(skv_session_info, connected));
  EXPECT_EQ(older.info.connections, 1U);
  EXPECT_EQ(older.info.connected, 77U);

  // Newer: what we do not know must be zero.
  struct {
    skv_context_options options;
    uint32_t unknown;
  } newer{};
  newer.options.size = sizeof newer;
  skv_context other = nullptr;
  EXPECT_EQ(skv_context_open(model, &newer.options, &other), 0) << skv_last_error();
  newer.unknown = 1;
  EXPECT_EQ(skv_context_open(model, &newer.options, &other), SKV_E_UNSUPPORTED);
  EXPECT_THAT(skv_last_error(), HasSubstr("byte 12"));
}

TEST_F(AbiTest, SizeThatWasNeverSet) {
  skv_context_options options{};
  skv_context other = nullptr;
  EXPECT_EQ(skv_context_open(model, &options, &other), SKV_E_INVALID_ARGUMENT);
  EXPECT_THAT(skv_last_error(), HasSubstr("skv_context_options::size is 0"));
  skv_session_info info{};
  EXPECT_EQ(skv_session_get_info(session, &info), SKV_E_INVALID_ARGUMENT);
}

TEST_F(AbiTest, NullIsAnErrorEverywhere) {
  EXPECT_EQ(skv_session_close(nullptr), SKV_E_UNKNOWN_HANDLE);
  EXPECT_EQ(skv_session_get_info(session, nullptr), SKV_E_INVALID_ARGUMENT);
  EXPECT_EQ(skv_model_open(session, nullptr, &model), SKV_E_INVALID_ARGUMENT);
  EXPECT_EQ(skv_context_open(model, nullptr, nullptr), SKV_E_INVALID_ARGUMENT);
  EXPECT_EQ(skv_context_append(context, nullptr, nullptr), SKV_E_INVALID_ARGUMENT);
  EXPECT_EQ(skv_match(context, 0, nullptr), SKV_E_INVALID_ARGUMENT);
  EXPECT_EQ(skv_put_write(context, nullptr, nullptr), SKV_E_INVALID_ARGUMENT);
  EXPECT_EQ(skv_window_open(context, nullptr, nullptr), SKV_E_INVALID_ARGUMENT);
  EXPECT_EQ(skv_prefetch(nullptr, nullptr, 0, nullptr, nullptr), SKV_E_INVALID_ARGUMENT);
  EXPECT_EQ(skv_memory_create(session, 4096, nullptr), SKV_E_INVALID_ARGUMENT);
  EXPECT_EQ(skv_stat(session, SKV_STAT_STATUS, 0, nullptr, nullptr), SKV_E_INVALID_ARGUMENT);
  auto options = sized<skv_put_write_options>();
  EXPECT_EQ(skv_put_write(context, &options, nullptr), SKV_E_INVALID_ARGUMENT);
  EXPECT_THAT(skv_last_error(), HasSubstr("skv_strided_kv is NULL"));
  skv_free(nullptr);
}

TEST_F(AbiTest, UseAfterCloseAndDoubleClose) {
  ASSERT_EQ(skv_context_close(context), 0);
  EXPECT_EQ(skv_context_close(context), SKV_E_UNKNOWN_HANDLE);
  EXPECT_THAT(skv_last_error(), HasSubstr("not an open context: closed"));
  EXPECT_EQ(append(1), SKV_E_UNKNOWN_HANDLE);
  // A new context does not take over the number of the old one.
  skv_context other = nullptr;
  ASSERT_EQ(skv_context_open(model, nullptr, &other), 0);
  EXPECT_NE(other, context);
  EXPECT_EQ(append(1), SKV_E_UNKNOWN_HANDLE);
}

TEST_F(AbiTest, HandlesOfAnotherKindOrMadeUp) {
  EXPECT_EQ(skv_context_close(reinterpret_cast<skv_context>(model)), SKV_E_UNKNOWN_HANDLE);
  EXPECT_THAT(skv_last_error(), HasSubstr("it is a model"));
  for (const uint64_t number : {1ULL, 0xFFFFFFFFFFFFFFFFULL, 0x3001000001000000ULL,
                                0x00007FFFDEADBEEFULL, 0x3FFF000001000001ULL}) {
    EXPECT_EQ(skv_context_close(reinterpret_cast<skv_context>(number)), SKV_E_UNKNOWN_HANDLE)
        << std::hex << number;
  }
}

TEST_F(AbiTest, ClosingTheSessionClosesAllUnderIt) {
  ASSERT_EQ(append(64), 0);
  skv_window window = open_window();
  skv_memory memory = nullptr;
  ASSERT_EQ(skv_memory_create(session, 4096, &memory), 0);
  ASSERT_EQ(skv_session_close(session), 0);
  EXPECT_EQ(skv_session_close(session), SKV_E_UNKNOWN_HANDLE);
  EXPECT_EQ(skv_context_close(context), SKV_E_UNKNOWN_HANDLE);
  EXPECT_EQ(skv_window_close(window), SKV_E_UNKNOWN_HANDLE);
  EXPECT_EQ(skv_memory_close(memory), SKV_E_UNKNOWN_HANDLE);
  EXPECT_EQ(skv_model_close(model), SKV_E_UNKNOWN_HANDLE);
}

// The thread's channel of the session outlives it, until the thread has another or exits.
TEST_F(AbiTest, AClosedSessionMapsNothing) {
  ASSERT_EQ(append(64), 0);
  skv_window window = open_window();
  const std::vector<float> query(96, 1.0F);
  auto result = sized<skv_prefetch_result>();
  ASSERT_EQ(skv_prefetch(window, query.data(), 384, nullptr, &result), 0) << skv_last_error();
  auto info = sized<skv_session_info>();
  ASSERT_EQ(skv_session_get_info(session, &info), 0);
  auto* const host = const_cast<void*>(info.host);
  unsigned char resident = 0;
  ASSERT_EQ(::mincore(host, 4096, &resident), 0);
  ASSERT_EQ(skv_session_close(session), 0);
  EXPECT_EQ(::mincore(host, 4096, &resident), -1);
  EXPECT_EQ(errno, ENOMEM);
}

TEST_F(AbiTest, AHoldKeepsMemoryPastItsSession) {
  skv_memory memory = nullptr;
  ASSERT_EQ(skv_memory_create(session, 4096, &memory), 0);
  auto info = sized<skv_memory_info>();
  ASSERT_EQ(skv_memory_get_info(memory, &info), 0);
  skv_hold hold = nullptr;
  ASSERT_EQ(skv_memory_hold(memory, &hold), 0);
  ASSERT_EQ(skv_session_close(session), 0);
  std::memset(info.pointer, 1, info.bytes);
  EXPECT_EQ(static_cast<char*>(info.pointer)[4095], 1);
  EXPECT_EQ(skv_hold_release(hold), 0);
  EXPECT_EQ(skv_hold_release(hold), SKV_E_UNKNOWN_HANDLE);
}

TEST_F(AbiTest, AModelOutlivesItsHandleWhileAContextUsesIt) {
  ASSERT_EQ(skv_model_close(model), 0);
  EXPECT_EQ(append(40), 0) << skv_last_error();
  skv_context other = nullptr;
  EXPECT_EQ(skv_context_open(model, nullptr, &other), SKV_E_UNKNOWN_HANDLE);
}

TEST_F(AbiTest, WhatAModelMayNotBe) {
  skv_model other = nullptr;
  const auto refused = [&](int code, const char* text) {
    EXPECT_EQ(skv_model_open(session, &model_description.descriptor, &other), code) << text;
    EXPECT_THAT(skv_last_error(), HasSubstr(text));
    model_description.reset();
  };
  model_description.descriptor.layer_count = 0;
  refused(SKV_E_INVALID_ARGUMENT, "allowed are 1 to 256");
  model_description.descriptor.dtype = 9;
  refused(SKV_E_INVALID_ARGUMENT, "dtype is 9");
  model_description.layers[1].kv_heads = 70'000;
  refused(SKV_E_INVALID_ARGUMENT, "kv_heads is 70000");
  model_description.layers[1].layer_class = SKV_LAYER_LINEAR;
  refused(SKV_E_UNSUPPORTED, "layer");
  model_description.descriptor.weights_id = nullptr;
  refused(SKV_E_INVALID_ARGUMENT, "weights_id is NULL");
}

TEST_F(AbiTest, ARepeatedAppendIsComparedAndSkipped) {
  ASSERT_EQ(append(40), 0);
  const std::vector<uint32_t> tokens = {38, 39, 40, 41};
  auto options = sized<skv_append_options>();
  options.first_position = 38;
  options.tokens = tokens.data();
  options.token_count = 4;
  auto result = sized<skv_append_result>();
  ASSERT_EQ(skv_context_append(context, &options, &result), 0) << skv_last_error();
  EXPECT_EQ(result.token_count, 42U);
  const auto sent = server.received<ContextAppend>(Verb::kContextAppend);
  EXPECT_EQ(sent.back().tokens, (std::vector<uint32_t>{40, 41}));
  EXPECT_EQ(sent.back().first_position, 40U);

  options.first_position = 37;  // other tokens than those that are there
  EXPECT_EQ(skv_context_append(context, &options, &result), SKV_E_INVALID_ARGUMENT);
  options.first_position = 100;
  EXPECT_EQ(skv_context_append(context, &options, &result), SKV_E_INVALID_ARGUMENT);
  EXPECT_THAT(skv_last_error(), HasSubstr("gap"));
}

TEST_F(AbiTest, LongAppendsGoInPiecesWithTheirEnds) {
  std::vector<uint32_t> tokens(10'000, 5);
  const std::vector<uint32_t> ends = {4096, 4097, 9000, 9999};
  auto options = sized<skv_append_options>();
  options.first_position = SKV_AT_END;
  options.tokens = tokens.data();
  options.token_count = 10'000;
  options.ends = ends.data();
  options.end_count = 4;
  options.ends_final_to = 9'500;
  auto result = sized<skv_append_result>();
  ASSERT_EQ(skv_context_append(context, &options, &result), 0) << skv_last_error();
  EXPECT_EQ(result.closed_count, 10'000U / 32);
  const auto sent = server.received<ContextAppend>(Verb::kContextAppend);
  ASSERT_EQ(sent.size(), 3U);
  EXPECT_EQ(sent[0].ends, (std::vector<uint32_t>{4096}));
  EXPECT_EQ(sent[0].ends_final_to, 4096U);
  EXPECT_EQ(sent[1].ends, (std::vector<uint32_t>{4097}));
  EXPECT_EQ(sent[2].ends, (std::vector<uint32_t>{9000, 9999}));
  EXPECT_EQ(sent[2].ends_final_to, 9'500U);
}

TEST_F(AbiTest, SentenceRangesLongerThanAMessage) {
  std::vector<uint8_t> outcomes(1'100, 0xFF);
  ASSERT_EQ(skv_put_reserve(context, 3, 1'100, outcomes.data()), 0) << skv_last_error();
  EXPECT_EQ(std::count(outcomes.begin(), outcomes.end(), SKV_PUT_RESERVED), 1'100);
  const auto sent = server.received<PutReserve>(Verb::kPutReserve);
  ASSERT_EQ(sent.size(), 3U);
  EXPECT_EQ(sent[2].first_sentence, 3U + 1'024);
  EXPECT_EQ(sent[2].sentence_count, 76U);
}

TEST_F(AbiTest, AQueryOfTheWrongSize) {
  ASSERT_EQ(append(64), 0);
  skv_window window = open_window();
  const std::vector<float> query(96);
  auto result = sized<skv_prefetch_result>();
  EXPECT_EQ(skv_prefetch(window, query.data(), 380, nullptr, &result), SKV_E_INVALID_ARGUMENT);
  EXPECT_THAT(skv_last_error(), HasSubstr("384 bytes, 380 were given"));
  auto options = sized<skv_prefetch_options>();
  options.first_layer = 2;
  EXPECT_EQ(skv_prefetch(window, query.data(), 384, &options, &result), SKV_E_INVALID_ARGUMENT);
}

TEST_F(AbiTest, TablesAndReadersDone) {
  ASSERT_EQ(append(64), 0);
  skv_window window = open_window();
  auto table = sized<skv_table>();
  EXPECT_EQ(skv_window_table(window, 0, &table), SKV_E_NOT_FOUND);
  ASSERT_EQ(prefetch(window), 0) << skv_last_error();
  ASSERT_EQ(skv_window_table(window, 1, &table), 0) << skv_last_error();
  EXPECT_EQ(table.version, version);
  EXPECT_EQ(table.covered_to, 32U);
  EXPECT_EQ(table.head_count, 2U);
  EXPECT_EQ(table.entry_count, 2U);
  EXPECT_EQ(table.indptr[1], 1U);
  EXPECT_EQ(table.slot[1], 1U);
  EXPECT_FLOAT_EQ(table.score[0], 0.5F);
  EXPECT_EQ(skv_window_table(window, 2, &table), SKV_E_INVALID_ARGUMENT);

  const void* block = nullptr;
  auto info = sized<skv_window_info>();
  ASSERT_EQ(skv_window_get_info(window, &info), 0);
  ASSERT_EQ(skv_window_slot(window, 1, 3, &block), 0);
  EXPECT_EQ(block, static_cast<const char*>(info.slots) + 3 * info.slot_unit_bytes);
  EXPECT_EQ(skv_window_slot(window, 1, 0xFFFFFFFF, &block), SKV_E_INVALID_ARGUMENT);

  EXPECT_EQ(skv_readers_done(window, version + 1), SKV_E_INVALID_ARGUMENT);
  EXPECT_THAT(skv_last_error(), HasSubstr("never seen"));
  EXPECT_EQ(skv_readers_done(window, version), 0);
  EXPECT_EQ(skv_readers_done(window, 0), 0);  // older than before: no change
  const auto* header = static_cast<const WindowHeader*>(info.tables);
  EXPECT_EQ(header->readers_done.load(), version);
}

TEST_F(AbiTest, LeasesAreReleasedOnce) {
  ASSERT_EQ(append(96), 0);
  auto options = sized<skv_load_options>();
  options.first_sentence = 0;
  options.sentence_count = 3;
  options.layer_count = 2;
  skv_lease lease = nullptr;
  auto loaded = sized<skv_load_result>();
  ASSERT_EQ(skv_load_in_place(context, &options, &lease, &loaded), 0) << skv_last_error();
  EXPECT_EQ(loaded.host_chunks, 3U);
  auto where = sized<skv_leased_layer>();
  ASSERT_EQ(skv_lease_get_layer(lease, 2, 1, &where), 0) << skv_last_error();
  EXPECT_EQ(where.kv_heads, 2U);
  EXPECT_EQ(where.blocks, 4U);
  EXPECT_EQ(where.block_bytes, 512U);  // 8 tokens x (16 + 16) x 2 bytes
  EXPECT_EQ(skv_lease_get_layer(lease, 3, 1, &where), SKV_E_INVALID_ARGUMENT);
  ASSERT_EQ(skv_lease_release(lease), 0);
  EXPECT_EQ(skv_lease_release(lease), SKV_E_UNKNOWN_HANDLE);
  EXPECT_EQ(append(1), 0) << "answered after the release, which nobody waits for";
  EXPECT_EQ(server.count(Verb::kRelease), 1U);
}

TEST_F(AbiTest, MemoryThatMayNotBeShared) {
  skv_memory memory = nullptr;
  EXPECT_EQ(skv_memory_create(session, 0, &memory), SKV_E_INVALID_ARGUMENT);
  EXPECT_EQ(skv_memory_register(session, 0, 4096, &memory), SKV_E_INVALID_ARGUMENT);
  EXPECT_EQ(skv_memory_register(session, -1, 4096, &memory), SKV_E_INVALID_ARGUMENT);
  EXPECT_EQ(server.count(Verb::kMemoryRegister), 0U);
}

TEST_F(AbiTest, StridesThatStartOutsideTheMemory) {
  skv_memory memory = nullptr;
  ASSERT_EQ(skv_memory_create(session, 4096, &memory), 0);
  auto strided = sized<skv_strided_kv>();
  strided.memory = memory;
  strided.v_offset = 4096;
  auto options = sized<skv_put_write_options>();
  options.source = &strided;
  EXPECT_EQ(skv_put_write(context, &options, nullptr), SKV_E_INVALID_ARGUMENT);
  EXPECT_THAT(skv_last_error(), HasSubstr("4096 (V) in a memory of 4096 bytes"));
}

TEST_F(AbiTest, MemoryInUseIsNotClosed) {
  skv_memory memory = nullptr;
  ASSERT_EQ(skv_memory_create(session, 4096, &memory), 0);
  auto strided = sized<skv_strided_kv>();
  strided.memory = memory;
  auto options = sized<skv_put_write_options>();
  options.source = &strided;
  server.on(Verb::kPutWrite, {.late = true}, 1);
  skv_ticket ticket = 0;
  ASSERT_EQ(skv_put_write(context, &options, &ticket), 0) << skv_last_error();
  EXPECT_EQ(skv_memory_close(memory), SKV_E_BUSY);
  EXPECT_EQ(skv_wait(session, ticket, 0, nullptr), SKV_E_TIMEOUT);
  server.release_late();
  EXPECT_EQ(skv_wait(session, ticket, 5'000, nullptr), 0) << skv_last_error();
  EXPECT_EQ(skv_wait(session, ticket, 0, nullptr), SKV_E_UNKNOWN_HANDLE);
  EXPECT_EQ(skv_memory_close(memory), 0) << skv_last_error();
}

TEST_F(AbiTest, MemoryOfAnotherSession) {
  const skv_session first = session;
  skv_memory memory = nullptr;
  ASSERT_EQ(skv_memory_create(session, 4096, &memory), 0);
  open_session();
  ASSERT_EQ(skv_model_open(session, &model_description.descriptor, &model), 0);
  ASSERT_EQ(skv_context_open(model, nullptr, &context), 0);
  auto strided = sized<skv_strided_kv>();
  strided.memory = memory;
  auto options = sized<skv_put_write_options>();
  options.source = &strided;
  EXPECT_EQ(skv_put_write(context, &options, nullptr), SKV_E_INVALID_ARGUMENT);
  EXPECT_THAT(skv_last_error(), HasSubstr("another session"));
  EXPECT_EQ(skv_session_close(first), 0);
}

struct Thing : client::Object {
  static constexpr client::HandleKind kKind = client::HandleKind::kModel;
  Thing() : Object(1) {}
};

// Goal: numbers are not given twice, and a table that is full of closed handles still knows them.
TEST(HandleTableTest, GenerationsTellHandlesOfOneIndexApart) {
  client::HandleTable& table = *client::HandleTable::current_or_new();
  std::vector<uint64_t> numbers;
  for (int i = 0; i < 100; ++i) {
    const uint64_t number =
        table.add(client::HandleKind::kModel, std::make_shared<Thing>()).value();
    EXPECT_TRUE(table.find<Thing>(number).ok());
    EXPECT_TRUE(table.take<Thing>(number).ok());
    for (const uint64_t old : numbers) EXPECT_FALSE(table.find<Thing>(old).ok());
    EXPECT_EQ(std::count(numbers.begin(), numbers.end(), number), 0);
    numbers.push_back(number);
  }
}

}  // namespace
}  // namespace skv::test
