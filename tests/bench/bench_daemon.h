#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace skv::bench {

// The folder of this program: skvd lies beside it.
inline std::string program_folder() {
  return std::filesystem::read_symlink("/proc/self/exe").parent_path().string();
}

// Nanoseconds that all threads of a process have run.
inline uint64_t cpu_ns(pid_t pid) {
  uint64_t sum = 0;
  std::error_code gone;
  const std::string tasks = "/proc/" + std::to_string(pid) + "/task";
  for (const auto& task : std::filesystem::directory_iterator(tasks, gone)) {
    uint64_t ran = 0;
    std::ifstream(task.path() / "schedstat") >> ran;
    sum += ran;
  }
  return sum;
}

// Until the process has nothing more to do: what it does behind a set-up (memory becomes huge
// pages) is no part of what is measured after it. 10 s at most.
inline void wait_until_idle(pid_t pid) {
  constexpr uint64_t kIdleNs = 5'000'000;  // of 100 ms
  uint64_t before = cpu_ns(pid);
  for (int looks = 0; looks < 100; ++looks) {
    ::usleep(100'000);
    const uint64_t now = cpu_ns(pid);
    if (now - before < kIdleNs) return;
    before = now;
  }
}

// A server process on a Unix socket in a folder of its own under /tmp; both go with this object,
// and the process with whoever started it. Start it before the program has threads.
class ServerProcess {
 public:
  ServerProcess() {
    std::string name = "/tmp/skv-bench-XXXXXX";
    folder_ = ::mkdtemp(name.data()) == nullptr ? "/tmp" : name;
  }
  ~ServerProcess() {
    stop();
    std::error_code ignored;
    if (folder_ != "/tmp") std::filesystem::remove_all(folder_, ignored);
  }
  ServerProcess(const ServerProcess&) = delete;
  ServerProcess& operator=(const ServerProcess&) = delete;

  // True once something listens on socket().
  bool start(std::vector<std::string> command) {
    std::vector<char*> arguments;
    for (std::string& each : command) arguments.push_back(each.data());
    arguments.push_back(nullptr);
    const std::string log = folder_ + "/log";
    const int out = ::open(log.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    pid_ = ::fork();
    if (pid_ == 0) {  // only what may be called between fork and exec
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::dup2(out, STDOUT_FILENO);
      ::dup2(out, STDERR_FILENO);
      ::execvp(arguments[0], arguments.data());
      ::_exit(127);
    }
    ::close(out);
    for (int i = 0; i < 4000 && pid_ > 0; ++i) {
      const int fd = connect();
      if (fd >= 0) {
        ::close(fd);
        return true;
      }
      if (::waitpid(pid_, nullptr, WNOHANG) == pid_) pid_ = -1;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return false;
  }
  void stop() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

  // A stream or packet connection, whichever the server speaks; -1: nothing listens.
  int connect(int type = SOCK_SEQPACKET) const {
    for (const int kind : {type, static_cast<int>(SOCK_STREAM)}) {
      const int fd = ::socket(AF_UNIX, kind | SOCK_CLOEXEC, 0);
      sockaddr_un address{};
      address.sun_family = AF_UNIX;
      std::snprintf(address.sun_path, sizeof address.sun_path, "%s", socket().c_str());
      if (::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) {
        return fd;
      }
      ::close(fd);
    }
    return -1;
  }

  pid_t pid() const { return pid_; }
  const std::string& folder() const { return folder_; }
  std::string socket() const { return folder_ + "/s"; }
  std::string log() const {
    std::ifstream in(folder_ + "/log");
    return {std::istreambuf_iterator<char>(in), {}};
  }

 private:
  std::string folder_;
  pid_t pid_ = -1;
};

// skvd of this build with `host_budget` of host memory; `more` is further TOML.
inline bool start_skvd(ServerProcess& server,
                       const std::string& host_budget,
                       const std::string& more = "") {
  const std::string path = server.folder() + "/skvd.toml";
  std::ofstream(path) << "[socket]\npath = \"" << server.socket() << "\"\nmode = \"0600\"\n"
                      << "[log]\nlevel = \"warning\"\ntarget = \"stderr\"\n"
                      << "[tiers.host]\nbudget = \"" << host_budget << "\"\n"
                      << more;
  return server.start({program_folder() + "/skvd", "--config", path, "--foreground"});
}

}  // namespace skv::bench
