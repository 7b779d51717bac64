#include "ipc/messages.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <cstdlib>
#include <new>
#include <random>
#include <set>

#include "ipc/codec.h"
#include "tests/ipc/all_messages.h"

// The largest single allocation of this thread since it was last reset: what a decoder of hostile
// bytes asks for must be bounded by the bytes that it was given.
namespace {
thread_local size_t largest_allocation = 0;
}
void* operator new(size_t bytes) {
  largest_allocation = std::max(largest_allocation, bytes);
  void* memory = std::malloc(bytes > 0 ? bytes : 1);
  if (memory == nullptr) std::abort();
  return memory;
}
// gcc sees the free and not that the new above is ours too.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
#pragma GCC diagnostic pop

namespace skv {
namespace {

// Fills any message by its own list of fields.
class Filler {
 public:
  Filler(uint64_t seed, uint32_t items_max) : random_(seed), items_max_(items_max) {}

  template <typename... Fields>
  void operator()(const char*, Fields&... fields) {
    (fill(fields), ...);
  }
  template <WireScalar T>
  void fill(T& value) {
    // Extremes as often as anything else.
    const uint64_t choice = random_() % 4;
    value = static_cast<T>(choice == 0 ? 0 : choice == 1 ? ~uint64_t{0} : random_());
  }
  void fill(Digest& digest) { fill(digest.bytes); }
  template <size_t kCount>
  void fill(std::array<uint8_t, kCount>& bytes) {
    for (uint8_t& byte : bytes) fill(byte);
  }
  void fill(std::string& text) {
    text.resize(random_() % (items_max_ + 1));
    for (char& letter : text) letter = static_cast<char>(random_());
  }
  template <typename T>
  void fill(std::vector<T>& items) {
    items.resize(random_() % (items_max_ + 1));
    for (T& item : items) fill(item);
  }
  template <typename T>
  requires requires(T& value, Filler& filler) { value.fields(filler); }
  void fill(T& value) { value.fields(*this); }

 private:
  std::mt19937_64 random_;
  uint32_t items_max_;
};

template <typename Message>
Message filled(uint64_t seed, uint32_t items_max) {
  Message message{};
  Filler(seed, items_max).fill(message);
  return message;
}

// Bytes either are refused as a protocol error that says something, or are the one encoding of what
// they decode to; and the decoder never allocates much more than they are long.
template <typename Message>
bool refused_or_exact(std::span<const uint8_t> bytes) {
  largest_allocation = 0;
  const Result<Message> decoded = decode_body<Message>(bytes);
  const size_t largest = largest_allocation;
  if (largest > std::max<size_t>(4096, 2 * bytes.size())) return false;
  if (!decoded.ok()) {
    return decoded.error().code == ErrorCode::kProtocol && !decoded.error().message.empty();
  }
  const std::vector<uint8_t> again = encode_body(decoded.value());
  return std::equal(again.begin(), again.end(), bytes.begin(), bytes.end());
}

TEST(Messages, EveryVerbIsOnTheList) {
  std::set<uint16_t> listed;
  for_each_verb([&]<typename Request, typename Reply>(Verb verb, const char*) {
    EXPECT_TRUE(listed.insert(static_cast<uint16_t>(verb)).second);
  });
  for (uint16_t verb = 1; verb <= static_cast<uint16_t>(Verb::kLeaseMapClose); ++verb) {
    EXPECT_EQ(listed.count(verb), 1U) << verb;
  }
  EXPECT_EQ(listed.size(), static_cast<size_t>(Verb::kLeaseMapClose) + 2);
}

TEST(Messages, RoundTrip) {
  for_each_message([]<typename Message>(const std::string& name) {
    EXPECT_TRUE(rc::check(name, [](uint64_t seed) {
      const std::vector<uint8_t> bytes = encode_body(filled<Message>(seed, /*items_max=*/40));
      const Result<Message> decoded = decode_body<Message>(bytes);
      RC_ASSERT(decoded.ok());
      RC_ASSERT(encode_body(decoded.value()) == bytes);
    }));
  });
}

// Goal: a message that lost its end is never taken for a shorter one.
TEST(Messages, EveryTruncationIsRefused) {
  for_each_message([]<typename Message>(const std::string& name) {
    for (uint64_t seed = 0; seed < 8; ++seed) {
      const std::vector<uint8_t> bytes = encode_body(filled<Message>(seed, 5));
      for (size_t length = 0; length < bytes.size(); ++length) {
        const std::span<const uint8_t> cut(bytes.data(), length);
        EXPECT_FALSE(decode_body<Message>(cut).ok()) << name << " cut to " << length;
        EXPECT_TRUE(refused_or_exact<Message>(cut)) << name << " cut to " << length;
      }
    }
  });
}

TEST(Messages, BytesAfterTheEndAreRefused) {
  for_each_message([]<typename Message>(const std::string& name) {
    std::vector<uint8_t> bytes = encode_body(filled<Message>(1, 5));
    bytes.push_back(0);
    const Result<Message> decoded = decode_body<Message>(bytes);
    ASSERT_FALSE(decoded.ok()) << name;
    EXPECT_EQ(decoded.error().message, "1 bytes follow after the last field");
  });
}

TEST(Messages, EveryFlippedByteIsRefusedOrExact) {
  for_each_message([]<typename Message>(const std::string& name) {
    for (uint64_t seed = 0; seed < 4; ++seed) {
      std::vector<uint8_t> bytes = encode_body(filled<Message>(seed, 5));
      for (size_t at = 0; at < bytes.size(); ++at) {
        const uint8_t right = bytes[at];
        for (int wrong = 0; wrong < 256; wrong += (at % 7 == 0 ? 1 : 15)) {
          bytes[at] = static_cast<uint8_t>(wrong);
          EXPECT_TRUE(refused_or_exact<Message>(bytes)) << name << " byte " << at << " " << wrong;
        }
        bytes[at] = right;
      }
    }
  });
}

TEST(Messages, RandomBytesAreRefusedOrExact) {
  for_each_message([]<typename Message>(const std::string& name) {
    EXPECT_TRUE(rc::check(name, [](const std::vector<uint8_t>& bytes) {
      RC_ASSERT(refused_or_exact<Message>(bytes));
    }));
  });
}

TEST(Codec, ErrorNamesFieldAndLimit) {
  Hello hello;
  hello.client_name = "engine";
  std::vector<uint8_t> body = encode_body(hello);
  body[12] = 0xFF;  // the count of client_name, after two u16 and one u64
  body[13] = 0xFF;
  const Result<Hello> decoded = decode_body<Hello>(body);
  ASSERT_FALSE(decoded.ok());
  EXPECT_EQ(decoded.error().code, ErrorCode::kProtocol);
  EXPECT_EQ(decoded.error().message, "field 3 (client_name): count 65535 is above 32768");

  const Result<MemoryRegister> short_one = decode_body<MemoryRegister>(std::vector<uint8_t>(7));
  EXPECT_EQ(short_one.error().message, "field 0 (bytes): needs 8 bytes, 7 are left");

  std::vector<uint8_t> append = encode_body(ContextAppend{});
  append[44] = 1;  // one token is announced, and 4 bytes are left: the count of `ends`
  append[45] = 1;  // 257
  EXPECT_EQ(decode_body<ContextAppend>(append).error().message,
            "field 4 (tokens): count 257 of 4-byte items does not fit the 4 bytes left");

  std::vector<uint8_t> nested = encode_body(PutWrite{});
  nested.resize(nested.size() - 1);  // inside source.first_token
  EXPECT_EQ(decode_body<PutWrite>(nested).error().message,
            "field 5 (source): field 6 (first_token): needs 4 bytes, 3 are left");
}

TEST(Codec, ABoolIsZeroOrOne) {
  std::vector<uint8_t> byte{2};
  WireReader reader(byte);
  bool value = false;
  reader.get(value);
  EXPECT_EQ(reader.finish().error().message, "a bool is 2, not 0 or 1");
}

std::vector<uint8_t> changed(std::vector<uint8_t> frame, size_t at, uint8_t to) {
  frame.at(at) = to;
  return frame;
}

TEST(Codec, HeaderIsCheckedWordByWord) {
  const std::vector<uint8_t> good =
      encode_request(Verb::kRelease, Ticket{5}, Release{.lease = 9}, /*fd_count=*/0);
  const Result<FrameHeader> header = decode_header(good);
  ASSERT_TRUE(header.ok());
  EXPECT_EQ(header.value().ticket, 5U);
  EXPECT_EQ(header.value().body_bytes, 8U);

  const auto message = [](const std::vector<uint8_t>& frame) {
    const Result<FrameHeader> refused = decode_header(frame);
    return refused.ok() ? std::string("taken") : refused.error().message;
  };
  EXPECT_EQ(message({}), "a frame of 0 bytes has no header (32)");
  EXPECT_EQ(message(std::vector<uint8_t>(good.begin(), good.begin() + 31)),
            "a frame of 31 bytes has no header (32)");
  EXPECT_EQ(message(changed(good, 0, 0)), "header field magic is wrong");
  EXPECT_EQ(message(changed(good, 4, 2)), "protocol version is 2, not 1");
  EXPECT_EQ(decode_header(changed(good, 4, 2)).error().code, ErrorCode::kUnsupported);
  EXPECT_EQ(message(changed(good, 16, 9)), "header field body_bytes is 9, not 8");
  EXPECT_EQ(message(changed(good, 20, 1)), "header field status is not 0 in a request");
  EXPECT_EQ(message(changed(good, 24, 2)), "header field is_reply is above 1");
  EXPECT_EQ(message(changed(good, 26, 5)), "header field fd_count is 5, above 4");
  EXPECT_EQ(message(changed(good, 28, 1)), "header field reserved is not 0");
}

TEST(Codec, RepliesCarryAMessageOrAnError) {
  FrameHeader request;
  request.verb = static_cast<uint16_t>(Verb::kMatch);
  request.ticket = 11;
  MatchReply match;
  match.hit_tokens = 64;
  const std::vector<uint8_t> reply = encode_reply(request, match);
  const FrameHeader header = decode_header(reply).value();
  EXPECT_EQ(header.ticket, 11U);
  EXPECT_EQ(header.is_reply, 1U);
  const std::span<const uint8_t> body = std::span(reply).subspan(sizeof(FrameHeader));
  EXPECT_EQ(decode_reply<MatchReply>(header, body).value().hit_tokens, 64U);

  const std::vector<uint8_t> refusal =
      encode_error_reply(request, Error{ErrorCode::kUnknownHandle, "context 7 is not open"});
  const FrameHeader refused = decode_header(refusal).value();
  const Result<MatchReply> error =
      decode_reply<MatchReply>(refused, std::span(refusal).subspan(sizeof(FrameHeader)));
  ASSERT_FALSE(error.ok());
  EXPECT_EQ(error.error().code, ErrorCode::kUnknownHandle);
  EXPECT_EQ(error.error().message, "context 7 is not open");
}

TEST(Codec, AReplyThatDoesNotFitBecomesAnError) {
  FrameHeader request;
  request.verb = static_cast<uint16_t>(Verb::kLoad);
  LoadReply large;
  large.extents.resize(8192);
  const std::vector<uint8_t> reply = encode_reply(request, large);
  ASSERT_LE(reply.size(), kMessageBytesMax);
  const FrameHeader header = decode_header(reply).value();
  EXPECT_EQ(header.status, static_cast<int32_t>(ErrorCode::kTooLarge));
}

TEST(Codec, LongErrorTextsAreCut) {
  const std::vector<uint8_t> reply =
      encode_error_reply(FrameHeader{}, Error{ErrorCode::kOk, std::string(1 << 20, 'x')});
  EXPECT_LE(reply.size(), 8192U);
  EXPECT_EQ(decode_header(reply).value().status, static_cast<int32_t>(ErrorCode::kInternal));
}

}  // namespace
}  // namespace skv
