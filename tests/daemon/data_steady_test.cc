// What one steady-state hot prefetch costs beside its arithmetic: no allocation, no lock, no system
// call, for any number of blocks. The core runs inline, the client's end of the channel in the same
// thread.
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <new>
#include <string>

#include "tests/daemon/data_harness.h"

namespace {

// Counted while `counting`, on the thread that set it.
thread_local bool counting = false;
thread_local uint64_t allocations = 0;
thread_local uint64_t locks = 0;
volatile sig_atomic_t calls = 0;
volatile sig_atomic_t first_call = 0;

void count_allocation() {
  if (counting) ++allocations;
}

}  // namespace

[[gnu::noinline]] void* operator new(size_t bytes) {
  count_allocation();
  void* memory = std::malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
[[gnu::noinline]] void* operator new(size_t bytes, std::align_val_t align) {
  count_allocation();
  const auto to = static_cast<size_t>(align);
  void* memory = std::aligned_alloc(to, (bytes + to - 1) / to * to);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, size_t, std::align_val_t) noexcept {
  std::free(memory);
}

extern "C" int pthread_mutex_lock(pthread_mutex_t* mutex) {
  using Lock = int (*)(pthread_mutex_t*);
  static const auto real = reinterpret_cast<Lock>(::dlsym(RTLD_NEXT, "pthread_mutex_lock"));
  if (counting) ++locks;
  return real(mutex);
}

namespace skv::data_test {
namespace {

constexpr LayerRange kAllLayers{0, 3};

// A context whose read sets are resident, and a channel.
class SteadyState : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    HarnessSetup setup;
    setup.device = GetParam();
    harness_ = std::make_unique<DataHarness>(setup);
    harness_->add_sentences(40);
    harness_->open_feed();
    harness_->feed(0, 40);
    OpenWindow options = harness_->window_options();
    options.shape.budget_blocks = 60;
    options.shape.resident_blocks = 200;
    reader_ = harness_->open_window(options).value();
    channel_ = harness_->open_channel();
    for (int i = 0; i < 3; ++i) queries_.push_back(harness_->make_query(kAllLayers));
    for (int i = 0; i < 20; ++i) step(i);
  }

  // One round trip, as client and daemon do it when neither sleeps. False: it was not what it has
  // to be.
  bool step(int round) {
    const std::vector<float>& query = queries_[static_cast<size_t>(round) % queries_.size()];
    TestSubmission entry = entry_;
    entry.ticket = static_cast<uint64_t>(round) + 1000;
    std::byte* const argument = channel_->argument_area().data();
    PrefetchRow row{};
    row.window = raw(DataHarness::kWindow);
    std::memcpy(argument, &row, sizeof row);
    std::memcpy(argument + sizeof row, query.data(), query.size() * sizeof(float));
    if (!channel_->submit(entry).value()) return false;
    std::optional<CompletionEntry> done;
    for (int i = 0; i < 8 && !done; ++i) {
      harness_->core().step();
      done = channel_->next_completion().value();
    }
    if (!done || done->status != 0) return false;
    std::memcpy(&row, argument, sizeof row);
    reader_->done(row.version);
    last_ = row;
    return true;
  }

  std::unique_ptr<DataHarness> harness_;
  std::unique_ptr<WindowReader> reader_;
  std::unique_ptr<ClientChannel> channel_;
  std::vector<std::vector<float>> queries_;
  TestSubmission entry_ = [] {
    TestSubmission entry{};
    entry.verb = static_cast<uint32_t>(ChannelVerb::kPrefetch);
    entry.row_count = 1;
    entry.layer_count = kAllLayers.count;
    entry.argument_bytes = sizeof(PrefetchRow) + kAllLayers.count * 4 * 64 * 4;
    return entry;
  }();
  PrefetchRow last_{};
};

TEST_P(SteadyState, AllocatesNothingAndTakesNoLock) {
  harness_->core().events().clear();
  allocations = 0;
  locks = 0;
  bool good = true;
  counting = true;
  for (int round = 0; round < 200; ++round) good &= step(round);
  counting = false;
  EXPECT_TRUE(good);
  EXPECT_EQ(last_.read_blocks, 3U * 2 * 63);
  EXPECT_EQ(last_.bytes_moved, 0U);
  EXPECT_EQ(allocations, 0U);
  EXPECT_EQ(locks, 0U);
}

// Goal: the counters count.
TEST(SteadyStateCounters, SeeWhatTheyCount) {
  counting = true;
  allocations = locks = 0;
  {
    std::vector<int> numbers(100);
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&mutex);
    pthread_mutex_unlock(&mutex);
    counting = numbers.empty();
  }
  EXPECT_EQ(allocations, 1U);
  EXPECT_EQ(locks, 1U);
}

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
void on_sigsys(int, siginfo_t* info, void*) {
  if (calls == 0) first_call = info->si_syscall;
  calls = calls + 1;
}

// Every system call of this process from now on but for the ends of a signal and of the process is
// a SIGSYS that counts it, and returns at once.
bool trap_system_calls() {
  struct sigaction action {};
  action.sa_sigaction = on_sigsys;
  action.sa_flags = SA_SIGINFO;
  if (::sigaction(SIGSYS, &action, nullptr) != 0) return false;
  std::array<sock_filter, 6> filter{{
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_rt_sigreturn, 2, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  }};
  const sock_fprog program{static_cast<unsigned short>(filter.size()), filter.data()};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

// Arenas are not inherited by children (HostArena); the child that is counted reads them.
void let_children_read_arenas() {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    uintptr_t begin = 0;
    uintptr_t end = 0;
    if (line.find("/memfd:") == std::string::npos) continue;
    if (std::sscanf(line.c_str(), "%lx-%lx", &begin, &end) != 2) continue;
    ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DOFORK);
  }
}

// 100: no filter here; 101: a step went wrong; else how many calls were made, at most 99.
template <typename Body>
int system_calls_of(Body&& body) {
  let_children_read_arenas();
  const pid_t child = ::fork();
  if (child == 0) {
    if (!trap_system_calls()) ::_exit(100);
    const bool good = body();
    ::_exit(!good ? 101 : calls > 99 ? 99 : static_cast<int>(calls));
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

TEST_P(SteadyState, MakesNoSystemCall) {
  const int control = system_calls_of([] {
    ::getppid();
    ::getppid();
    return true;
  });
  if (control == 100) GTEST_SKIP() << "this system allows no seccomp filter";
  ASSERT_EQ(control, 2) << "the filter counts";
  EXPECT_EQ(system_calls_of([&] {
              bool good = true;
              for (int round = 0; round < 200; ++round) good &= step(round);
              return good;
            }),
            0);
}
#endif

INSTANTIATE_TEST_SUITE_P(Tiers, SteadyState, ::testing::Values(true, false), [](const auto& each) {
  return each.param ? "device" : "none";
});

}  // namespace
}  // namespace skv::data_test
