#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "ipc/messages.h"
#include "ipc/types/result.h"

namespace skv {

// Asks a daemon once and waits for the answer. Pages are put together into one array.
//
// Errors  kDisconnected: no daemon answers there, in words for an operator. Errors of the daemon as
//         they are.
// Thread  any; blocks up to `deadline_ms` per message.
struct StatRequest {
  std::string socket;
  StatKind kind = StatKind::kStatus;
  int deadline_ms = 5000;
};
Result<nlohmann::json> ask(const StatRequest& request);

}  // namespace skv
