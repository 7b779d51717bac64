#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "daemon/core.h"

namespace skv {

// What skvctl shows (docs/protocol.md "stat" lists the keys). Thread: loop.
nlohmann::json status_json(const Core& core, const DataStatistics& data);
nlohmann::json session_json(const Core& core, const Session& session);

struct ContextsPage {
  nlohmann::json contexts;
  uint32_t next = 0;  // 0: that was all
};
// Contexts of all sessions of the space, at most kStatContextsPage of them.
ContextsPage contexts_json(const Core& core, const Space& space, uint32_t first);

// Start-up lines: every limit with its arithmetic, and the sums.
std::vector<std::string> limits_text(const Config& config);

}  // namespace skv
