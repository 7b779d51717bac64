#include "tiers/host_arena.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

namespace skv {
namespace {

Error system_error(const std::string& what) {
  return {ErrorCode::kIo, "host arena: " + what + ": " + std::strerror(errno)};
}

}  // namespace

Result<std::unique_ptr<HostArena>> HostArena::create(uint64_t bytes) {
  std::unique_ptr<HostArena> arena(new HostArena);
  arena->fd_ = memfd_create("skv-host", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (arena->fd_ < 0) {
    return system_error("memfd_create");
  }
  // A memfd is 0777 at birth: any holder of a descriptor could open it again for writing.
  if (fchmod(arena->fd_, 0600) != 0) {
    return system_error("fchmod");
  }
  if (ftruncate(arena->fd_, static_cast<off_t>(bytes)) != 0) {
    return system_error("ftruncate to " + std::to_string(bytes) + " bytes");
  }
  if (fcntl(arena->fd_, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) != 0) {
    return system_error("F_ADD_SEALS");
  }
  const std::string path = "/proc/self/fd/" + std::to_string(arena->fd_);
  arena->read_only_fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (arena->read_only_fd_ < 0) {
    return system_error("open " + path + " for reading");
  }
  void* const at =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, arena->fd_, 0);
  if (at == MAP_FAILED) {
    return system_error("mmap of " + std::to_string(bytes) + " bytes");
  }
  arena->memory_ = {static_cast<std::byte*>(at), bytes};
  // Neither in a core dump nor in a child: prompts can be told from KV bytes.
  (void)madvise(at, bytes, MADV_DONTDUMP);
  (void)madvise(at, bytes, MADV_DONTFORK);
  return arena;
}

HostArena::~HostArena() {
  if (!memory_.empty()) {
    munmap(memory_.data(), memory_.size());
  }
  if (read_only_fd_ >= 0) {
    close(read_only_fd_);
  }
  if (fd_ >= 0) {
    close(fd_);
  }
}

Result<void> HostArena::punch(uint64_t offset, uint64_t bytes) {
  if (fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                static_cast<off_t>(bytes)) != 0) {
    return system_error("punching " + std::to_string(bytes) + " bytes");
  }
  return {};
}

}  // namespace skv
