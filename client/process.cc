#include "client/process.h"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <new>

namespace skv::client {
namespace {

// A page that the kernel empties in each child, however it was forked. Null: no such page to be
// had.
std::atomic<pid_t>* remembered() {
  static std::atomic<pid_t>* const page = []() -> std::atomic<pid_t>* {
    const auto bytes = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
    void* const memory =
        ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    if (::madvise(memory, bytes, MADV_WIPEONFORK) != 0) {
      ::munmap(memory, bytes);
      return nullptr;
    }
    return new (memory) std::atomic<pid_t>(0);
  }();
  return page;
}

}  // namespace

pid_t own_pid() {
  std::atomic<pid_t>* const page = remembered();
  if (page == nullptr) return ::getpid();
  pid_t pid = page->load(std::memory_order_relaxed);
  if (pid == 0) {
    pid = ::getpid();
    page->store(pid, std::memory_order_relaxed);
  }
  return pid;
}

}  // namespace skv::client
