#include "ipc/doorbell.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "ipc/os_error.h"

namespace skv {

Result<UniqueFd> create_event_doorbell() {
  UniqueFd fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!fd.valid()) return os_error("eventfd");
  return fd;
}

Result<PipeDoorbell> create_pipe_doorbell() {
  std::array<int, 2> ends{-1, -1};
  if (::pipe2(ends.data(), O_CLOEXEC | O_NONBLOCK) != 0) return os_error("pipe2");
  return PipeDoorbell{UniqueFd(ends[0]), UniqueFd(ends[1])};
}

void ring_doorbell(int fd) {
  const uint64_t one = 1;  // what an eventfd takes; for a pipe eight bytes like any other
  while (::write(fd, &one, sizeof one) < 0 && errno == EINTR) {
  }
}

void drain_doorbell(int fd) {
  std::array<uint64_t, 64> bytes{};
  const iovec part{bytes.data(), sizeof bytes};
  // RWF_NOWAIT holds for this call alone: whoever shares the descriptor cannot make it block.
  // One read empties an eventfd; what is left in a pipe wakes once more, which is harmless.
  ssize_t got = 0;
  do {
    got = ::preadv2(fd, &part, 1, -1, RWF_NOWAIT);
  } while (got < 0 && errno == EINTR);
  if (got >= 0 || errno != EOPNOTSUPP) return;
  // Pipes before Linux 6.4. The sleeper's end of a pipe has its own O_NONBLOCK.
  while (::read(fd, bytes.data(), sizeof bytes) < 0 && errno == EINTR) {
  }
}

}  // namespace skv
