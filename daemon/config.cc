#include <algorithm>
#include <bit>
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>
#include <variant>

#include "daemon/config_keys.h"

// Parse errors come back as values: nothing here throws.
#define TOML_EXCEPTIONS 0
#define TOML_HEADER_ONLY 1
#include <toml++/toml.h>

namespace skv {

using namespace config;  // the kinds of values

namespace {

template <size_t N>
std::string choices_text(const std::string_view (&choices)[N]) {
  std::string text = "allowed: ";
  for (size_t i = 0; i < N; ++i) {
    text += (i == 0 ? "\"" : ", \"") + std::string(choices[i]) + "\"";
  }
  return text;
}

// The index of `value` among the choices, or -1.
template <size_t N>
int choice_of(const std::string_view (&choices)[N], std::string_view value) {
  const auto* const found = std::find(std::begin(choices), std::end(choices), value);
  return found == std::end(choices) ? -1 : static_cast<int>(found - std::begin(choices));
}

std::string shown(const toml::node& node) {
  std::ostringstream out;
  if (const auto* text = node.as_string()) {
    out << '"' << text->get() << '"';
  } else if (const auto* integer = node.as_integer()) {
    out << integer->get();
  } else if (const auto* number = node.as_floating_point()) {
    out << number->get();
  } else if (const auto* truth = node.as_boolean()) {
    out << (truth->get() ? "true" : "false");
  } else {
    out << "a value of type "
        << toml::impl::node_type_friendly_names[static_cast<int>(node.type())];
  }
  return out.str();
}

// Sets one key from one node, or says what is wrong with it ("" where nothing is).
struct Apply {
  const toml::node& node;
  Config& config;

  static std::string range(const Size& size) {
    return "allowed: " + size_text(size.min) + " to " + size_text(size.max) +
           ", as bytes or a string in KiB, MiB, GiB, TiB";
  }
  static std::string range(const Duration& duration) {
    return "allowed: " + duration_text(duration.min_ns) + " to " + duration_text(duration.max_ns) +
           ", as a string in ns, us, ms, s, min, h";
  }

  std::string operator()(const Size& size) const {
    Result<uint64_t> value = Error{ErrorCode::kInvalidArgument, shown(node) + " is not a size"};
    if (const auto* text = node.as_string()) {
      value = parse_size(text->get());
    } else if (const auto* integer = node.as_integer(); integer != nullptr && integer->get() >= 0) {
      value = static_cast<uint64_t>(integer->get());
    }
    if (!value.ok()) {
      return value.error().message + "; " + range(size);
    }
    if (value.value() < size.min || value.value() > size.max) {
      return shown(node) + " is out of range; " + range(size);
    }
    config.*size.field = value.value();
    return "";
  }

  std::string operator()(const Duration& duration) const {
    Result<uint64_t> value = Error{ErrorCode::kInvalidArgument, shown(node) + " is not a duration"};
    if (const auto* text = node.as_string()) {
      value = parse_duration(text->get());
    }
    if (!value.ok()) {
      return value.error().message + "; " + range(duration);
    }
    if (value.value() < duration.min_ns || value.value() > duration.max_ns) {
      return shown(node) + " is out of range; " + range(duration);
    }
    config.*duration.field = value.value();
    return "";
  }

  std::string operator()(const Count& count) const {
    const std::string allowed = "; allowed: an integer from " + std::to_string(count.min) + " to " +
                                std::to_string(count.max);
    const auto* integer = node.as_integer();
    if (integer == nullptr) {
      return shown(node) + " is not an integer" + allowed;
    }
    if (integer->get() < static_cast<int64_t>(count.min) ||
        integer->get() > static_cast<int64_t>(count.max)) {
      return shown(node) + " is out of range" + allowed;
    }
    config.*count.field = static_cast<uint32_t>(integer->get());
    return "";
  }

  std::string operator()(const Text& text) const {
    const auto* string = node.as_string();
    if (string == nullptr || string->get().size() > text.max) {
      return shown(node) + " is not a string of up to " + std::to_string(text.max) +
             " bytes; allowed: such a string";
    }
    config.*text.field = string->get();
    return "";
  }

  std::string operator()(const Path& path) const {
    const auto* string = node.as_string();
    if (string == nullptr || string->get().empty() || string->get()[0] != '/' ||
        string->get().size() > path.max) {
      return shown(node) + " is not a path; allowed: an absolute path of up to " +
             std::to_string(path.max) + " bytes";
    }
    config.*path.field = string->get();
    return "";
  }

  std::string operator()(const Mode& mode) const {
    const std::string allowed = "; allowed: a string of octal digits from \"0600\" to \"0777\"";
    const auto* string = node.as_string();
    const std::string_view digits = string == nullptr ? "" : std::string_view(string->get());
    if (digits.size() != 4 || digits[0] != '0' ||
        !std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '7'; })) {
      return shown(node) + " is not a mode" + allowed;
    }
    uint32_t bits = 0;
    for (const char digit : digits) {
      bits = bits * 8 + static_cast<uint32_t>(digit - '0');
    }
    if ((bits & 0600U) != 0600U) {
      return shown(node) + " keeps the owner out" + allowed;
    }
    config.*mode.field = bits;
    return "";
  }

  template <size_t N>
  int choose(const std::string_view (&choices)[N], std::string& why) const {
    const auto* string = node.as_string();
    const int index = string == nullptr ? -1 : choice_of(choices, string->get());
    if (index < 0) {
      why = shown(node) + " is unknown; " + choices_text(choices);
    }
    return index;
  }
  std::string operator()(const Level&) const {
    std::string why;
    if (const int index = choose(kLevels, why); index >= 0) {
      config.log_level = kLevels[index];
    }
    return why;
  }
  std::string operator()(const Target&) const {
    std::string why;
    if (const int index = choose(kTargets, why); index >= 0) {
      config.log_target = static_cast<LogTarget>(index);
    }
    return why;
  }
  std::string operator()(const Kind&) const {
    std::string why;
    if (const int index = choose(kKinds, why); index >= 0) {
      config.device_kind = static_cast<DeviceKind>(index);
    }
    return why;
  }
};

class Reader {
 public:
  Reader(const std::string& file, LoadedConfig& out) : file_(file), out_(out) {}

  void read(const toml::table& table, const std::string& prefix) {
    for (auto&& [key, node] : table) {
      const std::string path =
          prefix.empty() ? std::string(key.str()) : prefix + "." + std::string(key.str());
      const uint32_t line = key.source().begin.line;
      const auto known = std::find_if(keys().begin(), keys().end(),
                                      [&](const Key& candidate) { return candidate.path == path; });
      if (known != keys().end()) {
        line_of_[path] = line;
        const std::string why = std::visit(Apply{node, out_.config}, known->value);
        if (!why.empty()) {
          wrong(line, path, why);
          refused_ = true;
        }
      } else if (!is_section(path)) {
        wrong(line, path, "unknown key; " + siblings(prefix));
      } else if (const auto* section = node.as_table()) {
        line_of_[path] = line;
        read(*section, path);
      } else {
        wrong(line, path, shown(node) + " is not a table; " + siblings(path));
      }
    }
  }

  // What single keys cannot say. Only asked where every single value was right: a message about two
  // values of which one is wrong anyway would not help.
  void check_together() {
    Config& config = out_.config;
    if (refused_) {
      return;
    }
    if (!std::has_single_bit(config.host_slab_bytes)) {
      wrong_key("tiers.host.slab", size_text(config.host_slab_bytes) +
                                       " is not a power of two; allowed: 64KiB, "
                                       "128KiB ... 256MiB");
    }
    if (config.host_slab_bytes > config.host_budget_bytes / 8) {
      wrong_key("tiers.host.slab", size_text(config.host_slab_bytes) +
                                       " is more than an eighth of tiers.host.budget; "
                                       "allowed: up to " +
                                       size_text(config.host_budget_bytes / 8));
    }
    if (config.host_budget_bytes % config.host_slab_bytes != 0) {
      wrong_key("tiers.host.budget", size_text(config.host_budget_bytes) +
                                         " is not a multiple of tiers.host.slab; "
                                         "allowed: multiples of " +
                                         size_text(config.host_slab_bytes));
    }
    const bool nvme_touched = line_of_.contains("tiers.nvme");
    if (nvme_touched && config.nvme_path.empty()) {
      wrong_key("tiers.nvme.path",
                "is missing; allowed: an absolute path (without [tiers.nvme] "
                "there is no NVMe tier)");
    }
    if (nvme_touched && !line_of_.contains("tiers.nvme.size")) {
      wrong_key("tiers.nvme.size", "is missing; allowed: 4MiB to 1024TiB");
    } else if (nvme_touched && config.nvme_bytes < 4 * config.nvme_segment_bytes) {
      wrong_key("tiers.nvme.size", size_text(config.nvme_bytes) +
                                       " is less than 4 segments; allowed: from " +
                                       size_text(4 * config.nvme_segment_bytes));
    }
    if (nvme_touched && !std::has_single_bit(config.nvme_segment_bytes)) {
      wrong_key("tiers.nvme.segment", size_text(config.nvme_segment_bytes) +
                                          " is not a power of two; allowed: 1MiB, "
                                          "2MiB ... 256MiB");
    }
    if (config.device_kind != DeviceKind::kCuda && !config.device_uuid.empty() &&
        config.device_kind == DeviceKind::kNone) {
      wrong_key("tiers.device.uuid",
                "is set although tiers.device.kind is \"none\"; allowed: with \"emulated\" or "
                "\"cuda\"");
    }
    if (config.deadlines_exceed_reply()) {
      wrong_key("deadlines.reply",
                duration_text(config.reply_deadline_ns) +
                    " is less than the longest of "
                    "deadlines.load and deadlines.reserve; allowed: from " +
                    duration_text(std::max(config.load_deadline_ns, config.reserve_deadline_ns)));
    }
  }

 private:
  static bool is_section(const std::string& path) {
    return std::any_of(keys().begin(), keys().end(), [&](const Key& key) {
      return key.path.size() > path.size() && key.path.substr(0, path.size()) == path &&
             key.path[path.size()] == '.';
    });
  }

  // "allowed in [tiers.host]: budget, slab".
  static std::string siblings(const std::string& prefix) {
    std::vector<std::string> names;
    const size_t skip = prefix.empty() ? 0 : prefix.size() + 1;
    for (const Key& key : keys()) {
      if (prefix.empty() ||
          (key.path.size() > skip && key.path.substr(0, prefix.size()) == prefix &&
           key.path[prefix.size()] == '.')) {
        const std::string_view rest = key.path.substr(skip);
        const std::string name(rest.substr(0, rest.find('.')));
        if (std::find(names.begin(), names.end(), name) == names.end()) {
          names.push_back(name);
        }
      }
    }
    std::string text = prefix.empty() ? "allowed at the top: " : "allowed in [" + prefix + "]: ";
    for (size_t i = 0; i < names.size(); ++i) {
      text += (i == 0 ? "" : ", ") + names[i];
    }
    return text;
  }

  void wrong(uint32_t line, const std::string& key, const std::string& message) {
    out_.errors.push_back({file_, line, key, message});
  }

  // The line of the key, else of its section, else of the file.
  void wrong_key(const std::string& key, const std::string& message) {
    uint32_t line = 1;
    for (std::string path = key; !path.empty();
         path.resize(path.rfind('.') == std::string::npos ? 0 : path.rfind('.'))) {
      if (const auto found = line_of_.find(path); found != line_of_.end()) {
        line = found->second;
        break;
      }
    }
    wrong(line, key, message);
  }

  const std::string& file_;
  LoadedConfig& out_;
  std::map<std::string, uint32_t> line_of_;
  bool refused_ = false;
};

}  // namespace

bool Config::deadlines_exceed_reply() const {
  return std::max(load_deadline_ns, reserve_deadline_ns) > reply_deadline_ns;
}

std::string ConfigError::text() const {
  std::string text = file;
  if (line != 0) {
    text += ":" + std::to_string(line);
  }
  text += ": ";
  if (!key.empty()) {
    text += key + ": ";
  }
  return text + message;
}

LoadedConfig parse_config(std::string_view text, const std::string& file) {
  LoadedConfig out;
  const toml::parse_result parsed = toml::parse(text, file);
  if (!parsed) {
    const toml::parse_error& error = parsed.error();
    out.errors.push_back({file, error.source().begin.line, "", std::string(error.description())});
    return out;
  }
  Reader reader(file, out);
  reader.read(parsed.table(), "");
  reader.check_together();
  std::stable_sort(out.errors.begin(), out.errors.end(),
                   [](const ConfigError& a, const ConfigError& b) { return a.line < b.line; });
  return out;
}

LoadedConfig load_config(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  if (!in.is_open() || in.bad()) {
    LoadedConfig out;
    out.errors.push_back({path, 0, "", "cannot be read; --config names a readable TOML file"});
    return out;
  }
  return parse_config(text, path);
}

}  // namespace skv
