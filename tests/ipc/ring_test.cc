#include "ipc/ring.h"

#include <gtest/gtest.h>
#include <poll.h>

#include <memory>
#include <thread>
#include <vector>

#include "ipc/doorbell.h"

namespace skv {
namespace {

struct Item {
  uint64_t number;
  uint64_t check;  // ~number, in every word that follows
  uint64_t more[6];
};

Item item(uint64_t number) {
  Item made{number, ~number, {}};
  for (uint64_t& word : made.more) word = ~number;
  return made;
}

bool whole(const Item& item) {
  bool same = item.check == ~item.number;
  for (const uint64_t word : item.more) same = same && word == ~item.number;
  return same;
}

struct Memory {
  explicit Memory(uint32_t count, uint32_t start = 0)
      : tail(start), head(start), entries(count * sizeof(Item) / sizeof(uint64_t)), size(count) {}
  RingMemory<Item> view() {
    return {&tail, &head, reinterpret_cast<std::byte*>(entries.data()), size};
  }
  std::atomic<uint32_t> tail;
  std::atomic<uint32_t> head;
  std::atomic<uint32_t> producer_sleeps{0};
  std::atomic<uint32_t> consumer_sleeps{0};
  std::vector<uint64_t> entries;
  uint32_t size;
};

TEST(Ring, GivesBackInOrderAndSaysWhenFull) {
  Memory memory(4);
  RingProducer<Item> producer(memory.view());
  RingConsumer<Item> consumer(memory.view());
  EXPECT_FALSE(consumer.pop().value().has_value());
  uint64_t in = 0;
  uint64_t out = 0;
  for (int round = 0; round < 10; ++round) {
    while (producer.push(item(in)).value()) ++in;
    EXPECT_EQ(in - out, 4U);
    EXPECT_EQ(producer.room().value(), 0U);
    for (int i = 0; i < 3; ++i) {
      const std::optional<Item> got = consumer.pop().value();
      ASSERT_TRUE(got.has_value());
      EXPECT_EQ(got->number, out++);
      EXPECT_TRUE(whole(*got));
    }
  }
}

// Goal: the geometry and this side's own index are never read back from the memory.
// Method: overwrite every word that this side has published; the next operations do not notice.
TEST(Ring, OwnIndexInSharedMemoryIsNotRead) {
  Memory memory(4);
  RingProducer<Item> producer(memory.view());
  RingConsumer<Item> consumer(memory.view());
  ASSERT_TRUE(producer.push(item(1)).value());
  ASSERT_TRUE(consumer.pop().value().has_value());
  memory.tail = 77;  // what the producer published
  ASSERT_TRUE(producer.push(item(2)).value());
  EXPECT_EQ(memory.tail, 2U);
  memory.head = 1;
  EXPECT_EQ(consumer.pop().value()->number, 2U);
  EXPECT_EQ(memory.head, 2U);
}

TEST(Ring, LyingProducerIsAProtocolError) {
  for (const uint32_t lie : {5U, 6U, 1000U, 0x80000000U, 0xFFFFFFFFU}) {
    Memory memory(4);
    RingConsumer<Item> consumer(memory.view());
    memory.tail = lie;
    const auto got = consumer.pop();
    ASSERT_FALSE(got.ok()) << lie;
    EXPECT_EQ(got.error().code, ErrorCode::kProtocol);
    EXPECT_FALSE(consumer.available().ok());
    EXPECT_EQ(memory.head, 0U) << "nothing was taken";
  }
}

TEST(Ring, ProducerThatGoesBackIsAProtocolError) {
  Memory memory(4);
  RingProducer<Item> producer(memory.view());
  RingConsumer<Item> consumer(memory.view());
  ASSERT_TRUE(producer.push(item(0)).value());
  ASSERT_TRUE(producer.push(item(1)).value());
  ASSERT_TRUE(consumer.pop().ok());
  ASSERT_TRUE(consumer.pop().ok());
  memory.tail = 1;
  EXPECT_EQ(consumer.pop().error().code, ErrorCode::kProtocol);
}

TEST(Ring, LyingConsumerIsAProtocolError) {
  Memory memory(4);
  RingProducer<Item> producer(memory.view());
  for (uint64_t i = 0; i < 4; ++i) ASSERT_TRUE(producer.push(item(i)).value());
  memory.head = 9;  // more than was made
  EXPECT_EQ(producer.push(item(4)).error().code, ErrorCode::kProtocol);
  memory.head = 0xFFFFFFFFU;  // before the first
  EXPECT_EQ(producer.push(item(4)).error().code, ErrorCode::kProtocol);
}

// Goal: no lost and no torn entry, no lost wake-up, with both sides on real threads.
// Method: a small ring, so that both fill and empty it all the time, and both sleep by the
// doorbell protocol with no timeout: a lost wake-up hangs (ctest's timeout).
TEST(Ring, TwoThreadsWithDoorbells) {
  constexpr uint64_t kItems = 20000;
  Memory memory(8);
  UniqueFd consumer_bell = create_event_doorbell().value();
  PipeDoorbell producer_bell = create_pipe_doorbell().value();

  const auto sleep_on = [](int fd) {
    pollfd watched{fd, POLLIN, 0};
    ::poll(&watched, 1, -1);
    drain_doorbell(fd);
  };
  std::thread maker([&] {
    RingProducer<Item> producer(memory.view());
    for (uint64_t next = 0; next < kItems;) {
      if (producer.push(item(next)).value()) {
        ++next;
        ring_if_asleep(memory.consumer_sleeps, consumer_bell.get());
        continue;
      }
      announce_sleep(memory.producer_sleeps);
      if (producer.room().value() == 0) sleep_on(producer_bell.sleeper_end.get());
      announce_awake(memory.producer_sleeps);
    }
  });

  RingConsumer<Item> consumer(memory.view());
  uint64_t expected = 0;
  bool all_whole = true;
  while (expected < kItems) {
    const std::optional<Item> got = consumer.pop().value();
    if (got) {
      all_whole = all_whole && whole(*got) && got->number == expected;
      ++expected;
      ring_if_asleep(memory.producer_sleeps, producer_bell.ringer_end.get());
      continue;
    }
    announce_sleep(memory.consumer_sleeps);
    if (consumer.available().value() == 0) sleep_on(consumer_bell.get());
    announce_awake(memory.consumer_sleeps);
  }
  maker.join();
  EXPECT_TRUE(all_whole);
}

}  // namespace
}  // namespace skv
