#pragma once

#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "tests/bench/report.h"

namespace skv::bench {

// What client processes of one measurement share: they start together and leave their times here.
struct Shared {
  static constexpr uint32_t kClientsMax = 8;
  static constexpr uint32_t kTimesMax = 1U << 15;
  struct Client {
    double begin = 0;  // seconds, monotonic clock
    double end = 0;
    double cpu_s = 0;  // of the client's process, within begin..end
    uint32_t count = 0;
    float us[kTimesMax];
  };
  std::atomic<uint32_t> ready{0};
  std::atomic<uint32_t> go{0};
  std::atomic<uint32_t> stop{0};  // for clients that run until others are done
  Client clients[kClientsMax];
};

inline double own_cpu_s() {
  rusage used{};
  ::getrusage(RUSAGE_SELF, &used);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(used.ru_utime) + seconds(used.ru_stime);
}

// The body of one client process; returns false when it could not do its work.
class Stopwatch {
 public:
  Stopwatch(Shared& shared, uint32_t client) : shared_(shared), mine_(shared.clients[client]) {}
  // After set-up, before the first measured operation: waits for the others.
  void start() {
    shared_.ready.fetch_add(1);
    while (shared_.go.load() == 0) ::usleep(100);
    mine_.begin = now();
    cpu_ = own_cpu_s();
  }
  void took(double seconds) {
    if (mine_.count < Shared::kTimesMax) {
      mine_.us[mine_.count++] = static_cast<float>(seconds * 1e6);
    }
  }
  void finish() {
    mine_.end = now();
    mine_.cpu_s = own_cpu_s() - cpu_;
  }
  bool stopped() const { return shared_.stop.load(std::memory_order_relaxed) != 0; }

 private:
  Shared& shared_;
  Shared::Client& mine_;
  double cpu_ = 0;
};
using ClientBody = std::function<bool(uint32_t client, Stopwatch& watch)>;

struct Run {
  bool ok = false;
  double seconds = 0;  // from the first begin to the last end
  double p50_us = 0;
  double p99_us = 0;
  double cpu_s = 0;  // clients; of the server: what it used meanwhile
  double server_cpu_s = 0;
};

// Runs `bodies` in a process each, started together. The first `counted` of them are waited for and
// measured; then the others are told to stop. `server_cpu_ns` is read before and after.
inline Run run_clients(const std::vector<ClientBody>& bodies,
                       size_t counted,
                       const std::function<uint64_t()>& server_cpu_ns) {
  void* memory =
      ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return {};
  auto* shared = new (memory) Shared;
  std::vector<pid_t> pids;
  for (uint32_t i = 0; i < bodies.size(); ++i) {
    std::fflush(stdout);
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      Stopwatch watch(*shared, i);
      const bool done = bodies[i](i, watch);
      if (!done) shared->ready.fetch_add(1);  // the others need not wait for it
      std::fflush(stdout);
      ::_exit(done ? 0 : 1);
    }
    pids.push_back(pid);
  }
  while (shared->ready.load() < bodies.size()) ::usleep(200);
  const uint64_t cpu_before = server_cpu_ns();
  shared->go.store(1);
  Run run;
  run.ok = true;
  uint64_t cpu_after = cpu_before;
  for (size_t i = 0; i < pids.size(); ++i) {
    if (i == counted) shared->stop.store(1);
    int status = 0;
    ::waitpid(pids[i], &status, 0);
    run.ok = run.ok && WIFEXITED(status) && WEXITSTATUS(status) == 0;
    if (i + 1 == counted) cpu_after = server_cpu_ns();
  }
  std::vector<double> times;
  double begin = 1e300;
  double end = 0;
  for (size_t i = 0; i < counted; ++i) {
    const Shared::Client& client = shared->clients[i];
    begin = std::min(begin, client.begin);
    end = std::max(end, client.end);
    run.cpu_s += client.cpu_s;
    times.insert(times.end(), client.us, client.us + client.count);
  }
  run.seconds = end - begin;
  run.server_cpu_s = 1e-9 * static_cast<double>(cpu_after - cpu_before);
  if (times.empty()) run.ok = false;
  if (run.ok) {
    run.p50_us = quantile(times, 0.5);
    run.p99_us = quantile(times, 0.99);
  }
  ::munmap(memory, sizeof(Shared));
  return run;
}

// Keeps `depth` operations in flight until `count` are done: submit(i) begins the i-th, wait(i)
// ends it (in order); both return false on failure. Times are from submit to the end of its wait.
template <typename Submit, typename Wait>
bool keep_in_flight(
    uint32_t depth, uint32_t count, Stopwatch& watch, const Submit& submit, const Wait& wait) {
  std::vector<double> begun(depth);
  uint32_t submitted = 0;
  for (uint32_t done = 0; done < count; ++done) {
    for (; submitted < count && submitted < done + depth; ++submitted) {
      begun[submitted % depth] = now();
      if (!submit(submitted)) return false;
    }
    if (!wait(done)) return false;
    watch.took(now() - begun[done % depth]);
  }
  return true;
}

}  // namespace skv::bench
