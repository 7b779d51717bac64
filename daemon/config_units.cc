#include <array>
#include <charconv>
#include <limits>

#include "daemon/config.h"

namespace skv {
namespace {

struct Unit {
  std::string_view name;
  uint64_t factor;
};

constexpr std::array<Unit, 5> kSizeUnits{
    {{"TiB", 1ULL << 40}, {"GiB", 1ULL << 30}, {"MiB", 1ULL << 20}, {"KiB", 1ULL << 10}, {"B", 1}}};
constexpr std::array<Unit, 6> kTimeUnits{{{"h", 3'600'000'000'000ULL},
                                          {"min", 60'000'000'000ULL},
                                          {"s", 1'000'000'000ULL},
                                          {"ms", 1'000'000ULL},
                                          {"us", 1'000ULL},
                                          {"ns", 1}}};

template <size_t N>
Result<uint64_t> parse_number(std::string_view text,
                              const std::array<Unit, N>& units,
                              bool unit_optional,
                              const char* kind) {
  uint64_t number = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), number);
  std::string_view rest(parsed.ptr, text.size() - static_cast<size_t>(parsed.ptr - text.data()));
  while (!rest.empty() && rest.front() == ' ') {
    rest.remove_prefix(1);
  }
  if (parsed.ec == std::errc()) {
    if (rest.empty() && unit_optional) {
      return number;
    }
    for (const Unit& unit : units) {
      if (rest == unit.name && number <= std::numeric_limits<uint64_t>::max() / unit.factor) {
        return number * unit.factor;
      }
    }
  }
  return Error{ErrorCode::kInvalidArgument, "\"" + std::string(text) + "\" is not a " + kind};
}

template <size_t N>
std::string unit_text(uint64_t value, const std::array<Unit, N>& units) {
  for (const Unit& unit : units) {
    if (value != 0 && value % unit.factor == 0) {
      return std::to_string(value / unit.factor) + std::string(unit.name);
    }
  }
  return "0" + std::string(units.back().name);
}

}  // namespace

Result<uint64_t> parse_size(std::string_view text) {
  return parse_number(text, kSizeUnits, /*unit_optional=*/true, "size");
}

Result<uint64_t> parse_duration(std::string_view text) {
  return parse_number(text, kTimeUnits, /*unit_optional=*/false, "duration");
}

std::string size_text(uint64_t bytes) { return unit_text(bytes, kSizeUnits); }
std::string duration_text(uint64_t duration_ns) { return unit_text(duration_ns, kTimeUnits); }

const char* name(DeviceKind kind) {
  switch (kind) {
    case DeviceKind::kNone:
      return "none";
    case DeviceKind::kEmulated:
      return "emulated";
    case DeviceKind::kCuda:
      return "cuda";
  }
  return "none";
}

}  // namespace skv
