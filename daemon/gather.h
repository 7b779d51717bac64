#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "daemon/core.h"

namespace skv {

struct GatherRequest {
  SessionId session{};
  std::vector<ChunkRef> chunks;
  uint64_t deadline_ns = 0;  // absolute
  // All leases, in the order of `chunks`; or the first error, then none is held. Not called once
  // the session has ended; what had come is then released with the session.
  std::function<void(Result<std::vector<ChunkLease>>)> done;
};

// Promotes and leases many chunks. Thread: loop.
void gather(Core& core, GatherRequest request);

}  // namespace skv
