#include <gtest/gtest.h>
#include <sys/prctl.h>

#include <cstring>
#include <random>

#include "ipc/shared_memory.h"
#include "tests/daemon/daemon_fixture.h"
#include "tests/daemon/test_engine.h"

namespace skv::test {
namespace {

constexpr uint32_t kTokens = 420;
constexpr uint32_t kRounds = 3;

// What a client does until it is killed: everything that comes before the verb, once, then the verb
// for ever, without waiting longer than it must.
struct Victim {
  const char* name;
  void (*repeat)(TestEngine& engine, uint32_t round);
};
void PrintTo(const Victim& victim, std::ostream* out) { *out << victim.name; }

void put_all(TestEngine& engine) {
  engine.compute();
  static_cast<void>(engine.put(0, engine.sentence_count()));
}

template <typename Message>
void post_forever(TestEngine& engine, Verb verb, const Message& message) {
  for (;;) {
    for (int i = 0; i < 8; ++i) {
      engine.client().post(verb, message);
    }
    for (int i = 0; i < 8; ++i) {
      static_cast<void>(engine.client().receive());
    }
  }
}

const Victim kVictims[] = {
    {"context_append",
     [](TestEngine& engine, uint32_t) {
       for (;;) {
         engine.open_context();
         engine.append_all();
         static_cast<void>(
             engine.client().call<Empty>(Verb::kContextClose, ContextClose{engine.context_id()}));
       }
     }},
    {"memory_register",
     [](TestEngine& engine, uint32_t) {
       for (;;) {
         engine.register_memory();
         static_cast<void>(engine.client().call<Empty>(Verb::kMemoryUnregister,
                                                       MemoryUnregister{engine.memory_id()}));
       }
     }},
    {"channel_open",
     [](TestEngine& engine, uint32_t) {
       for (;;) {
         const Result<ClientChannel> channel = engine.open_channel();
         static_cast<void>(
             engine.client().call<Empty>(Verb::kChannelClose, ChannelClose{engine.channel_id()}));
       }
     }},
    {"match",
     [](TestEngine& engine, uint32_t) {
       post_forever(engine, Verb::kMatch, Match{engine.context_id(), 0});
     }},
    {"put_reserve",
     [](TestEngine& engine, uint32_t) {
       for (;;) {
         static_cast<void>(engine.reserve(0, engine.sentence_count()));
         static_cast<void>(engine.client().call<PutOutcomes>(
             Verb::kPutCancel, PutCancel{engine.context_id(), 0, engine.sentence_count()}));
       }
     }},
    {"put_write",
     [](TestEngine& engine, uint32_t) {
       static_cast<void>(engine.reserve(0, engine.sentence_count()));
       for (;;) {
         static_cast<void>(engine.write(0, engine.sentence_count(), {0, 6}));
       }
     }},
    {"put_commit",
     [](TestEngine& engine, uint32_t round) {
       // Other tokens each time, so that there is always something to commit.
       for (uint32_t seed = 1000 * (round + 1);; ++seed) {
         engine.reseed(seed);
         engine.open_context();
         engine.append_all();
         static_cast<void>(engine.reserve(0, engine.sentence_count()));
         static_cast<void>(engine.write(0, engine.sentence_count(), {0, 6}));
         static_cast<void>(engine.commit(0, engine.sentence_count()));
         static_cast<void>(
             engine.client().call<Empty>(Verb::kContextClose, ContextClose{engine.context_id()}));
       }
     }},
    {"vectors_derive",
     [](TestEngine& engine, uint32_t) {
       put_all(engine);
       post_forever(engine, Verb::kVectorsDerive,
                    VectorsDerive{engine.context_id(), 0, engine.sentence_count()});
     }},
    {"window_open",
     [](TestEngine& engine, uint32_t) {
       put_all(engine);
       for (;;) {
         const Result<TestEngine::Window> window = engine.open_window({0, 8, 1, 1, 24, 0, 0});
         if (window.ok()) {
           static_cast<void>(engine.client().call<Empty>(Verb::kWindowClose,
                                                         WindowClose{window.value().reply.window}));
         }
       }
     }},
    {"prefetch",
     [](TestEngine& engine, uint32_t) {
       put_all(engine);
       const Result<TestEngine::Window> window = engine.open_window({0, 8, 1, 1, 24, 0, 0});
       Result<ClientChannel> channel = engine.open_channel();
       if (!window.ok() || !channel.ok()) {
         return;
       }
       auto* header = reinterpret_cast<WindowHeader*>(window.value().tables.data());
       for (uint32_t token = 0;; token = (token + 37) % 300) {
         const Result<PrefetchRow> done = engine.prefetch(channel.value(), window.value(), token);
         if (done.ok()) {
           header->readers_done.store(done.value().version);
         }
       }
     }},
    {"load",
     [](TestEngine& engine, uint32_t) {
       put_all(engine);
       for (;;) {
         static_cast<void>(engine.load(0, engine.sentence_count()));
       }
     }},
    {"load_in_place",
     [](TestEngine& engine, uint32_t) {
       put_all(engine);
       for (int i = 0;; ++i) {
         const Result<LoadReply> reply = engine.load(0, 2, /*in_place=*/true);
         if (reply.ok() && i % 4 != 0) {  // some leases stay
           static_cast<void>(
               engine.client().call<Empty>(Verb::kRelease, Release{reply.value().lease}));
         }
       }
     }},
    // Leases without a message, of everything and for ever: rubbish in all its words.
    {"lease_map_open",
     [](TestEngine& engine, uint32_t round) {
       put_all(engine);
       Result<LeaseMapOpenReply> opened = engine.client().call<LeaseMapOpenReply>(
           Verb::kLeaseMapOpen, LeaseMapOpen{engine.context_id()});
       if (!opened.ok() || engine.client().fds().size() != 2) return;
       const Result<MappedMemory> words = MappedMemory::map(
           engine.client().fds()[1].get(), opened.value().bytes, MappedMemory::Access::kReadWrite);
       if (!words.ok()) return;
       std::memset(words.value().data(), 0xFF, words.value().bytes());
       std::mt19937 random(round);
       for (;;) {
         words.value().data()[random() % words.value().bytes()] = static_cast<std::byte>(random());
       }
     }},
    {"flush",
     [](TestEngine& engine, uint32_t) {
       put_all(engine);
       post_forever(engine, Verb::kFlush, Flush{static_cast<uint8_t>(FlushLevel::kDurable)});
     }},
    {"drop",
     [](TestEngine& engine, uint32_t) {
       for (;;) {
         put_all(engine);
         static_cast<void>(
             engine.client().call<DropReply>(Verb::kDrop, Drop{engine.context_id(), 0}));
       }
     }},
    {"stat", [](TestEngine& engine, uint32_t) { post_forever(engine, Verb::kStat, Stat{}); }},
};

class KillTest : public testing::TestWithParam<Victim> {};

// Goal: a client that is killed in any verb costs nothing that stays, and nobody else anything.
// Method: a real child process, SIGKILL at a random time of a fixed seed; then all charges are zero
// and a second client, there all along, puts and reads.
TEST_P(KillTest, GivesBackAllItHeld) {
  DaemonProcess daemon({.host_budget = "16MiB",
                        .nvme_size = "64MiB",
                        .device_kind = "emulated",
                        .device_budget = "8MiB"});
  ASSERT_TRUE(daemon.start()) << daemon.log();
  TestEngine other(kTokens, /*seed=*/99);
  ASSERT_TRUE(other.open(daemon.socket(), "other")) << daemon.log();
  ASSERT_TRUE(other.append_all());
  std::mt19937 random(7);
  for (uint32_t round = 0; round < kRounds; ++round) {
    int ready[2];
    ASSERT_EQ(::pipe(ready), 0);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      TestEngine engine(kTokens, /*seed=*/round + 1);
      if (engine.open(daemon.socket(), GetParam().name) && engine.append_all() &&
          ::write(ready[1], "r", 1) == 1) {
        GetParam().repeat(engine, round);
      }
      ::_exit(1);
    }
    char byte = 0;
    ASSERT_EQ(::read(ready[0], &byte, 1), 1);
    ::usleep(2000 + random() % 60'000);
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status)) << "the victim ended by itself" << daemon.log();
    ::close(ready[0]);
    ::close(ready[1]);

    const nlohmann::json now = other.client().wait_status([](const nlohmann::json& seen) {
      // The numbers of the data thread may be those of its step before.
      return seen["sessions"]["open"] == 1 && seen["requests"]["tasks"] == 0 &&
             seen["sessions"]["windows"] == 0 && seen["sessions"]["channels"] == 0 &&
             seen["tiers"]["device"]["used_bytes"] == 0;
    });
    ASSERT_FALSE(now.is_null()) << daemon.log();
    EXPECT_EQ(now["sessions"]["open"], 1) << now.dump(1) << daemon.log();
    EXPECT_EQ(now["sessions"]["charges_left"], 0) << daemon.log();
    EXPECT_EQ(now["sessions"]["contexts"], 1);
    EXPECT_EQ(now["sessions"]["windows"], 0);
    EXPECT_EQ(now["sessions"]["channels"], 0);
    EXPECT_EQ(now["sessions"]["loans"], 0);
    EXPECT_EQ(now["sessions"]["lease_maps"], 0);
    EXPECT_EQ(now["sessions"]["in_place_bytes"], 0);
    EXPECT_EQ(now["sessions"]["puts"], 0);
    EXPECT_EQ(now["sessions"]["memories"], 2);  // staging and one of `other`
    EXPECT_EQ(now["requests"]["tasks"], 0);
    EXPECT_EQ(now["requests"]["feeds"], 0);
    EXPECT_EQ(now["placement"]["chunk_leases"], 0);
    EXPECT_EQ(now["placement"]["sentence_leases"], 0);
    EXPECT_EQ(now["tiers"]["device"]["used_bytes"], 0);
  }
  other.compute();
  const Result<PutOutcomes> put = other.put(0, other.sentence_count());
  ASSERT_TRUE(put.ok()) << put.error().message << daemon.log();
  for (const uint8_t outcome : put.value().outcomes) {
    EXPECT_EQ(outcome, static_cast<uint8_t>(PutOutcome::kCommitted));
  }
  other.clear();
  ASSERT_TRUE(other.load(0, other.sentence_count()).ok());
  EXPECT_EQ(other.wrong_values(0, other.end_token(other.sentence_count() - 1)), 0U);
  EXPECT_EQ(daemon.stop(), 0) << daemon.log();
}

INSTANTIATE_TEST_SUITE_P(Verbs,
                         KillTest,
                         testing::ValuesIn(kVictims),
                         [](const testing::TestParamInfo<Victim>& one) {
                           return std::string(one.param.name);
                         });

// Goal: a forked child that keeps the socket open does not keep the session: the process that
// connected is what counts.
TEST(KillTest, ForkedChildDoesNotKeepTheSession) {
  DaemonProcess daemon;
  ASSERT_TRUE(daemon.start()) << daemon.log();
  RawClient other;
  ASSERT_TRUE(other.open(daemon.socket()));
  int hold[2];
  ASSERT_EQ(::pipe(hold), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    RawClient client;
    const bool opened = client.open(daemon.socket());
    if (::fork() == 0) {  // holds the socket until the test ends
      ::close(hold[1]);
      char byte = 0;
      _exit(::read(hold[0], &byte, 1) < 0 ? 1 : 0);
    }
    ::_exit(opened ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(WEXITSTATUS(status), 0);
  const nlohmann::json now = other.wait_status([](const nlohmann::json& seen) {
    return seen["sessions"]["open"] == 1 && seen["sessions"]["total"] == 2;
  });
  EXPECT_EQ(now["sessions"]["open"], 1);
  EXPECT_EQ(now["sessions"]["total"], 2);
  ::close(hold[0]);
  ::close(hold[1]);
  EXPECT_EQ(daemon.stop(), 0);
}

}  // namespace
}  // namespace skv::test
