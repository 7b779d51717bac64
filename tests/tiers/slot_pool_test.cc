#include "tiers/slot_pool.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>

#include "tests/conformance/slot_pool_conformance.h"
#include "tiers/slot_pool_inline.h"
#include "tiers/slot_pool_none.h"
#include "tiers/worker/slot_pool_worker.h"

namespace skv {
namespace {

SlotPoolOptions worker_options(uint64_t budget_bytes) {
  SlotPoolOptions options;
  options.kind = "emulated";
  options.device_uuid[3] = 0x5A;
  options.budget_bytes = budget_bytes;
  options.copy_threads = 3;
  options.worker_program = SKV_TEST_WORKER;
  return options;
}

INSTANTIATE_TEST_SUITE_P(
    Pools,
    SlotPoolConformance,
    ::testing::Values(SlotPoolKind{"none",
                                   [](uint64_t) -> std::unique_ptr<SlotPool> {
                                     return std::make_unique<NoneSlotPool>();
                                   }},
                      SlotPoolKind{"inline",
                                   [](uint64_t budget_bytes) -> std::unique_ptr<SlotPool> {
                                     return std::make_unique<InlineSlotPool>(
                                         InlineSlotPool::Options{budget_bytes, 5000, false});
                                   }},
                      SlotPoolKind{"threads",
                                   [](uint64_t budget_bytes) -> std::unique_ptr<SlotPool> {
                                     return std::make_unique<InlineSlotPool>(
                                         InlineSlotPool::Options{budget_bytes, ~size_t{0}, false,
                                                                 4});
                                   }},
                      SlotPoolKind{"worker",
                                   [](uint64_t budget_bytes) -> std::unique_ptr<SlotPool> {
                                     return make_slot_pool(worker_options(budget_bytes)).value();
                                   }}),
    [](const auto& each) { return each.param.name; });

TEST(SlotPoolFactory, RefusesByName) {
  SlotPoolOptions options = worker_options(1 << 20);
  options.kind = "cuda";
  const auto cuda = make_slot_pool(options);
  ASSERT_FALSE(cuda.ok());
  EXPECT_EQ(cuda.error().code, ErrorCode::kUnsupported);
  EXPECT_EQ(cuda.error().message,
            "cuda device: not served by this build; use device.kind = emulated or none");
  options.kind = "abacus";
  const auto unknown = make_slot_pool(options);
  ASSERT_FALSE(unknown.ok());
  EXPECT_NE(unknown.error().message.find("abacus"), std::string::npos);
}

TEST(SlotPoolFactory, UuidTextGoesBothWays) {
  std::array<uint8_t, 16> uuid{};
  for (size_t i = 0; i < uuid.size(); ++i) uuid[i] = static_cast<uint8_t>(i * 17);
  EXPECT_EQ(uuid_text(uuid), "00112233-4455-6677-8899-aabbccddeeff");
  EXPECT_EQ(parse_uuid(uuid_text(uuid)), uuid);
  EXPECT_FALSE(parse_uuid("00112233-4455-6677-8899-aabbccddeef"));
  EXPECT_FALSE(parse_uuid("00112233-4455-6677-8899-aabbccddeeff0"));
  EXPECT_FALSE(parse_uuid("0011223304455-6677-8899-aabbccddeeff"));
}

// The pool with a real child process.
class WorkerPoolTest : public ::testing::Test {
 protected:
  void SetUp() override {
    pool_ = make_slot_pool(worker_options(1 << 20)).value();
    worker_pool_ = static_cast<WorkerSlotPool*>(pool_.get());
  }

  SlotPool::Poll poll_until(const std::function<bool(const SlotPool::Poll&)>& enough) {
    SlotPool::Poll all;
    for (int rounds = 0; rounds < 1000 && !enough(all); ++rounds) {
      pollfd readable{pool_->wake_descriptor(), POLLIN, 0};
      ::poll(&readable, 1, 10);
      SlotPool::Poll polled = pool_->poll();
      for (SlotPool::Completion& each : polled.completions) {
        all.completions.push_back(std::move(each));
      }
      if (polled.lost) all.lost = polled.lost;
    }
    return all;
  }

  std::unique_ptr<SlotPool> pool_;
  WorkerSlotPool* worker_pool_ = nullptr;
};

TEST_F(WorkerPoolTest, StartsOnDemandOnly) {
  EXPECT_EQ(worker_pool_->worker_pid(), 0);
  ASSERT_TRUE(pool_->create_slab(PoolTicket{1}, 4096).ok());
  EXPECT_GT(worker_pool_->worker_pid(), 0);
}

// Goal: the worker's death is seen, fails what was in flight, and the next slab has a new worker
// that knows the arenas again.
// Method: kill it with SIGKILL while idle and right after a submit.
TEST_F(WorkerPoolTest, DeathIsReportedAndTheNextSlabStartsAgain) {
  UniqueFd arena = create_shared_memory("test-arena", 4096).value();
  const MappedMemory source =
      MappedMemory::map(arena.get(), 4096, MappedMemory::Access::kReadWrite).value();
  source.data()[5] = std::byte{42};
  ASSERT_TRUE(pool_->map_arena(SpaceId{1}, arena.get(), 4096).ok());
  ASSERT_TRUE(pool_->create_slab(PoolTicket{1}, 4096).ok());
  SlotPool::Poll created = poll_until([](const auto& all) { return !all.completions.empty(); });
  ASSERT_EQ(created.completions.size(), 1U);
  const SlabId slab = created.completions[0].slab->id;
  const pid_t first = worker_pool_->worker_pid();

  ::kill(first, SIGSTOP);  // so that the batch is in flight when it dies
  const std::vector<SlotPool::Move> moves{{0, 0, 64}};
  ASSERT_EQ(pool_->submit(PoolTicket{2}, SpaceId{1}, slab, moves), 1U);
  ASSERT_TRUE(pool_->create_slab(PoolTicket{3}, 4096).ok());
  ::kill(first, SIGKILL);
  const SlotPool::Poll lost = poll_until([](const auto& all) { return all.lost.has_value(); });
  ASSERT_TRUE(lost.lost);
  EXPECT_NE(lost.lost->find("signal 9"), std::string::npos) << *lost.lost;
  ASSERT_EQ(lost.completions.size(), 2U);
  for (const SlotPool::Completion& each : lost.completions) {
    ASSERT_FALSE(each.status.ok());
    EXPECT_EQ(each.status.error().code, ErrorCode::kStale);
  }
  EXPECT_EQ(pool_->used_bytes(), 0U);
  EXPECT_EQ(worker_pool_->worker_pid(), 0);

  ASSERT_EQ(pool_->submit(PoolTicket{4}, SpaceId{1}, slab, moves), 1U);
  const SlotPool::Poll stale = poll_until([](const auto& all) { return !all.completions.empty(); });
  ASSERT_EQ(stale.completions.size(), 1U);
  EXPECT_EQ(stale.completions[0].status.error().code, ErrorCode::kStale);
  pool_->destroy_slab(slab);  // unknown by now: ignored

  ASSERT_TRUE(pool_->create_slab(PoolTicket{5}, 4096).ok());
  SlotPool::Poll again = poll_until([](const auto& all) { return !all.completions.empty(); });
  ASSERT_EQ(again.completions.size(), 1U);
  ASSERT_TRUE(again.completions[0].slab);
  EXPECT_NE(worker_pool_->worker_pid(), first);
  ASSERT_EQ(pool_->submit(PoolTicket{6}, SpaceId{1}, again.completions[0].slab->id, moves), 1U);
  const SlotPool::Poll moved = poll_until([](const auto& all) { return !all.completions.empty(); });
  ASSERT_TRUE(moved.completions.at(0).status.ok());
  const MappedMemory slots = MappedMemory::map(again.completions[0].slab->descriptor.get(), 4096,
                                               MappedMemory::Access::kReadOnly)
                                 .value();
  EXPECT_EQ(slots.data()[5], std::byte{42});
}

TEST_F(WorkerPoolTest, AWorkerThatDiesAgainAndAgainIsNotStartedForEver) {
  ErrorCode refused = ErrorCode::kOk;
  for (size_t i = 0; i <= WorkerSlotPool::kStartsMax; ++i) {
    const Result<void> asked = pool_->create_slab(PoolTicket{i + 1}, 4096);
    if (!asked.ok()) {
      refused = asked.error().code;
      break;
    }
    ::kill(worker_pool_->worker_pid(), SIGKILL);
    ASSERT_TRUE(poll_until([](const auto& all) { return all.lost.has_value(); }).lost);
  }
  EXPECT_EQ(refused, ErrorCode::kStale);
}

TEST_F(WorkerPoolTest, AWorkerThatHangsIsDead) {
  SlotPoolOptions options = worker_options(1 << 20);
  options.hang_ms = 100;
  pool_ = make_slot_pool(options).value();
  worker_pool_ = static_cast<WorkerSlotPool*>(pool_.get());
  UniqueFd arena = create_shared_memory("test-arena", 4096).value();
  ASSERT_TRUE(pool_->map_arena(SpaceId{1}, arena.get(), 4096).ok());
  ASSERT_TRUE(pool_->create_slab(PoolTicket{1}, 4096).ok());
  const SlotPool::Poll created =
      poll_until([](const auto& all) { return !all.completions.empty(); });
  ASSERT_TRUE(created.completions.at(0).status.ok());

  ::kill(worker_pool_->worker_pid(), SIGSTOP);
  const std::vector<SlotPool::Move> moves{{0, 0, 64}};
  ASSERT_EQ(pool_->submit(PoolTicket{2}, SpaceId{1}, created.completions[0].slab->id, moves), 1U);
  const SlotPool::Poll lost = poll_until([](const auto& all) { return all.lost.has_value(); });
  ASSERT_TRUE(lost.lost);
  EXPECT_NE(lost.lost->find("no answer for 100 ms"), std::string::npos) << *lost.lost;
  ASSERT_EQ(lost.completions.size(), 1U);
  EXPECT_EQ(lost.completions[0].status.error().code, ErrorCode::kStale);

  // One that owes nothing is left alone, however long.
  ASSERT_TRUE(pool_->create_slab(PoolTicket{3}, 4096).ok());
  poll_until([](const auto& all) { return !all.completions.empty(); });
  const pid_t idle = worker_pool_->worker_pid();
  for (int i = 0; i < 40; ++i) {
    ::usleep(10'000);
    EXPECT_FALSE(pool_->poll().lost);
  }
  EXPECT_EQ(worker_pool_->worker_pid(), idle);
}

// Goal: no worker outlives its daemon, however that dies.
// Method: a child process starts a worker and is killed; the worker's pidfd tells.
TEST_F(WorkerPoolTest, TheWorkerGoesWhenTheDaemonDies) {
  int pipe_ends[2];
  ASSERT_EQ(::pipe(pipe_ends), 0);
  const pid_t daemon = ::fork();
  if (daemon == 0) {
    auto pool = make_slot_pool(worker_options(1 << 20)).value();
    if (!pool->create_slab(PoolTicket{1}, 4096).ok()) ::_exit(1);
    for (;;) {
      pollfd readable{pool->wake_descriptor(), POLLIN, 0};
      ::poll(&readable, 1, 100);
      if (!pool->poll().completions.empty()) break;
    }
    const pid_t worker = static_cast<WorkerSlotPool*>(pool.get())->worker_pid();
    if (::write(pipe_ends[1], &worker, sizeof worker) != sizeof worker) ::_exit(1);
    for (;;) ::pause();
  }
  pid_t worker = 0;
  ASSERT_EQ(::read(pipe_ends[0], &worker, sizeof worker), static_cast<ssize_t>(sizeof worker));
  ASSERT_EQ(::kill(worker, 0), 0);
  ::kill(daemon, SIGKILL);
  ::waitpid(daemon, nullptr, 0);
  bool gone = false;
  for (int rounds = 0; rounds < 500 && !gone; ++rounds) {
    std::ifstream status("/proc/" + std::to_string(worker) + "/stat");
    std::string text;
    std::getline(status, text);
    gone = text.empty() || text.find(") Z ") != std::string::npos;
    if (!gone) ::usleep(10'000);
  }
  EXPECT_TRUE(gone);
  ::close(pipe_ends[0]);
  ::close(pipe_ends[1]);
}

// Goal: an idle worker costs nothing.
TEST_F(WorkerPoolTest, AnIdleWorkerSleeps) {
  ASSERT_TRUE(pool_->create_slab(PoolTicket{1}, 4096).ok());
  poll_until([](const auto& all) { return !all.completions.empty(); });
  const auto ticks = [&] {
    std::ifstream status("/proc/" + std::to_string(worker_pool_->worker_pid()) + "/stat");
    std::string text;
    std::getline(status, text);
    std::istringstream fields(text.substr(text.rfind(')') + 2));
    std::string field;
    uint64_t sum = 0;
    for (int i = 3; i <= 15 && fields >> field; ++i) {
      if (i >= 14) sum += std::stoull(field);
    }
    return sum;
  };
  const uint64_t before = ticks();
  ::usleep(200'000);
  EXPECT_LE(ticks() - before, 2U) << "of 20 in 0.2 s";
}

}  // namespace
}  // namespace skv
