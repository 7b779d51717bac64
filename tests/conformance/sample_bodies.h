#pragma once

#include <gtest/gtest.h>
#include <poll.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "tiers/aligned_buffer.h"
#include "tiers/body_store.h"

namespace skv {

inline Digest test_digest(uint64_t number, uint8_t kind) {
  Digest digest;
  digest.bytes[0] = kind;
  std::memcpy(digest.bytes.data() + 8, &number, sizeof number);
  const ChunkSum mixed = checksum(std::as_bytes(std::span(digest.bytes)));
  std::memcpy(digest.bytes.data() + 16, &mixed, sizeof mixed);
  return digest;
}

// A body with bytes that only its number (and `variant`) gives, in memory as a store wants it.
struct SampleBody {
  BodyRecord record;
  VectorsBlob vectors;
  std::vector<AlignedBuffer> chunks;

  static SampleBody make(uint64_t number,
                         const std::vector<uint64_t>& chunk_bytes,
                         uint64_t vectors_bytes = 1000,
                         uint64_t variant = 0) {
    SampleBody body;
    std::mt19937_64 random(number * 7919 + variant);
    const auto fill = [&random](std::byte* at, uint64_t bytes) {
      for (uint64_t i = 0; i < bytes; i += 8) {
        const uint64_t word = random();
        std::memcpy(at + i, &word, std::min<uint64_t>(8, bytes - i));
      }
    };
    BodyRecord& record = body.record;
    record.key = test_digest(number, 1);
    record.space_uid = 1000;
    record.fingerprint = test_digest(1, 2);
    record.parent_boundary = test_digest(number, 3);
    record.end_boundary = test_digest(number, 4);
    record.end_digest = test_digest(number, 5);
    record.first_position = static_cast<uint32_t>(number * 32);
    record.token_count = 32;
    record.vectors_bytes = static_cast<uint32_t>(vectors_bytes);
    for (const uint64_t bytes : chunk_bytes) {
      body.chunks.emplace_back(bytes);
      fill(body.chunks.back().data(), bytes);
      record.chunk_bytes.push_back(bytes);
      record.chunk_sums.push_back(checksum(body.chunks.back().span().first(bytes)));
    }
    if (vectors_bytes > 0) {
      auto blob = std::make_shared<std::vector<std::byte>>(vectors_bytes);
      fill(blob->data(), vectors_bytes);
      record.vectors_sum = checksum(*blob);
      body.vectors = std::move(blob);
    } else {
      record.vectors_sum = checksum({});
    }
    return body;
  }

  BodyPut put(BodyDone done) const {
    BodyPut put;
    put.record = record;
    put.record.vectors_sum = {};  // the store's to fill
    put.vectors = vectors;
    for (const AlignedBuffer& chunk : chunks) {
      put.chunks.emplace_back(chunk.data(), chunk.size());
    }
    put.done = std::move(done);
    return put;
  }

  bool chunk_equals(uint32_t chunk, std::span<const std::byte> bytes) const {
    return std::memcmp(chunks[chunk].data(), bytes.data(), record.chunk_bytes[chunk]) == 0;
  }
};

// Drains until `ended`. A real store gets ten seconds, an inline one as many polls as it likes.
template <typename Ended>
void drain_until(BodyStore& store, Ended ended) {
  for (int turn = 0; turn < 20'000 && !ended(); ++turn) {
    pollfd wake{.fd = store.wake_fd(), .events = POLLIN, .revents = 0};
    ASSERT_GE(poll(&wake, 1, 10'000), 0);
    ASSERT_NE(wake.revents & POLLIN, 0) << "nothing to drain, and not ended";
    store.drain();
  }
  ASSERT_TRUE(ended());
}

struct PutAnswer {
  StoreOutcome outcome = StoreOutcome::kAccepted;
  Result<void> result;  // if accepted
  bool ok() const { return outcome == StoreOutcome::kAccepted && result.ok(); }
  ErrorCode code() const { return result.ok() ? ErrorCode::kOk : result.error().code; }
};

inline PutAnswer put_now(BodyStore& store, const SampleBody& body) {
  PutAnswer answer;
  bool ended = false;
  BodyPut put = body.put([&](Result<void> result) {
    answer.result = std::move(result);
    ended = true;
  });
  const Result<StoreOutcome> outcome = store.put(put);
  EXPECT_TRUE(outcome.ok()) << outcome.error().message;
  answer.outcome = outcome.ok() ? outcome.value() : StoreOutcome::kFull;
  if (answer.outcome == StoreOutcome::kAccepted) {
    drain_until(store, [&] { return ended; });
  }
  return answer;
}

struct ReadAnswer {
  BodyReadOutcome outcome = BodyReadOutcome::kAccepted;
  Result<void> result;
  std::vector<AlignedBuffer> chunks;
  bool ok() const { return outcome == BodyReadOutcome::kAccepted && result.ok(); }
  ErrorCode code() const { return result.ok() ? ErrorCode::kOk : result.error().code; }
};

inline ReadAnswer read_now(BodyStore& store,
                           const SampleBody& body,
                           uint32_t first,
                           uint32_t count) {
  ReadAnswer answer;
  BodyRead read;
  read.key = body.record.key;
  read.first_chunk = first;
  for (uint32_t i = 0; i < count; ++i) {
    answer.chunks.emplace_back(body.record.chunk_bytes[first + i]);
    std::memset(answer.chunks.back().data(), 0xEE, answer.chunks.back().size());
    read.chunks.push_back(answer.chunks.back().span());
  }
  bool ended = false;
  read.done = [&](Result<void> result) {
    answer.result = std::move(result);
    ended = true;
  };
  const Result<BodyReadOutcome> outcome = store.read(read);
  EXPECT_TRUE(outcome.ok()) << outcome.error().message;
  answer.outcome = outcome.ok() ? outcome.value() : BodyReadOutcome::kUnknown;
  if (answer.outcome == BodyReadOutcome::kAccepted) {
    drain_until(store, [&] { return ended; });
  }
  return answer;
}

// All chunks and the vectors come back as they were put.
inline testing::AssertionResult holds(BodyStore& store, const SampleBody& body) {
  const auto count = static_cast<uint32_t>(body.chunks.size());
  const ReadAnswer read = read_now(store, body, 0, count);
  if (!read.ok()) {
    return testing::AssertionFailure() << "read: outcome " << static_cast<int>(read.outcome) << " "
                                       << (read.result.ok() ? "" : read.result.error().message);
  }
  for (uint32_t i = 0; i < count; ++i) {
    if (!body.chunk_equals(i, read.chunks[i].span())) {
      return testing::AssertionFailure() << "chunk " << i << " has other bytes";
    }
  }
  std::optional<Result<VectorsBlob>> vectors;
  if (store.read_vectors(body.record.key, [&](Result<VectorsBlob> blob) {
        vectors = std::move(blob);
      }) != BodyReadOutcome::kAccepted) {
    return testing::AssertionFailure() << "vectors are not known";
  }
  drain_until(store, [&] { return vectors.has_value(); });
  if (!vectors->ok()) {
    return testing::AssertionFailure() << "vectors: " << vectors->error().message;
  }
  const std::vector<std::byte> none;
  if (*vectors->value() != (body.vectors ? *body.vectors : none)) {
    return testing::AssertionFailure() << "vectors have other bytes";
  }
  return testing::AssertionSuccess();
}

inline Result<void> flush_now(BodyStore& store) {
  std::optional<Result<void>> flushed;
  store.flush([&](Result<void> result) { flushed = std::move(result); });
  drain_until(store, [&] { return flushed.has_value(); });
  return flushed ? *flushed : Result<void>(Error{ErrorCode::kTimeout, "flush"});
}

}  // namespace skv
