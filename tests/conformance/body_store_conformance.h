#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "tests/conformance/sample_bodies.h"

namespace skv {

// What every BodyStore promises. A harness makes one:
//
//   bool kPersistent            reopen() keeps what was flushed
//   bool kTears                 tear_next_write() works
//   BodyStore& store()          empty, room for about a dozen bodies of half a MiB; transfers_max
//   64 void reopen() void flip_byte(std::span<const std::byte> content)   wherever the medium holds
//   these bytes void tear_next_write(uint64_t bytes)
template <typename Harness>
class BodyStoreConformance : public testing::Test {
 protected:
  BodyStore& store() { return harness_.store(); }

  // Three chunks, the sizes of a small model's layer groups; the second ends off its 4 KiB.
  static SampleBody body(uint64_t number, uint64_t variant = 0) {
    return SampleBody::make(number, {65'536, 70'000, 12'288}, 3'000, variant);
  }
  static SampleBody large(uint64_t number) {
    return SampleBody::make(number, {262'144, 262'144}, 0);
  }

  Harness harness_;
};

// Stores that a restart does not empty.
template <typename Harness>
class DurableBodyStoreConformance : public BodyStoreConformance<Harness> {};

// Durable stores whose writes can be torn from here.
template <typename Harness>
class TornBodyStoreConformance : public BodyStoreConformance<Harness> {};

TYPED_TEST_SUITE_P(BodyStoreConformance);
TYPED_TEST_SUITE_P(DurableBodyStoreConformance);
TYPED_TEST_SUITE_P(TornBodyStoreConformance);

TYPED_TEST_P(BodyStoreConformance, BringsBackWhatWasPut) {
  const SampleBody body = this->body(1);
  ASSERT_TRUE(put_now(this->store(), body).ok());
  EXPECT_TRUE(holds(this->store(), body));
  const BodyRecordRef record = this->store().find(body.record.key);
  ASSERT_NE(record, nullptr);
  EXPECT_EQ(*record, body.record);
}

TYPED_TEST_P(BodyStoreConformance, ReadsAnyRangeOfChunks) {
  const SampleBody body = this->body(1);
  ASSERT_TRUE(put_now(this->store(), body).ok());
  for (uint32_t first = 0; first < 3; ++first) {
    for (uint32_t count = 1; first + count <= 3; ++count) {
      const ReadAnswer read = read_now(this->store(), body, first, count);
      ASSERT_TRUE(read.ok());
      for (uint32_t i = 0; i < count; ++i) {
        EXPECT_TRUE(body.chunk_equals(first + i, read.chunks[i].span())) << first << "+" << i;
      }
    }
  }
}

TYPED_TEST_P(BodyStoreConformance, TakesBodiesOfManyShapes) {
  std::vector<SampleBody> bodies;
  bodies.push_back(SampleBody::make(1, {1}, 0));
  bodies.push_back(SampleBody::make(2, {4'096}, 1));
  bodies.push_back(SampleBody::make(3, std::vector<uint64_t>(160, 3'000), 5'000));
  bodies.push_back(SampleBody::make(4, {500'000}, 4'097));
  for (const SampleBody& body : bodies) {
    ASSERT_TRUE(put_now(this->store(), body).ok());
  }
  for (const SampleBody& body : bodies) {
    EXPECT_TRUE(holds(this->store(), body));
  }
}

TYPED_TEST_P(BodyStoreConformance, DoneRunsOnlyInDrainAndNothingIsFoundBefore) {
  const SampleBody body = this->body(1);
  bool ended = false;
  BodyPut put = body.put([&](const Result<void>& result) {
    EXPECT_TRUE(result.ok());
    ended = true;
  });
  ASSERT_EQ(this->store().put(put).value(), StoreOutcome::kAccepted);
  EXPECT_FALSE(ended);
  EXPECT_EQ(this->store().find(body.record.key), nullptr);
  EXPECT_EQ(this->store().transfers_in_flight(), 1U);
  drain_until(this->store(), [&] { return ended; });
  EXPECT_NE(this->store().find(body.record.key), nullptr);
  EXPECT_EQ(this->store().transfers_in_flight(), 0U);
}

TYPED_TEST_P(BodyStoreConformance, UnknownKeyIsAMiss) {
  const SampleBody body = this->body(1);
  EXPECT_EQ(read_now(this->store(), body, 0, 1).outcome, BodyReadOutcome::kUnknown);
  EXPECT_EQ(this->store().read_vectors(body.record.key, [](const Result<VectorsBlob>&) {}),
            BodyReadOutcome::kUnknown);
  EXPECT_EQ(this->store().find(body.record.key), nullptr);
  this->store().erase(body.record.key);
}

TYPED_TEST_P(BodyStoreConformance, SecondPutOfAKeyIsRefusedAndChangesNothing) {
  const SampleBody first = this->body(1);
  ASSERT_TRUE(put_now(this->store(), first).ok());
  BodyPut again = this->body(1, /*variant=*/1).put([](const Result<void>&) { FAIL(); });
  EXPECT_EQ(this->store().put(again).value(), StoreOutcome::kExists);
  EXPECT_NE(again.done, nullptr) << "moved from, though not accepted";
  EXPECT_TRUE(holds(this->store(), first));
}

TYPED_TEST_P(BodyStoreConformance, PutInFlightCountsAsStored) {
  const SampleBody body = this->body(1);
  bool ended = false;
  BodyPut put = body.put([&](const Result<void>&) { ended = true; });
  ASSERT_EQ(this->store().put(put).value(), StoreOutcome::kAccepted);
  BodyPut again = body.put([](const Result<void>&) { FAIL(); });
  EXPECT_EQ(this->store().put(again).value(), StoreOutcome::kExists);
  drain_until(this->store(), [&] { return ended; });
}

TYPED_TEST_P(BodyStoreConformance, EraseForgetsAndTheKeyCanBePutAgain) {
  ASSERT_TRUE(put_now(this->store(), this->body(1)).ok());
  ASSERT_TRUE(put_now(this->store(), this->body(2)).ok());
  this->store().erase(this->body(1).record.key);
  EXPECT_EQ(this->store().find(this->body(1).record.key), nullptr);
  EXPECT_EQ(read_now(this->store(), this->body(1), 0, 1).outcome, BodyReadOutcome::kUnknown);
  EXPECT_TRUE(holds(this->store(), this->body(2)));

  const SampleBody other = this->body(1, /*variant=*/1);
  ASSERT_TRUE(put_now(this->store(), other).ok());
  EXPECT_TRUE(holds(this->store(), other));
}

TYPED_TEST_P(BodyStoreConformance, ReadsUnderWayOutliveAnErase) {
  const SampleBody body = this->body(1);
  ASSERT_TRUE(put_now(this->store(), body).ok());
  AlignedBuffer buffer(65'536);
  BodyRead read;
  read.key = body.record.key;
  read.chunks = {buffer.span()};
  bool ended = false;
  read.done = [&](const Result<void>& result) {
    EXPECT_TRUE(result.ok());
    ended = true;
  };
  ASSERT_EQ(this->store().read(read).value(), BodyReadOutcome::kAccepted);
  this->store().erase(body.record.key);
  drain_until(this->store(), [&] { return ended; });
  EXPECT_TRUE(body.chunk_equals(0, buffer.span()));
  EXPECT_EQ(this->store().find(body.record.key), nullptr);
}

TYPED_TEST_P(BodyStoreConformance, ErasedPutEndsCancelled) {
  const SampleBody body = this->body(1);
  PutAnswer answer;
  bool ended = false;
  BodyPut put = body.put([&](Result<void> result) {
    answer.result = std::move(result);
    ended = true;
  });
  ASSERT_EQ(this->store().put(put).value(), StoreOutcome::kAccepted);
  this->store().erase(body.record.key);
  drain_until(this->store(), [&] { return ended; });
  EXPECT_EQ(answer.code(), ErrorCode::kCancelled);
  EXPECT_EQ(this->store().find(body.record.key), nullptr);
  EXPECT_TRUE(put_now(this->store(), body).ok());
  EXPECT_TRUE(holds(this->store(), body));
}

TYPED_TEST_P(BodyStoreConformance, WrongSizesAreRefusedByName) {
  const SampleBody body = this->body(1);
  const auto refused = [&](auto change) {
    BodyPut put = body.put([](const Result<void>&) { FAIL(); });
    change(put);
    const Result<StoreOutcome> outcome = this->store().put(put);
    ASSERT_FALSE(outcome.ok());
    EXPECT_EQ(outcome.error().code, ErrorCode::kInvalidArgument);
  };
  refused([](BodyPut& put) { put.chunks.pop_back(); });
  refused([](BodyPut& put) { put.record.chunk_sums.pop_back(); });
  refused([](BodyPut& put) { put.chunks[0] = put.chunks[0].first(4'096); });
  refused([](BodyPut& put) { put.vectors = nullptr; });
  refused([](BodyPut& put) { put.record.chunk_bytes[1] = 0; });
  ASSERT_TRUE(put_now(this->store(), body).ok());
  AlignedBuffer buffer(65'536);
  BodyRead read;
  read.key = body.record.key;
  read.first_chunk = 3;
  read.chunks = {buffer.span()};
  EXPECT_FALSE(this->store().read(read).ok());
  read.first_chunk = 0;
  read.chunks = {buffer.span().first(4'096)};
  EXPECT_FALSE(this->store().read(read).ok());
}

TYPED_TEST_P(BodyStoreConformance, BodyLargerThanTheStoreCanEverHoldIsRefusedByName) {
  const SampleBody body = SampleBody::make(1, {40u << 20}, 0);
  BodyPut put = body.put([](const Result<void>&) { FAIL(); });
  const Result<StoreOutcome> outcome = this->store().put(put);
  ASSERT_FALSE(outcome.ok());
  EXPECT_EQ(outcome.error().code, ErrorCode::kTooLarge);
  EXPECT_NE(outcome.error().message.find("_bytes"), std::string::npos) << outcome.error().message;
}

// Goal: memory that is not what its sums say is never stored.
TYPED_TEST_P(BodyStoreConformance, PutOfBytesThatDoNotMatchTheirSumsFails) {
  SampleBody body = this->body(1);
  body.chunks[1].data()[5] ^= std::byte{1};
  EXPECT_EQ(put_now(this->store(), body).code(), ErrorCode::kCorrupt);
  EXPECT_EQ(this->store().find(body.record.key), nullptr);
  body.chunks[1].data()[5] ^= std::byte{1};
  EXPECT_TRUE(put_now(this->store(), body).ok());
  EXPECT_TRUE(holds(this->store(), body));
}

// Goal: a byte that changed on the medium is a miss, never a wrong byte, and hurts nobody else.
TYPED_TEST_P(BodyStoreConformance, FlippedByteIsCorruptOnceThenAMiss) {
  const SampleBody good = this->body(1);
  const SampleBody bad = this->body(2);
  ASSERT_TRUE(put_now(this->store(), good).ok());
  ASSERT_TRUE(put_now(this->store(), bad).ok());
  ASSERT_TRUE(flush_now(this->store()).ok());
  this->harness_.flip_byte(bad.chunks[1].span().first(70'000));

  EXPECT_TRUE(read_now(this->store(), bad, 0, 1).ok()) << "another chunk of it is still whole";
  const ReadAnswer read = read_now(this->store(), bad, 0, 3);
  EXPECT_EQ(read.code(), ErrorCode::kCorrupt);
  for (const AlignedBuffer& chunk : read.chunks) {
    EXPECT_TRUE(std::all_of(chunk.span().begin(), chunk.span().end(),
                            [](std::byte b) { return b == std::byte{0}; }));
  }
  EXPECT_EQ(read_now(this->store(), bad, 0, 3).outcome, BodyReadOutcome::kUnknown);
  EXPECT_TRUE(holds(this->store(), good));
}

TYPED_TEST_P(BodyStoreConformance, FullIsAnOutcomeAndErasingMakesRoom) {
  std::vector<uint64_t> stored;
  uint64_t number = 1;
  for (; number < 200; ++number) {
    const SampleBody body = this->large(number);
    const PutAnswer answer = put_now(this->store(), body);
    if (answer.outcome == StoreOutcome::kFull || answer.code() == ErrorCode::kNoSpace) {
      break;
    }
    ASSERT_TRUE(answer.ok());
    stored.push_back(number);
  }
  ASSERT_LT(number, 200U) << "never full";
  ASSERT_GE(stored.size(), 8U);
  for (const uint64_t old : stored) {
    EXPECT_TRUE(holds(this->store(), this->large(old)));
  }
  // Whoever is full goes on by erasing, oldest first, as often as it takes.
  for (uint64_t extra = 0; extra < 20; ++extra, ++number) {
    const SampleBody body = this->large(number);
    for (;;) {
      const PutAnswer answer = put_now(this->store(), body);
      if (answer.ok()) {
        break;
      }
      ASSERT_TRUE(answer.outcome == StoreOutcome::kFull || answer.code() == ErrorCode::kNoSpace)
          << static_cast<int>(answer.outcome);
      ASSERT_FALSE(stored.empty());
      this->store().erase(this->large(stored.front()).record.key);
      stored.erase(stored.begin());
    }
    stored.push_back(number);
  }
  for (const uint64_t live : stored) {
    EXPECT_TRUE(holds(this->store(), this->large(live)));
  }
}

TYPED_TEST_P(BodyStoreConformance, ManyTransfersAtOnceAndABoundedNumber) {
  std::vector<SampleBody> bodies;
  for (uint64_t number = 1; number <= 70; ++number) {
    bodies.push_back(SampleBody::make(number, {8'192}, 100));
  }
  size_t ended = 0;
  size_t accepted = 0;
  for (const SampleBody& body : bodies) {
    BodyPut put = body.put([&](const Result<void>& result) {
      EXPECT_TRUE(result.ok());
      ++ended;
    });
    const StoreOutcome outcome = this->store().put(put).value();
    if (outcome == StoreOutcome::kBusy) {
      break;
    }
    ASSERT_EQ(outcome, StoreOutcome::kAccepted);
    ++accepted;
  }
  EXPECT_EQ(accepted, 64U);
  drain_until(this->store(), [&] { return ended == accepted; });
  for (size_t i = 0; i < accepted; ++i) {
    EXPECT_TRUE(holds(this->store(), bodies[i]));
  }
  EXPECT_EQ(this->store().records().size(), accepted);
}

TYPED_TEST_P(BodyStoreConformance, DoneMayCallTheStore) {
  const SampleBody first = this->body(1);
  const SampleBody second = this->body(2);
  bool ended = false;
  BodyPut put = first.put([&](const Result<void>&) {
    this->store().erase(first.record.key);
    BodyPut next = second.put([&](const Result<void>& result) { ended = result.ok(); });
    EXPECT_EQ(this->store().put(next).value(), StoreOutcome::kAccepted);
  });
  ASSERT_EQ(this->store().put(put).value(), StoreOutcome::kAccepted);
  drain_until(this->store(), [&] { return ended; });
  EXPECT_TRUE(holds(this->store(), second));
}

TYPED_TEST_P(DurableBodyStoreConformance, ReopenBringsBackWhatWasFlushed) {
  for (uint64_t number = 1; number <= 6; ++number) {
    ASSERT_TRUE(put_now(this->store(), this->body(number)).ok());
  }
  ASSERT_TRUE(flush_now(this->store()).ok());
  for (int times = 0; times < 3; ++times) {
    this->harness_.reopen();
    ASSERT_EQ(this->store().records().size(), 6U);
    for (uint64_t number = 1; number <= 6; ++number) {
      const BodyRecordRef record = this->store().find(this->body(number).record.key);
      ASSERT_NE(record, nullptr);
      EXPECT_EQ(*record, this->body(number).record);
      EXPECT_TRUE(holds(this->store(), this->body(number)));
    }
  }
}

// Goal: a put that dies half-way is never served as data, not after a restart either.
TYPED_TEST_P(TornBodyStoreConformance, TornPutIsNeverFound) {
  ASSERT_TRUE(put_now(this->store(), this->body(1)).ok());
  this->harness_.tear_next_write(/*bytes=*/20'480);
  EXPECT_EQ(put_now(this->store(), this->body(2)).code(), ErrorCode::kIo);
  EXPECT_EQ(this->store().find(this->body(2).record.key), nullptr);
  EXPECT_TRUE(holds(this->store(), this->body(1)));
  ASSERT_TRUE(put_now(this->store(), this->body(3)).ok());
  ASSERT_TRUE(flush_now(this->store()).ok());

  for (int times = 0; times < 2; ++times) {
    this->harness_.reopen();
    EXPECT_EQ(this->store().find(this->body(2).record.key), nullptr);
    EXPECT_TRUE(holds(this->store(), this->body(1)));
    EXPECT_TRUE(holds(this->store(), this->body(3)));
  }
}

REGISTER_TYPED_TEST_SUITE_P(BodyStoreConformance,
                            BringsBackWhatWasPut,
                            ReadsAnyRangeOfChunks,
                            TakesBodiesOfManyShapes,
                            DoneRunsOnlyInDrainAndNothingIsFoundBefore,
                            UnknownKeyIsAMiss,
                            SecondPutOfAKeyIsRefusedAndChangesNothing,
                            PutInFlightCountsAsStored,
                            EraseForgetsAndTheKeyCanBePutAgain,
                            ReadsUnderWayOutliveAnErase,
                            ErasedPutEndsCancelled,
                            WrongSizesAreRefusedByName,
                            BodyLargerThanTheStoreCanEverHoldIsRefusedByName,
                            PutOfBytesThatDoNotMatchTheirSumsFails,
                            FlippedByteIsCorruptOnceThenAMiss,
                            FullIsAnOutcomeAndErasingMakesRoom,
                            ManyTransfersAtOnceAndABoundedNumber,
                            DoneMayCallTheStore);
REGISTER_TYPED_TEST_SUITE_P(DurableBodyStoreConformance, ReopenBringsBackWhatWasFlushed);
REGISTER_TYPED_TEST_SUITE_P(TornBodyStoreConformance, TornPutIsNeverFound);

}  // namespace skv
