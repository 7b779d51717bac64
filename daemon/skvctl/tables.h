#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

namespace skv {

// The daemon's JSON for people. A key that is missing (another version of the daemon) shows as "-".
// Thread: any.
std::string status_table(const nlohmann::json& status);
std::string contexts_table(const nlohmann::json& contexts);

std::string human_bytes(uint64_t bytes);      // "1.5 GiB"
std::string human_seconds(uint64_t seconds);  // "2 d 3 h", "5 min 2 s"

}  // namespace skv
