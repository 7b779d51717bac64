#include "tiers/disk_engine.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

namespace skv {
namespace {

// A disk that a test answers by hand, in the order it likes.
class ScriptedDisk final : public Disk {
 public:
  std::string backend() const override { return "scripted"; }
  bool direct() const override { return true; }
  uint64_t bytes() const override { return 1u << 30; }
  Result<void> attach(uint32_t /*depth*/) override { return {}; }
  bool submit(DiskRequest& request) override {
    if (at_disk.size() >= places) {
      return false;
    }
    at_disk.push_back(&request);
    return true;
  }
  void wait(bool /*block*/, std::vector<DiskRequest*>& completed) override {
    completed.insert(completed.end(), answered.begin(), answered.end());
    answered.clear();
  }
  void wake() override {}
  Result<void> read_now(uint64_t, std::span<std::byte>) override { return {}; }
  Result<void> write_now(uint64_t, std::span<const std::byte>) override { return {}; }
  Result<void> sync_now() override { return {}; }

  // Answers the oldest request; data of a read is `fill`.
  void answer(int64_t result, std::byte fill = std::byte{0}) {
    DiskRequest* const request = at_disk.front();
    at_disk.pop_front();
    int64_t left = request->kind == DiskRequest::Kind::kRead ? result : 0;
    for (const iovec& part : request->buffers) {
      const auto take = std::min<int64_t>(left, static_cast<int64_t>(part.iov_len));
      if (take > 0) {
        std::memset(part.iov_base, static_cast<int>(fill), static_cast<size_t>(take));
        left -= take;
      }
    }
    request->result = result;
    answered.push_back(request);
  }
  static int64_t size_of(const DiskRequest& request) {
    int64_t bytes = 0;
    for (const iovec& part : request.buffers) {
      bytes += static_cast<int64_t>(part.iov_len);
    }
    return bytes;
  }

  size_t places = SIZE_MAX;
  std::deque<DiskRequest*> at_disk;
  std::vector<DiskRequest*> answered;
};

class DiskEngineTest : public testing::Test {
 protected:
  std::unique_ptr<DiskJob> job(DiskJob::Kind kind, uint64_t offset, uint64_t bytes) {
    auto made = std::make_unique<DiskJob>();
    made->kind = kind;
    made->offset = offset;
    made->own = AlignedBuffer(bytes);
    made->pieces = {made->own.span()};
    return made;
  }
  void step() { engine_.step(/*block=*/false, finished_); }

  ScriptedDisk disk_;
  DiskEngine engine_{disk_, {.requests = 16, .bytes = 8u << 20}};
  std::vector<std::unique_ptr<DiskJob>> finished_;
};

TEST_F(DiskEngineTest, LongTransferIsCutIntoRequestsOfOneMebibyte) {
  engine_.add(job(DiskJob::Kind::kWrite, 4096, (5u << 19) + 4096));
  step();
  ASSERT_EQ(disk_.at_disk.size(), 3U);
  EXPECT_EQ(disk_.at_disk[0]->offset, 4096U);
  EXPECT_EQ(disk_.at_disk[1]->offset, 4096U + (1u << 20));
  EXPECT_EQ(ScriptedDisk::size_of(*disk_.at_disk[2]), (1 << 19) + 4096);
  while (!disk_.at_disk.empty()) {
    disk_.answer(ScriptedDisk::size_of(*disk_.at_disk.front()));
  }
  step();
  ASSERT_EQ(finished_.size(), 1U);
  EXPECT_TRUE(finished_[0]->result.ok());
  EXPECT_EQ(finished_[0]->bytes_done, (5u << 19) + 4096);
}

TEST_F(DiskEngineTest, ShortZeroAndInterruptedCompletionsAreSubmittedAgainFromThere) {
  engine_.add(job(DiskJob::Kind::kRead, 0, 16384));
  step();
  disk_.answer(5000);  // a whole 4 KiB of it counts
  step();
  EXPECT_EQ(disk_.at_disk.front()->offset, 4096U);
  disk_.answer(0);
  step();
  disk_.answer(-EINTR);
  step();
  disk_.answer(-EAGAIN);
  step();
  EXPECT_EQ(ScriptedDisk::size_of(*disk_.at_disk.front()), 12288);
  disk_.answer(12288);
  step();
  ASSERT_EQ(finished_.size(), 1U);
  EXPECT_TRUE(finished_[0]->result.ok());
}

TEST_F(DiskEngineTest, RequestWithoutProgressEndsAsAnError) {
  engine_.add(job(DiskJob::Kind::kWrite, 0, 4096));
  step();
  int answers = 0;
  for (; finished_.empty() && answers < 100; ++answers) {
    disk_.answer(0);
    step();
  }
  ASSERT_EQ(finished_.size(), 1U);
  EXPECT_EQ(answers, 8);
  EXPECT_EQ(finished_[0]->result.error().code, ErrorCode::kIo);
}

TEST_F(DiskEngineTest, FailedReadIsTriedOnceMoreAFailedWriteIsNot) {
  engine_.add(job(DiskJob::Kind::kRead, 0, 4096));
  step();
  disk_.answer(-EIO);
  step();
  step();
  ASSERT_EQ(disk_.at_disk.size(), 1U);
  disk_.answer(4096);
  step();
  ASSERT_EQ(finished_.size(), 1U);
  EXPECT_TRUE(finished_[0]->result.ok());
  EXPECT_EQ(finished_[0]->io_errors, 1U);

  finished_.clear();
  engine_.add(job(DiskJob::Kind::kWrite, 8192, 4096));
  step();
  disk_.answer(-EIO);
  step();
  ASSERT_EQ(finished_.size(), 1U);
  EXPECT_EQ(finished_[0]->result.error().code, ErrorCode::kIo);
  EXPECT_NE(finished_[0]->result.error().message.find("write at 8192"), std::string::npos);
}

// A sync that failed and then succeeds would say that lost data is safe.
TEST_F(DiskEngineTest, FailedSyncIsNeverRepeated) {
  auto sync = std::make_unique<DiskJob>();
  sync->kind = DiskJob::Kind::kSync;
  engine_.add(std::move(sync));
  step();
  disk_.answer(-EIO);
  step();
  ASSERT_EQ(finished_.size(), 1U);
  EXPECT_TRUE(disk_.at_disk.empty());
  EXPECT_FALSE(finished_[0]->result.ok());
}

TEST_F(DiskEngineTest, FailedJobWaitsForItsOtherRequestsBeforeItsMemoryIsGivenBack) {
  engine_.add(job(DiskJob::Kind::kWrite, 0, 3u << 20));
  step();
  ASSERT_EQ(disk_.at_disk.size(), 3U);
  disk_.answer(-EIO);
  step();
  EXPECT_TRUE(finished_.empty());
  disk_.answer(1 << 20);
  step();
  EXPECT_TRUE(finished_.empty());
  disk_.answer(1 << 20);
  step();
  ASSERT_EQ(finished_.size(), 1U);
  EXPECT_FALSE(finished_[0]->result.ok());
  EXPECT_TRUE(engine_.idle());
}

TEST_F(DiskEngineTest, WrongBytesAreReadAgainThenCorruptAndZeroed) {
  const std::vector<std::byte> want(4096, std::byte{7});
  for (const bool second_is_good : {true, false}) {
    auto read = job(DiskJob::Kind::kRead, 0, 4096);
    read->checks.push_back({read->own.span(), checksum(want)});
    engine_.add(std::move(read));
    step();
    disk_.answer(4096, std::byte{6});
    step();
    EXPECT_TRUE(finished_.empty());
    step();
    disk_.answer(4096, second_is_good ? std::byte{7} : std::byte{6});
    step();
    ASSERT_EQ(finished_.size(), 1U);
    EXPECT_EQ(finished_[0]->result.ok(), second_is_good);
    EXPECT_EQ(finished_[0]->own.data()[17], second_is_good ? std::byte{7} : std::byte{0});
    finished_.clear();
  }
}

TEST_F(DiskEngineTest, WriteOfWrongMemoryNeverReachesTheDisk) {
  auto write = job(DiskJob::Kind::kWrite, 0, 4096);
  write->checks.push_back({write->own.span(), ChunkSum{1, 2}});
  engine_.add(std::move(write));
  step();
  ASSERT_EQ(finished_.size(), 1U);
  EXPECT_EQ(finished_[0]->result.error().code, ErrorCode::kCorrupt);
  EXPECT_TRUE(disk_.at_disk.empty());
}

// Goal: a demand read is never behind a queue of writes, and reads that nobody waits for go ahead
// of writes.
TEST_F(DiskEngineTest, DemandReadsGoAheadAndAlwaysFindAPlace) {
  engine_.add(job(DiskJob::Kind::kWrite, 0, 20u << 20));
  step();
  EXPECT_EQ(disk_.at_disk.size(), 6U);  // three quarters of 8 MiB
  auto ahead = job(DiskJob::Kind::kRead, 64u << 20, 4096);
  auto urgent = job(DiskJob::Kind::kRead, 96u << 20, 9u << 20);
  urgent->urgent = true;
  engine_.add(std::move(ahead));
  engine_.add(std::move(urgent));
  step();
  ASSERT_EQ(disk_.at_disk.size(), 14U) << "8 MiB of the demand read";
  for (size_t i = 6; i < disk_.at_disk.size(); ++i) {
    EXPECT_GE(disk_.at_disk[i]->offset, 96u << 20);
  }
  for (int i = 0; i < 6; ++i) {  // the writes: while somebody waits, no others follow
    disk_.answer(1 << 20);
  }
  step();
  step();
  ASSERT_EQ(disk_.at_disk.size(), 10U);
  EXPECT_EQ(disk_.at_disk[8]->offset, 64u << 20) << "the read that nobody waits for";
  EXPECT_EQ(disk_.at_disk[9]->kind, DiskRequest::Kind::kWrite) << "one, an eighth of the bytes";
}

TEST_F(DiskEngineTest, WithoutDemandWritesHaveThreeQuartersAndHalfBesideReadAhead) {
  engine_.add(job(DiskJob::Kind::kRead, 64u << 20, 2u << 20));
  engine_.add(job(DiskJob::Kind::kWrite, 0, 20u << 20));
  step();
  ASSERT_EQ(disk_.at_disk.size(), 4U);
  EXPECT_EQ(disk_.at_disk[1]->kind, DiskRequest::Kind::kRead);
  EXPECT_EQ(disk_.at_disk[2]->kind, DiskRequest::Kind::kWrite);
}

// Goal: what lies side by side goes in one request, and one bad place costs one job.
TEST_F(DiskEngineTest, NeighboursAreJoinedAndTriedAloneWhenTheRequestFails) {
  const std::vector<std::byte> want(8192, std::byte{7});
  for (const uint64_t offset : {0, 16384, 8192, 40960}) {  // three neighbours, one elsewhere
    auto read = job(DiskJob::Kind::kRead, offset, 8192);
    read->checks.push_back({read->own.span(), checksum(want)});
    engine_.add(std::move(read));
  }
  step();
  ASSERT_EQ(disk_.at_disk.size(), 2U);
  EXPECT_EQ(ScriptedDisk::size_of(*disk_.at_disk[0]), 24576);
  disk_.answer(-EIO);
  disk_.answer(8192, std::byte{7});
  step();
  step();
  ASSERT_EQ(disk_.at_disk.size(), 3U);
  EXPECT_EQ(disk_.at_disk[1]->offset, 8192U);
  disk_.answer(8192, std::byte{7});
  disk_.answer(-EIO);
  disk_.answer(8192, std::byte{7});
  step();
  ASSERT_EQ(finished_.size(), 4U);
  for (const std::unique_ptr<DiskJob>& ended : finished_) {
    EXPECT_EQ(ended->result.ok(), ended->offset != 8192) << ended->offset;
  }
  EXPECT_TRUE(engine_.idle());
}

TEST_F(DiskEngineTest, ShortJoinedRequestGoesOnInsideTheJobWhereItEnded) {
  for (const uint64_t offset : {0, 8192, 16384}) {
    engine_.add(job(DiskJob::Kind::kWrite, offset, 8192));
  }
  step();
  ASSERT_EQ(disk_.at_disk.size(), 1U);
  disk_.answer(12288 + 100);
  step();
  EXPECT_EQ(finished_.size(), 1U);
  ASSERT_EQ(disk_.at_disk.size(), 1U);
  EXPECT_EQ(disk_.at_disk[0]->offset, 12288U);
  EXPECT_EQ(ScriptedDisk::size_of(*disk_.at_disk[0]), 12288);
  disk_.answer(12288);
  step();
  ASSERT_EQ(finished_.size(), 3U);
  for (const std::unique_ptr<DiskJob>& ended : finished_) {
    EXPECT_TRUE(ended->result.ok());
    EXPECT_EQ(ended->bytes_done, 8192U);
  }
}

TEST_F(DiskEngineTest, RequestsThatTheDiskHasNoPlaceForAreGivenAgain) {
  disk_.places = 1;
  engine_.add(job(DiskJob::Kind::kWrite, 0, 3u << 20));
  for (uint64_t round = 0; round < 3; ++round) {
    step();
    ASSERT_EQ(disk_.at_disk.size(), 1U);
    EXPECT_EQ(disk_.at_disk[0]->offset, round << 20);
    EXPECT_TRUE(finished_.empty());
    disk_.answer(1 << 20);
  }
  step();
  ASSERT_EQ(finished_.size(), 1U);
  EXPECT_TRUE(finished_[0]->result.ok());
}

TEST_F(DiskEngineTest, ManySmallPiecesAreGatheredIntoOneRequest) {
  std::vector<AlignedBuffer> memory;
  auto write = std::make_unique<DiskJob>();
  write->kind = DiskJob::Kind::kWrite;
  for (int i = 0; i < 300; ++i) {
    memory.emplace_back(4096);
    write->pieces.push_back(memory.back().span());
  }
  engine_.add(std::move(write));
  step();
  ASSERT_EQ(disk_.at_disk.size(), 2U);
  EXPECT_EQ(disk_.at_disk[0]->buffers.size(), 256U);
  EXPECT_EQ(disk_.at_disk[1]->buffers.size(), 44U);
  EXPECT_EQ(disk_.at_disk[1]->buffers[0].iov_base, memory[256].data());
}

}  // namespace
}  // namespace skv
