#include "tiers/worker/child_process.h"

#include <poll.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <utility>

#include "ipc/os_error.h"

extern char** environ;

namespace skv {
namespace {

constexpr auto kPidfdIdType = static_cast<idtype_t>(3);  // P_PIDFD; glibc 2.36 names it

std::string how(const siginfo_t& info) {
  if (info.si_code == CLD_EXITED) return "exited with status " + std::to_string(info.si_status);
  return "was killed by signal " + std::to_string(info.si_status);
}

}  // namespace

Result<ChildProcess> ChildProcess::spawn(const Options& options) {
  std::vector<std::string> text{options.program};
  text.insert(text.end(), options.arguments.begin(), options.arguments.end());
  std::vector<char*> argv;
  argv.reserve(text.size() + 1);
  for (std::string& each : text) argv.push_back(each.data());
  argv.push_back(nullptr);

  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawnattr_init(&attributes);
  ::posix_spawn_file_actions_adddup2(&actions, options.inherited, options.as);
  sigset_t none;
  sigset_t all;
  ::sigemptyset(&none);
  ::sigfillset(&all);
  ::posix_spawnattr_setsigmask(&attributes, &none);
  ::posix_spawnattr_setsigdefault(&attributes, &all);
  ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  ChildProcess child;
  const int failed = ::posix_spawn(&child.pid_, options.program.c_str(), &actions, &attributes,
                                   argv.data(), environ);
  ::posix_spawnattr_destroy(&attributes);
  ::posix_spawn_file_actions_destroy(&actions);
  if (failed != 0) {
    child.pid_ = 0;
    return Error{ErrorCode::kIo, "posix_spawn of " + options.program + ": " + errno_text(failed)};
  }
  // Not reaped by anyone but us, so the pid is still this child's.
  child.pidfd_.reset(static_cast<int>(::syscall(SYS_pidfd_open, child.pid_, 0)));
  if (!child.pidfd_) return os_error("pidfd_open of " + options.program);
  return child;
}

ChildProcess::ChildProcess(ChildProcess&& other) noexcept
    : pid_(std::exchange(other.pid_, 0)), pidfd_(std::move(other.pidfd_)) {}

ChildProcess& ChildProcess::operator=(ChildProcess&& other) noexcept {
  if (this != &other) {
    kill();
    pid_ = std::exchange(other.pid_, 0);
    pidfd_ = std::move(other.pidfd_);
  }
  return *this;
}

ChildProcess::~ChildProcess() { kill(); }

std::optional<std::string> ChildProcess::ended() {
  if (pid_ == 0) return std::nullopt;
  siginfo_t info{};
  if (::waitid(kPidfdIdType, static_cast<id_t>(pidfd_.get()), &info, WEXITED | WNOHANG) != 0 ||
      info.si_pid == 0) {
    return std::nullopt;
  }
  std::string text = "process " + std::to_string(pid_) + " " + how(info);
  pid_ = 0;
  pidfd_.reset();
  return text;
}

std::string ChildProcess::end(int grace_ms) {
  pollfd gone{pidfd_.get(), POLLIN, 0};
  if (::poll(&gone, 1, grace_ms) == 0) ::kill(pid_, SIGKILL);
  while (pid_ != 0) {
    ::poll(&gone, 1, -1);
    if (std::optional<std::string> text = ended(); text) return *text;
  }
  return "had ended before";
}

void ChildProcess::kill() {
  if (pid_ == 0) return;
  ::kill(pid_, SIGKILL);
  while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
  pid_ = 0;
  pidfd_.reset();
}

}  // namespace skv
