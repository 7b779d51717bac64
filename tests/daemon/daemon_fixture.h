#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "ipc/socket.h"

namespace skv::test {

// A directory of its own under /tmp (short, for socket paths), removed at the end.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string name = "/tmp/skvd-test-XXXXXX";
    path_ = ::mkdtemp(name.data()) == nullptr ? "" : name;
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// A real skvd process on a directory of its own: start, stop (SIGTERM, waits), kill (SIGKILL),
// start again on the same files. It dies with the thread that started it.
//
//   DaemonProcess daemon({.host_budget = "16MiB", .nvme_size = "64MiB"});
//   ASSERT_TRUE(daemon.start()) << daemon.log();
//   connect to daemon.socket() ...
//   EXPECT_EQ(daemon.stop(), 0) << daemon.log();
class DaemonProcess {
 public:
  struct Options {
    std::string host_budget = "32MiB";
    std::string host_slab = "256KiB";
    std::string nvme_size{};  // empty: no NVMe tier
    std::string nvme_segment = "1MiB";
    std::string device_kind = "none";
    std::string device_budget = "32MiB";
    std::string data = "spin = \"0ns\"\n";           // lines of [data]
    std::string sessions = "staging = \"64KiB\"\n";  // lines of [sessions]
    std::string more{};                              // further TOML, with its [section]s
    std::vector<std::string> environment{};          // "NAME=value"
    std::string program = std::string(SKV_BINARY_DIR) + "/bin/skvd";
  };

  DaemonProcess() : DaemonProcess(Options{}) {}
  explicit DaemonProcess(Options options) : options_(std::move(options)) {
    std::ofstream config(config_path());
    config << "[socket]\npath = \"" << socket() << "\"\nmode = \"0600\"\n"
           << "[log]\nlevel = \"debug\"\ntarget = \"stderr\"\n"
           << "[tiers.host]\nbudget = \"" << options_.host_budget << "\"\nslab = \""
           << options_.host_slab << "\"\n"
           << "[tiers.device]\nkind = \"" << options_.device_kind << "\"\nbudget = \""
           << options_.device_budget << "\"\n"
           << "[data]\n"
           << options_.data << "[sessions]\n"
           << options_.sessions;
    if (!options_.nvme_size.empty()) {
      config << "[tiers.nvme]\npath = \"" << nvme_path() << "\"\nsize = \"" << options_.nvme_size
             << "\"\nsegment = \"" << options_.nvme_segment << "\"\n";
    }
    config << options_.more;
  }
  ~DaemonProcess() { kill(); }
  DaemonProcess(const DaemonProcess&) = delete;
  DaemonProcess& operator=(const DaemonProcess&) = delete;

  // True once it accepts connections; false after a failed start (see log()).
  bool start() {
    if (!spawn()) {
      return false;
    }
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (std::chrono::steady_clock::now() < deadline) {
      if (connect_to(socket()).ok()) {
        return true;
      }
      if (exit_status(/*wait=*/false).has_value()) {
        return false;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return false;
  }

  // Without waiting for its socket.
  bool spawn() {
    status_.reset();
    const int log = ::open(log_path().c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    const std::string config = config_path();
    std::vector<char*> arguments = {options_.program.data(), const_cast<char*>("--config"),
                                    const_cast<char*>(config.c_str()), nullptr};
    std::vector<char*> environment;
    for (char** entry = environ; *entry != nullptr; ++entry) {
      environment.push_back(*entry);
    }
    for (std::string& entry : options_.environment) {
      environment.push_back(entry.data());
    }
    environment.push_back(nullptr);
    pid_ = ::fork();
    if (pid_ == 0) {  // only what may be called between fork and exec
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::dup2(log, STDERR_FILENO);
      ::execve(arguments[0], arguments.data(), environment.data());
      ::_exit(127);
    }
    ::close(log);
    return pid_ > 0;
  }

  void signal(int number) const {
    if (pid_ > 0) {
      ::kill(pid_, number);
    }
  }
  // SIGTERM; its exit code, -signal if one ended it, -1000 if it still runs after 60 s.
  int stop() {
    signal(SIGTERM);
    return wait();
  }
  int wait() {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (std::chrono::steady_clock::now() < deadline) {
      if (const std::optional<int> status = exit_status(/*wait=*/false); status.has_value()) {
        return *status;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return -1000;
  }
  void kill() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      exit_status(/*wait=*/true);
    }
  }

  pid_t pid() const { return pid_; }
  const std::string& directory() const { return directory_.path(); }
  std::string socket() const { return directory() + "/s"; }
  std::string config_path() const { return directory() + "/skvd.toml"; }
  std::string nvme_path() const { return directory() + "/bodies.skv"; }
  std::string log_path() const { return directory() + "/log"; }
  std::string log() const {
    std::ifstream in(log_path());
    std::stringstream text;
    text << in.rdbuf();
    return text.str();
  }

 private:
  std::optional<int> exit_status(bool wait) {
    if (status_.has_value() || pid_ <= 0) {
      return status_;
    }
    int status = 0;
    if (::waitpid(pid_, &status, wait ? 0 : WNOHANG) == pid_) {
      pid_ = -1;
      status_ = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    }
    return status_;
  }

  TemporaryDirectory directory_;
  Options options_;
  pid_t pid_ = -1;
  std::optional<int> status_;
};

}  // namespace skv::test
