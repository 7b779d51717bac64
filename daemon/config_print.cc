#include <cstddef>
#include <string>
#include <variant>
#include <vector>

#include "daemon/config_keys.h"

namespace skv {

using namespace config;  // the kinds of values

std::vector<std::string> config_keys() {
  std::vector<std::string> names;
  for (const Key& key : keys()) {
    names.emplace_back(key.path);
  }
  return names;
}

namespace {

// One value as the file would say it.
struct Print {
  const Config& config;

  static std::string quoted(std::string_view text) { return "\"" + std::string(text) + "\""; }
  std::string operator()(const Size& size) const { return quoted(size_text(config.*size.field)); }
  std::string operator()(const Duration& duration) const {
    return quoted(duration_text(config.*duration.field));
  }
  std::string operator()(const Count& count) const { return std::to_string(config.*count.field); }
  std::string operator()(const Text& text) const { return quoted(config.*text.field); }
  std::string operator()(const Path& path) const { return quoted(config.*path.field); }
  std::string operator()(const Mode& mode) const {
    std::string digits(4, '0');
    uint32_t bits = config.*mode.field;
    for (size_t i = 4; i-- > 1; bits /= 8) {
      digits[i] = static_cast<char>('0' + bits % 8);
    }
    return quoted(digits);
  }
  std::string operator()(const Level&) const { return quoted(config.log_level); }
  std::string operator()(const Target&) const {
    return quoted(kTargets[static_cast<size_t>(config.log_target)]);
  }
  std::string operator()(const Kind&) const { return quoted(name(config.device_kind)); }
};

}  // namespace

std::string print_config(const Config& config) {
  std::string text;
  std::string section;
  for (const Key& key : keys()) {
    const size_t dot = key.path.rfind('.');
    const std::string in(key.path.substr(0, dot));
    if (in == "tiers.nvme" && !config.has_nvme()) {
      continue;  // no NVMe tier is said by leaving the section out
    }
    if (in != section) {
      text += (section.empty() ? "[" : "\n[") + in + "]\n";
      section = in;
    }
    text +=
        std::string(key.path.substr(dot + 1)) + " = " + std::visit(Print{config}, key.value) + "\n";
  }
  return text;
}

}  // namespace skv
