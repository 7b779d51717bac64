#pragma once

#include <atomic>
#include <cstdint>

#include "ipc/types/result.h"
#include "ipc/unique_fd.h"

namespace skv {

// How a ring's consumer sleeps and its producer wakes it, with a system call only when it sleeps.
//
//   consumer: announce_sleep(flag); if nothing is available: poll(doorbell); announce_awake(flag);
//             drain_doorbell(doorbell)
//   producer: push(entry); ring_if_asleep(flag, doorbell)
//
// Both store their own word and then load the other's, all four sequentially consistent: at least
// one of them sees the other, so no wake-up is lost. A peer that lies in its flag wakes itself too
// often or too late and no one else.
//
// A doorbell is a hint: after a wake-up look at the ring; a sweep now and then costs little.

// For a sleeper that must not trust the ringer: an eventfd. Only drain_doorbell reads it, without
// ever blocking.
Result<UniqueFd> create_event_doorbell();

// For a ringer that must not trust the sleeper: a pipe. The status flags of an eventfd are shared
// by all who hold it, so a peer could clear O_NONBLOCK, fill it up, and the next ring would block;
// a pipe's two ends have their own. The ringer keeps a copy of the sleeper's end, so that the
// sleeper's death is no SIGPIPE.
struct PipeDoorbell {
  UniqueFd sleeper_end;  // poll for POLLIN, drain_doorbell
  UniqueFd ringer_end;   // ring_doorbell
};
Result<PipeDoorbell> create_pipe_doorbell();

// Never block; a full doorbell is rung already. Any thread.
void ring_doorbell(int fd);
void drain_doorbell(int fd);

inline void announce_sleep(std::atomic<uint32_t>& flag) {
  flag.store(1, std::memory_order_seq_cst);
}
inline void announce_awake(std::atomic<uint32_t>& flag) {
  flag.store(0, std::memory_order_relaxed);
}
// True if it rang.
inline bool ring_if_asleep(const std::atomic<uint32_t>& flag, int doorbell) {
  if (flag.load(std::memory_order_seq_cst) == 0) return false;
  ring_doorbell(doorbell);
  return true;
}

}  // namespace skv
