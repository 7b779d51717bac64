#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "tiers/worker/protocol.h"

namespace skv {

struct DeviceWorkerOptions {
  std::string kind;  // "emulated", "cuda"
  std::array<uint8_t, 16> device_uuid{};
  int socket = kWorkerSocket;  // taken over
};

// The whole life of a device worker process: `skvd --device-worker UUID --device-kind KIND`.
// Returns its exit status: 0 when the daemon has hung up, 1 after a message on stderr.
//
// It sleeps on socket and doorbell, and dies with the thread that started it. SIGINT and SIGTERM
// are ignored: the daemon drains first, then closes the socket.
int run_device_worker(DeviceWorkerOptions options);

}  // namespace skv
