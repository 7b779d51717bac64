#include "tiers/nvme_store.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "tests/tiers/nvme_fixture.h"
#include "tests/tiers/temporary_file.h"
#include "tiers/disk_file.h"
#include "tiers/nvme_log.h"
#include "tiers/nvme_meta.h"

namespace skv {
namespace {

SampleBody body(uint64_t number) { return SampleBody::make(number, {65'536, 40'000}, 2'000); }
SampleBody large(uint64_t number) { return SampleBody::make(number, {200'000}, 0); }

NvmeStore::Options small_options() {
  NvmeStore::Options options;
  options.file_bytes = 12u << 20;
  options.segment_bytes = 1u << 20;
  return options;
}

void expect_refused(const std::string& path,
                    const NvmeStore::Options& options,
                    ErrorCode code,
                    const std::string& says) {
  const auto opened = NvmeStore::open(path, options);
  ASSERT_FALSE(opened.ok());
  EXPECT_EQ(opened.error().code, code) << opened.error().message;
  EXPECT_NE(opened.error().message.find(says), std::string::npos) << opened.error().message;
}

TEST(NvmeStore, SecondOpenOfOneFileIsRefusedUntilTheFirstIsGone) {
  const TemporaryFile file;
  {
    const auto first = NvmeStore::open(file.path(), small_options());
    ASSERT_TRUE(first.ok()) << first.error().message;
    expect_refused(file.path(), small_options(), ErrorCode::kBusy, "in use by another daemon");
  }
  EXPECT_TRUE(NvmeStore::open(file.path(), small_options()).ok());
}

TEST(NvmeStore, OtherSizesAreRefusedWithWhatToDo) {
  const TemporaryFile file;
  ASSERT_TRUE(NvmeStore::open(file.path(), small_options()).ok());
  NvmeStore::Options options = small_options();
  options.file_bytes += 4u << 20;
  expect_refused(file.path(), options, ErrorCode::kStale, "set the old value, or remove the file");
  options = small_options();
  options.segment_bytes = 0;
  EXPECT_TRUE(NvmeStore::open(file.path(), options).ok()) << "0 takes what the store has";
  options.file_bytes = 20u << 20;
  options.segment_bytes = 2u << 20;
  expect_refused(file.path(), options, ErrorCode::kStale, "nvme.bytes");
  ASSERT_EQ(truncate(file.path().c_str(), 8 << 20), 0);
  expect_refused(file.path(), small_options(), ErrorCode::kCorrupt, "cut or replaced");
  ASSERT_EQ(truncate(file.path().c_str(), 4096), 0);
  expect_refused(file.path(), small_options(), ErrorCode::kInvalidArgument, "another path");
}

TEST(NvmeStore, SomebodyElsesFileIsNotTouched) {
  const TemporaryFile file;
  const std::string text(5u << 20, 'x');
  std::ofstream(file.path()) << text;
  expect_refused(file.path(), small_options(), ErrorCode::kInvalidArgument, "something else");
  std::ifstream in(file.path());
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(in), {}), text);
  expect_refused("/", small_options(), ErrorCode::kIo, "open");
}

TEST(NvmeStore, NewerFormatIsRefusedByItsVersion) {
  const TemporaryFile file;
  ASSERT_TRUE(NvmeStore::open(file.path(), small_options()).ok());
  const int fd = ::open(file.path().c_str(), O_RDWR | O_CLOEXEC);
  const uint32_t version = 3;
  for (uint32_t copy = 0; copy < 4; ++copy) {
    ASSERT_EQ(pwrite(fd, &version, sizeof version,
                     static_cast<off_t>(nvme::superblock_offset(copy) +
                                        offsetof(nvme::Prefix, format_version))),
              4);
  }
  ::close(fd);
  expect_refused(file.path(), small_options(), ErrorCode::kStale, "format version 3");
}

TEST(NvmeStore, GeometryArithmetic) {
  const auto segments = [](uint64_t file_bytes, uint64_t segment_bytes) {
    return NvmeMeta::plan({.file_bytes = file_bytes, .segment_bytes = segment_bytes});
  };
  constexpr uint64_t kMiB = 1u << 20;
  EXPECT_EQ(segments(12 * kMiB, kMiB).value().segment_count, 8U);
  EXPECT_EQ(segments(12 * kMiB + 4095, kMiB).value().file_bytes, 12 * kMiB);
  EXPECT_EQ(segments(13 * kMiB - 4096, kMiB).value().segment_count, 8U);
  EXPECT_EQ(segments(1028 * kMiB, 0).value().segment_bytes, 64 * kMiB);
  EXPECT_EQ(segments(1027 * kMiB, 0).value().segment_bytes, 32 * kMiB);
  EXPECT_EQ(segments(20 * kMiB, 0).value().segment_bytes, kMiB);
  EXPECT_EQ(segments(10 * kMiB, 0).value().segment_count, 6U);
  EXPECT_FALSE(segments(9 * kMiB, 0).ok());
  EXPECT_FALSE(segments(0, 0).ok());
  EXPECT_FALSE(segments(1u << 30, 3 * kMiB).ok());
  EXPECT_FALSE(segments(1u << 30, kMiB / 2).ok());
  EXPECT_FALSE(segments(1u << 30, kMiB * 2048).ok());
}

TEST(NvmeStore, FileIsPreallocatedToItsSizeAndNoMore) {
  const TemporaryFile file;
  auto store = std::move(NvmeStore::open(file.path(), small_options())).value();
  struct stat status {};
  ASSERT_EQ(stat(file.path().c_str(), &status), 0);
  EXPECT_EQ(status.st_size, 12 << 20);
  EXPECT_EQ(status.st_mode & 0777U, 0600U);
  const NvmeStore::Stats stats = store->stats();
  EXPECT_EQ(stats.segment_count, 8U);
  EXPECT_EQ(stats.capacity_bytes, 8 * ((1u << 20) - 8192));
  EXPECT_EQ(store->record_bytes_max(), (1u << 20) - 8192);
  EXPECT_EQ(NvmeStore::record_bytes({65'536, 40'000}, 2'000), 4096U + 4096 + 65'536 + 40'960);
}

TEST(NvmeStore, FileSystemWithoutRoomIsToldBeforeItIsFilled) {
  const TemporaryFile file;
  NvmeStore::Options options;
  options.file_bytes = uint64_t{1} << 53;
  expect_refused(file.path(), options, ErrorCode::kNoSpace, "the file system has");
}

// Goal: a system that refuses io_uring gets the thread pool, and the same store.
// Method: a seccomp filter in a child answers io_uring_setup with EPERM, as a container does.
TEST(NvmeStoreDeathTest, RefusedRingMeansThreadPool) {
  const TemporaryFile file;
  const auto child = [&file] {
    sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const sock_fprog program{.len = 4, .filter = filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
      return 2;
    }
    auto opened = NvmeStore::open(file.path(), small_options());
    if (!opened.ok() || opened.value()->stats().backend != "threads" ||
        !opened.value()->space_salt(1000).ok() || !put_now(*opened.value(), body(1)).ok() ||
        !holds(*opened.value(), body(1))) {
      return 3;
    }
    opened.value().reset();
    NvmeStore::Options options = small_options();
    options.backend = NvmeStore::Backend::kUring;
    return NvmeStore::open(file.path(), options).ok() ? 4 : 0;
  };
  EXPECT_EXIT(std::exit(child()), testing::ExitedWithCode(0), "");
  auto again = NvmeStore::open(file.path(), small_options());
  ASSERT_TRUE(again.ok());
  EXPECT_TRUE(holds(*again.value(), body(1)));
}

// A tmpfs may take O_DIRECT or refuse it; the store works either way and says which.
TEST(NvmeStore, WorksOnATmpfs) {
  const std::string path = "/dev/shm/skv-test-" + std::to_string(getpid());
  auto opened = NvmeStore::open(path, small_options());
  unlink(path.c_str());
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  NvmeStore& store = *opened.value();
  ASSERT_TRUE(store.space_salt(1000).ok());
  ASSERT_TRUE(put_now(store, body(1)).ok());
  EXPECT_TRUE(holds(store, body(1)));
}

TEST(NvmeStore, SaltsAndModelsLastAndDiffer) {
  NvmeOnSimulatedDisk nvme_disk;
  nvme_disk.open();
  const Digest first = nvme_disk.store().space_salt(1).value();
  const Digest second = nvme_disk.store().space_salt(2).value();
  EXPECT_NE(first, second);
  EXPECT_NE(first, Digest{});
  const std::vector<uint8_t> model(1001, 7);
  ASSERT_TRUE(nvme_disk.store().remember_model(test_digest(1, 9), model).ok());
  ASSERT_TRUE(nvme_disk.store().remember_model(test_digest(1, 9), model).ok());
  nvme_disk.cut_power(1);  // durable before it was returned
  nvme_disk.open();
  EXPECT_EQ(nvme_disk.store().space_salt(1).value(), first);
  EXPECT_EQ(nvme_disk.store().space_salt(2).value(), second);
  ASSERT_EQ(nvme_disk.store().models().size(), 1U);
  EXPECT_EQ(nvme_disk.store().models()[0], model);
}

TEST(NvmeStore, FullTableOfSpacesIsRefusedAndKeepsWhatItHas) {
  NvmeOnSimulatedDisk nvme_disk;
  nvme_disk.open();
  const Digest salt = nvme_disk.store().space_salt(5).value();
  const Result<void> refused = nvme_disk.store().remember_model(
      test_digest(1, 9), std::vector<uint8_t>(nvme::kMetaPayloadBytesMax, 1));
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kNoSpace);
  EXPECT_TRUE(nvme_disk.store().space_salt(6).ok());
  nvme_disk.cut_power(1);
  nvme_disk.open();
  EXPECT_EQ(nvme_disk.store().space_salt(5).value(), salt);
  EXPECT_TRUE(nvme_disk.store().models().empty());
}

TEST(NvmeStore, SpaceWithoutSaltCannotPut) {
  NvmeOnSimulatedDisk nvme_disk;
  nvme_disk.open();
  SampleBody stranger = body(1);
  stranger.record.space_uid = 77;
  BodyPut put = stranger.put([](const Result<void>&) { FAIL(); });
  const Result<StoreOutcome> outcome = nvme_disk.store().put(put);
  ASSERT_FALSE(outcome.ok());
  EXPECT_EQ(outcome.error().code, ErrorCode::kInvalidArgument);
}

TEST(NvmeStore, FailedFlushMakesTheStoreReadOnlyUntilItIsOpenedAgain) {
  NvmeOnSimulatedDisk nvme_disk;
  nvme_disk.open();
  ASSERT_TRUE(put_now(nvme_disk.store(), body(1)).ok());
  ASSERT_TRUE(flush_now(nvme_disk.store()).ok());
  nvme_disk.disk().set_faults({.sync_error = 1000});
  EXPECT_EQ(flush_now(nvme_disk.store()).error().code, ErrorCode::kIo);
  nvme_disk.disk().set_faults({});

  EXPECT_EQ(put_now(nvme_disk.store(), body(2)).outcome, StoreOutcome::kReadOnly);
  EXPECT_FALSE(flush_now(nvme_disk.store()).ok()) << "a later sync says nothing of the earlier";
  EXPECT_TRUE(nvme_disk.store().stats().read_only);
  EXPECT_TRUE(holds(nvme_disk.store(), body(1)));

  nvme_disk.close();
  nvme_disk.open();
  EXPECT_TRUE(holds(nvme_disk.store(), body(1)));
  EXPECT_TRUE(put_now(nvme_disk.store(), body(2)).ok());
}

TEST(NvmeStore, FlushWaitsForThePutsBeforeIt) {
  NvmeOnSimulatedDisk nvme_disk;
  nvme_disk.open(1, {.late = 900});
  std::vector<std::string> order;
  const SampleBody first = body(1);
  BodyPut put = first.put([&](const Result<void>&) { order.emplace_back("put"); });
  ASSERT_EQ(nvme_disk.store().put(put).value(), StoreOutcome::kAccepted);
  nvme_disk.store().flush([&](const Result<void>& result) {
    EXPECT_TRUE(result.ok());
    order.emplace_back("flush");
  });
  drain_until(nvme_disk.store(), [&] { return order.size() == 2; });
  EXPECT_EQ(order, (std::vector<std::string>{"put", "flush"}));
  nvme_disk.cut_power(3);
  nvme_disk.open();
  EXPECT_TRUE(holds(nvme_disk.store(), body(1)));
}

// Goal: dead space comes back by copying what is live, and copies are as good as what they copy.
// Method: fill, erase two of three, put on: far more than the file's size goes through it.
TEST(NvmeStore, CleaningKeepsWhatIsLiveAcrossRestarts) {
  NvmeOnSimulatedDisk nvme_disk;
  nvme_disk.open();
  std::vector<uint64_t> kept;
  for (uint64_t number = 1; number <= 90; ++number) {
    ASSERT_TRUE(put_now(nvme_disk.store(), large(number)).ok()) << number;
    if (number % 9 == 0) {
      kept.push_back(number);
    } else {
      nvme_disk.store().erase(large(number).record.key);
    }
  }
  const NvmeStore::Stats stats = nvme_disk.store().stats();
  EXPECT_GT(stats.copied_records, 0U);
  EXPECT_GT(stats.written_bytes, 2 * stats.capacity_bytes);
  ASSERT_TRUE(flush_now(nvme_disk.store()).ok());
  for (const uint64_t number : kept) {
    EXPECT_TRUE(holds(nvme_disk.store(), large(number))) << number;
  }
  nvme_disk.cut_power(5);
  nvme_disk.open();
  for (const uint64_t number : kept) {
    EXPECT_TRUE(holds(nvme_disk.store(), large(number))) << number;
  }
}

// Records of 600 KB fill a segment of 1 MiB alone: copying one gains nothing, and must not be
// tried.
TEST(NvmeStore, RecordsThatFillASegmentAloneDoNotMakeCleaningSpin) {
  NvmeOnSimulatedDisk nvme_disk;
  nvme_disk.open();
  uint64_t stored = 0;
  for (uint64_t number = 1; number < 20; ++number) {
    if (!put_now(nvme_disk.store(), SampleBody::make(number, {600'000}, 0)).ok()) {
      break;
    }
    ++stored;
  }
  EXPECT_EQ(stored, 6U);  // eight segments, two of them the reserve
  EXPECT_EQ(nvme_disk.store().stats().copied_records, 0U);
  nvme_disk.store().erase(SampleBody::make(1, {600'000}, 0).record.key);
  EXPECT_TRUE(put_now(nvme_disk.store(), SampleBody::make(30, {600'000}, 0)).ok());
}

// Goal: who erases what the store asks for never waits for a segment, and nothing is copied.
// Method: four times the store's size goes through it, oldest out first; records of one size fill a
// segment well, of the other waste two fifths of it, which counts as used.
TEST(NvmeStore, ErasingAheadKeepsSegmentsClean) {
  for (const uint64_t bytes : {200'000U, 600'000U}) {
    NvmeOnSimulatedDisk nvme_disk(40);
    nvme_disk.open();
    NvmeStore& store = nvme_disk.store();
    EXPECT_EQ(store.erase_ahead_bytes(), 0U);
    const uint64_t per_segment = bytes == 200'000U ? 5 : 1;
    uint64_t erased = 0;
    const uint64_t last = 160 * per_segment;
    for (uint64_t number = 1; number <= last; ++number) {
      ASSERT_GE(store.stats().clean_segments, NvmeLog::kReserve + 1) << number << " of " << bytes;
      ASSERT_TRUE(put_now(store, SampleBody::make(number, {bytes}, 0)).ok()) << number;
      while (store.erase_ahead_bytes() > 0) {
        store.erase(SampleBody::make(++erased, {bytes}, 0).record.key);
        ASSERT_LT(erased, number);
      }
    }
    // 40 segments, 8 of them spare; the one that is filled may be among those.
    const uint64_t kept = store.stats().record_count;
    EXPECT_EQ(kept, last - erased);
    EXPECT_GE(kept, 31 * per_segment);
    EXPECT_LE(kept, 32 * per_segment + 1);
    EXPECT_EQ(store.stats().copied_records, 0U);
  }
}

// Goal: whatever goes, room asked for ahead is room: no put is refused, and what stays is whole,
// also when the power goes while several records are copied. Method: many stores' sizes of records
// of two sizes, erased in an order of the seed.
TEST(NvmeStore, ErasingInNoOrderMakesRoomByCopying) {
  NvmeOnSimulatedDisk nvme_disk(24);
  nvme_disk.open(1, {.late = 300});
  std::mt19937_64 random(11);
  const auto sample = [](uint64_t number) {
    return number % 3 == 0 ? large(number) : body(number);
  };
  std::vector<uint64_t> kept;
  for (uint64_t number = 1; number <= 1500; ++number) {
    const PutAnswer put = put_now(nvme_disk.store(), sample(number));
    ASSERT_TRUE(put.ok()) << number << ": outcome " << static_cast<int>(put.outcome);
    kept.push_back(number);
    while (nvme_disk.store().erase_ahead_bytes() > 0) {
      std::swap(kept[random() % kept.size()], kept.back());
      nvme_disk.store().erase(sample(kept.back()).record.key);
      kept.pop_back();
    }
  }
  const NvmeStore::Stats stats = nvme_disk.store().stats();
  EXPECT_GT(stats.copied_records, 100U);
  EXPECT_GT(stats.written_bytes, 6 * stats.capacity_bytes);
  EXPECT_EQ(stats.record_count, kept.size());
  ASSERT_TRUE(flush_now(nvme_disk.store()).ok());
  nvme_disk.cut_power(5);
  nvme_disk.open();
  for (const uint64_t number : kept) {
    EXPECT_TRUE(holds(nvme_disk.store(), sample(number))) << number;
  }
}

TEST(NvmeStore, WhatIsBeingPutCountsForErasingAhead) {
  std::vector<SampleBody> bodies;  // lent to the store until it is gone
  NvmeOnSimulatedDisk nvme_disk;   // eight segments, a quarter of them spare
  nvme_disk.open();
  NvmeStore& store = nvme_disk.store();
  for (uint64_t number = 1; number <= 7; ++number) {
    EXPECT_EQ(store.erase_ahead_bytes(), 0U) << number;
    bodies.push_back(SampleBody::make(number, {1'000'000}, 0));  // a segment each
    BodyPut put = bodies.back().put([](const Result<void>&) {});
    ASSERT_EQ(store.put(put).value(), StoreOutcome::kAccepted);
  }
  EXPECT_GT(store.erase_ahead_bytes(), 0U);
}

TEST(NvmeStore, StoppingFinishesWritesAndSealsSoThatNothingIsVerifiedAtOpen) {
  const TemporaryFile file;
  std::vector<SampleBody> bodies;
  for (uint64_t number = 1; number <= 5; ++number) {
    bodies.push_back(body(number));
  }
  {
    auto store = std::move(NvmeStore::open(file.path(), small_options())).value();
    ASSERT_TRUE(store->space_salt(1000).ok());
    for (const SampleBody& sample : bodies) {
      BodyPut put = sample.put([](const Result<void>&) { FAIL() << "after the end"; });
      ASSERT_EQ(store->put(put).value(), StoreOutcome::kAccepted);
    }
  }
  auto store = std::move(NvmeStore::open(file.path(), small_options())).value();
  EXPECT_EQ(store->stats().recovered_records, 5U);
  EXPECT_EQ(store->stats().skipped_records, 0U);
  for (const SampleBody& sample : bodies) {
    EXPECT_TRUE(holds(*store, sample));
  }
}

TEST(NvmeStore, WriteErrorsInARowEndInReadOnlyNotInALoop) {
  NvmeOnSimulatedDisk nvme_disk;
  nvme_disk.open();
  ASSERT_TRUE(put_now(nvme_disk.store(), body(1)).ok());
  nvme_disk.disk().set_faults({.write_error = 1000});
  uint32_t refused = 0;
  for (uint64_t number = 2; number < 30; ++number) {
    const PutAnswer answer = put_now(nvme_disk.store(), body(number));
    EXPECT_FALSE(answer.ok());
    refused += answer.outcome == StoreOutcome::kReadOnly ? 1 : 0;
  }
  EXPECT_GT(refused, 0U);
  EXPECT_TRUE(nvme_disk.store().stats().read_only);
  EXPECT_TRUE(holds(nvme_disk.store(), body(1)));
}

}  // namespace
}  // namespace skv
