#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "daemon/config.h"

// The table of keys that config.cc reads and config_print.cc prints. Not for others.
namespace skv::config {

struct Size {
  uint64_t Config::*field;
  uint64_t min, max;
};
struct Duration {
  uint64_t Config::*field;
  uint64_t min_ns, max_ns;
};
struct Count {
  uint32_t Config::*field;
  uint32_t min, max;
};
struct Text {
  std::string Config::*field;
  size_t max;
};
struct Path {
  std::string Config::*field;
  size_t max;
};
struct Mode {
  uint32_t Config::*field;
};
struct Level {};
struct Target {};
struct Kind {};

struct Key {
  std::string_view path;
  std::variant<Size, Duration, Count, Text, Path, Mode, Level, Target, Kind> value;
};

inline constexpr std::string_view kLevels[] = {"trace", "debug", "info", "warning", "error"};
inline constexpr std::string_view kTargets[] = {"auto", "stderr", "journal"};
inline constexpr std::string_view kKinds[] = {"none", "emulated", "cuda"};

// In the order of the documented file. Thread: any.
const std::vector<Key>& keys();

}  // namespace skv::config
