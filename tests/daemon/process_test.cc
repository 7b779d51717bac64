#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <array>
#include <cstdio>

#include "tests/daemon/daemon_fixture.h"
#include "tests/daemon/test_engine.h"

namespace skv::test {
namespace {

using testing::HasSubstr;

struct Ran {
  int status = 0;
  std::string output;  // stdout and stderr
};
Ran run(const std::string& command) {
  Ran ran;
  FILE* const pipe = ::popen((command + " 2>&1").c_str(), "r");
  std::array<char, 4096> buffer{};
  while (std::fgets(buffer.data(), buffer.size(), pipe) != nullptr) {
    ran.output += buffer.data();
  }
  ran.status = WEXITSTATUS(::pclose(pipe));
  return ran;
}
std::string program(const std::string& name) {
  return std::string(SKV_BINARY_DIR) + "/bin/" + name;
}

// The datagram socket of a service manager.
class FakeManager {
 public:
  explicit FakeManager(const std::string& path) : path_(path) {
    socket_ = UniqueFd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.data(), path.size());
    bound_ = ::bind(socket_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  }
  bool bound() const { return bound_; }
  // Reads until a message has this line; false after 30 s.
  bool heard(const std::string& line) {
    for (;;) {
      if (("\n" + all_ + "\n").find("\n" + line) != std::string::npos) {
        return true;
      }
      pollfd ready{socket_.get(), POLLIN, 0};
      if (::poll(&ready, 1, 30'000) <= 0) {
        return false;
      }
      std::array<char, 4096> buffer{};
      const ssize_t got = ::recv(socket_.get(), buffer.data(), buffer.size(), 0);
      if (got <= 0) {
        return false;
      }
      all_ += std::string(buffer.data(), static_cast<size_t>(got)) + "\n";
    }
  }
  const std::string& all() const { return all_; }
  void forget() { all_.clear(); }

 private:
  std::string path_;
  UniqueFd socket_;
  bool bound_ = false;
  std::string all_;
};

TEST(ProcessTest, CheckConfigHasAnExitCode) {
  const TemporaryDirectory directory;
  const std::string good = directory.path() + "/good.toml";
  const std::string bad = directory.path() + "/bad.toml";
  std::ofstream(good) << "[log]\nlevel = \"info\"\n";
  std::ofstream(bad) << "[log]\nlevel = \"loud\"\n[data]\nspin = 3\n";

  const Ran right = run(program("skvd") + " --check-config --config " + good);
  EXPECT_EQ(right.status, 0);
  EXPECT_EQ(right.output, good + ": good\n");
  const Ran wrong = run(program("skvd") + " --check-config --config " + bad);
  EXPECT_EQ(wrong.status, 2);
  EXPECT_EQ(wrong.output,
            bad +
                ":2: log.level: \"loud\" is unknown; allowed: \"trace\", \"debug\", \"info\", "
                "\"warning\", \"error\"\n" +
                bad +
                ":4: data.spin: 3 is not a duration; allowed: 0ns to 10ms, as a string in "
                "ns, us, ms, s, min, h\n");
  // Without --check-config it does not start either.
  EXPECT_EQ(run(program("skvd") + " --config " + bad).status, 2);
  EXPECT_EQ(run(program("skvd") + " --config /nonexistent").status, 2);
  EXPECT_EQ(run(program("skvd") + " --no-such-flag").status, 2);
  EXPECT_EQ(run(program("skvd") + " --version").status, 0);
  const Ran printed = run(program("skvd") + " --print-config --config " + good);
  EXPECT_EQ(printed.status, 0);
  EXPECT_THAT(printed.output, HasSubstr("[tiers.host]\nbudget = \"1GiB\""));
}

TEST(ProcessTest, WhatCannotBeOpenedStopsTheStart) {
  DaemonProcess daemon;
  const std::string head = "[socket]\npath = \"" + daemon.socket() + "\"\n";
  const auto refused = [&](const std::string& text) {
    std::ofstream(daemon.config_path()) << head + text;
    const Ran ran = run(program("skvd") + " --config " + daemon.config_path());
    EXPECT_EQ(ran.status, 1);
    EXPECT_FALSE(std::filesystem::exists(daemon.socket()));
    return ran.output;
  };
  EXPECT_THAT(refused("group = \"no-such-group-here\"\n"),
              HasSubstr("\"no-such-group-here\" is not a group of this machine"));
  EXPECT_THAT(refused("[tiers.device]\nkind = \"emulated\"\nuuid = \"GPU-none\"\n"),
              HasSubstr("tiers.device.uuid \"GPU-none\" is not a UUID"));
  EXPECT_THAT(refused("[tiers.nvme]\npath = \"/nonexistent/n\"\nsize = \"16MiB\"\n"
                      "segment = \"1MiB\"\n"),
              HasSubstr("tiers.nvme: "));
}

TEST(ProcessTest, TwoDaemonsOnOneSocketAreRefused) {
  DaemonProcess daemon;
  ASSERT_TRUE(daemon.start()) << daemon.log();
  const Ran second = run(program("skvd") + " --config " + daemon.config_path());
  EXPECT_EQ(second.status, 1);
  EXPECT_THAT(second.output, HasSubstr("another skvd (pid " + std::to_string(daemon.pid()) +
                                       ") serves " + daemon.socket()));
  RawClient client;
  EXPECT_TRUE(client.open(daemon.socket()));
  EXPECT_EQ(daemon.stop(), 0);
  EXPECT_FALSE(std::filesystem::exists(daemon.socket()));
}

TEST(ProcessTest, SocketOfADeadDaemonIsReplaced) {
  DaemonProcess daemon;
  ASSERT_TRUE(daemon.start()) << daemon.log();
  daemon.kill();
  EXPECT_TRUE(std::filesystem::exists(daemon.socket()));
  ASSERT_TRUE(daemon.start()) << daemon.log();
  RawClient client;
  EXPECT_TRUE(client.open(daemon.socket()));
  EXPECT_EQ(daemon.stop(), 0);
}

// Goal: SIGTERM tells clients to go away, ends their connections, and the process ends with 0; with
// and without an NVMe tier, and whether or not clients react.
TEST(ProcessTest, DrainsOnSigterm) {
  for (const char* nvme : {"", "16MiB"}) {
    DaemonProcess daemon({.nvme_size = nvme});
    ASSERT_TRUE(daemon.start()) << daemon.log();
    RawClient client;
    ASSERT_TRUE(client.open(daemon.socket()));
    daemon.signal(SIGTERM);
    const Result<Frame> event = client.receive();
    ASSERT_TRUE(event.ok()) << event.error().message;
    EXPECT_EQ(event.value().header.verb, static_cast<uint16_t>(Verb::kGoAway));
    EXPECT_EQ(event.value().header.ticket, 0U);
    EXPECT_TRUE(client.closed_by_daemon());
    EXPECT_EQ(daemon.wait(), 0) << daemon.log();
    EXPECT_FALSE(std::filesystem::exists(daemon.socket()));
  }
}

TEST(ProcessTest, SighupIsSurvived) {
  DaemonProcess daemon;
  ASSERT_TRUE(daemon.start()) << daemon.log();
  daemon.signal(SIGHUP);
  RawClient client;
  ASSERT_TRUE(client.open(daemon.socket()));
  for (int i = 0; i < 1000 && daemon.log().find("SIGHUP") == std::string::npos; ++i) {
    ::poll(nullptr, 0, 5);
  }
  EXPECT_THAT(daemon.log(), HasSubstr("not supported yet"));
  EXPECT_FALSE(client.stat().is_null());
  EXPECT_EQ(daemon.stop(), 0);
}

TEST(ProcessTest, TellsTheServiceManager) {
  const TemporaryDirectory directory;
  FakeManager manager(directory.path() + "/notify");
  ASSERT_TRUE(manager.bound());
  DaemonProcess daemon(
      {.nvme_size = "16MiB",
       .environment = {"NOTIFY_SOCKET=" + directory.path() + "/notify", "WATCHDOG_USEC=200000"}});
  ASSERT_TRUE(daemon.spawn());
  ASSERT_TRUE(manager.heard("READY=1")) << manager.all() << daemon.log();
  RawClient client;  // ready means that it answers
  EXPECT_TRUE(client.open(daemon.socket()));
  EXPECT_THAT(manager.all(), HasSubstr("STATUS=opening the tiers"));
  EXPECT_THAT(manager.all(), HasSubstr("STATUS=serving " + daemon.socket()));
  // Pings go on: the data thread answers.
  for (int i = 0; i < 3; ++i) {
    manager.forget();
    EXPECT_TRUE(manager.heard("WATCHDOG=1")) << manager.all();
  }
  manager.forget();
  daemon.signal(SIGTERM);
  EXPECT_TRUE(manager.heard("STOPPING=1")) << manager.all();
  EXPECT_TRUE(manager.heard("EXTEND_TIMEOUT_USEC=")) << manager.all();
  EXPECT_EQ(daemon.wait(), 0);
}

TEST(SkvctlTest, SaysThatNoDaemonAnswers) {
  const Ran ran = run(program("skvctl") + " status --socket /tmp/no-skvd-here");
  EXPECT_EQ(ran.status, 1);
  EXPECT_THAT(ran.output, HasSubstr("skvctl: no daemon answers at /tmp/no-skvd-here"));
  EXPECT_EQ(run(program("skvctl")).status, 2);
  EXPECT_EQ(run(program("skvctl") + " bogus").status, 2);
}

TEST(SkvctlTest, ShowsStatusAndContexts) {
  DaemonProcess daemon({.nvme_size = "16MiB"});
  ASSERT_TRUE(daemon.start()) << daemon.log();
  const std::string at = " --socket " + daemon.socket();
  const Ran table = run(program("skvctl") + " status" + at);
  EXPECT_EQ(table.status, 0) << table.output;
  for (const char* part : {"health         ok, skvd ", "tier device    none",
                           "tier host      0 B of "
                           "32.0 MiB",
                           "tier nvme ", "prefetches     0, p50 ", "recall         not seen yet"}) {
    EXPECT_THAT(table.output, HasSubstr(part));
  }
  const Ran json = run(program("skvctl") + " status --json" + at);
  EXPECT_EQ(json.status, 0);
  const nlohmann::json status = nlohmann::json::parse(json.output, nullptr, false);
  ASSERT_FALSE(status.is_discarded()) << json.output;
  EXPECT_EQ(status["daemon"]["health"], "ok");
  EXPECT_EQ(status["tiers"]["host"]["budget_bytes"], 32U << 20);
  EXPECT_EQ(status["sessions"]["open"], 1);

  EXPECT_EQ(run(program("skvctl") + " contexts" + at).output, "no contexts\n");
  EXPECT_EQ(run(program("skvctl") + " contexts --json" + at).output, "[]\n");

  TestEngine engine(420);
  ASSERT_TRUE(engine.open(daemon.socket(), "some-engine"));
  ASSERT_TRUE(engine.append_all());
  engine.compute();
  ASSERT_TRUE(engine.put(0, 3).ok());
  const Ran contexts = run(program("skvctl") + " contexts" + at);
  EXPECT_THAT(contexts.output, HasSubstr("context  session"));
  EXPECT_THAT(contexts.output, HasSubstr("some-engine\n"));
  const nlohmann::json listed =
      nlohmann::json::parse(run(program("skvctl") + " contexts --json" + at).output);
  ASSERT_EQ(listed.size(), 1U);
  EXPECT_EQ(listed[0]["tokens"], 420);
  EXPECT_EQ(listed[0]["sentences"], engine.sentence_count());
  EXPECT_EQ(listed[0]["stored"], 3);
  EXPECT_EQ(listed[0]["covered"], 0);
  EXPECT_EQ(daemon.stop(), 0);
}

}  // namespace
}  // namespace skv::test
