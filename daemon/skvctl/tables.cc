#include "daemon/skvctl/tables.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <vector>

namespace skv {
namespace {

using nlohmann::json;

// The value at a JSON pointer, or null.
const json& at(const json& object, const char* pointer) {
  static const json kNull;
  const json::json_pointer path(pointer);
  return object.contains(path) ? object.at(path) : kNull;
}

std::string text(const json& value) {
  if (value.is_string()) {
    return value.get<std::string>();
  }
  if (value.is_number_unsigned() || value.is_number_integer()) {
    return std::to_string(value.get<int64_t>());
  }
  return "-";
}

std::string bytes_text(const json& value) {
  return value.is_number_unsigned() ? human_bytes(value.get<uint64_t>()) : "-";
}

std::string used(const json& used_bytes, const json& budget_bytes) {
  std::string line = bytes_text(used_bytes) + " of " + bytes_text(budget_bytes);
  if (used_bytes.is_number_unsigned() && budget_bytes.is_number_unsigned() &&
      budget_bytes.get<uint64_t>() != 0) {
    std::array<char, 16> percent{};
    std::snprintf(percent.data(), percent.size(), " (%.1f %%)",
                  100.0 * static_cast<double>(used_bytes.get<uint64_t>()) /
                      static_cast<double>(budget_bytes.get<uint64_t>()));
    line += percent.data();
  }
  return line;
}

struct Row {
  std::string name;
  std::string value;
};

// What share of a full scan's choices the coarse stage led to.
std::string recall_text(const json& found, const json& wanted, const json& rankings) {
  if (!found.is_number() || !wanted.is_number() || wanted.get<double>() <= 0) return "not seen yet";
  std::array<char, 96> line{};
  std::snprintf(line.data(), line.size(), "%.3f of the blocks that a full scan chooses, in ",
                found.get<double>() / wanted.get<double>());
  return line.data() + text(rankings) + " rankings";
}

std::string rows_text(const std::vector<Row>& rows) {
  size_t width = 0;
  for (const Row& row : rows) {
    width = std::max(width, row.name.size());
  }
  std::string out;
  for (const Row& row : rows) {
    out += row.name + std::string(width - row.name.size() + 2, ' ') + row.value + "\n";
  }
  return out;
}

}  // namespace

std::string human_bytes(uint64_t bytes) {
  constexpr std::array<const char*, 5> kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024.0 && unit + 1 < kUnits.size()) {
    value /= 1024.0;
    ++unit;
  }
  std::array<char, 32> out{};
  std::snprintf(out.data(), out.size(), unit == 0 ? "%.0f %s" : "%.1f %s", value, kUnits[unit]);
  return out.data();
}

std::string human_seconds(uint64_t seconds) {
  if (seconds >= 86400) {
    return std::to_string(seconds / 86400) + " d " + std::to_string(seconds % 86400 / 3600) + " h";
  }
  if (seconds >= 3600) {
    return std::to_string(seconds / 3600) + " h " + std::to_string(seconds % 3600 / 60) + " min";
  }
  if (seconds >= 60) {
    return std::to_string(seconds / 60) + " min " + std::to_string(seconds % 60) + " s";
  }
  return std::to_string(seconds) + " s";
}

std::string status_table(const json& status) {
  const auto get = [&](const char* pointer) -> const json& { return at(status, pointer); };
  const json& uptime = get("/daemon/uptime_s");
  std::vector<Row> rows;
  rows.push_back(
      {"health", text(get("/daemon/health")) + ", skvd " + text(get("/daemon/version")) + ", up " +
                     (uptime.is_number_unsigned() ? human_seconds(uptime.get<uint64_t>()) : "-")});
  rows.push_back({"tier device", text(get("/tiers/device/kind")) == "none"
                                     ? "none"
                                     : text(get("/tiers/device/kind")) + ", " +
                                           used(get("/tiers/device/used_bytes"),
                                                get("/tiers/device/budget_bytes"))});
  rows.push_back(
      {"tier host", used(get("/tiers/host/charged_bytes"), get("/tiers/host/budget_bytes"))});
  rows.push_back(
      {"tier nvme", get("/tiers/nvme").is_null()
                        ? "none"
                        : used(get("/tiers/nvme/used_bytes"), get("/tiers/nvme/budget_bytes")) +
                              ", " + text(get("/tiers/nvme/backend"))});
  if (!get("/tiers/nvme").is_null()) {
    rows.push_back({"nvme records", text(get("/tiers/nvme/recovered")) + " recovered, " +
                                        text(get("/tiers/nvme/skipped")) + " skipped, " +
                                        text(get("/tiers/nvme/corrupt")) + " corrupt, " +
                                        text(get("/tiers/nvme/io_errors")) + " I/O errors"});
  }
  rows.push_back({"sentences", text(get("/directory/sentences"))});
  rows.push_back(
      {"sessions", text(get("/sessions/open")) + " open, " + text(get("/sessions/contexts")) +
                       " contexts, " + text(get("/sessions/windows")) + " windows, " +
                       text(get("/sessions/requests_in_flight")) + " requests in flight"});
  rows.push_back({"prefetches", text(get("/prefetch/count")) + ", p50 " +
                                    text(get("/prefetch/us_p50")) + " us, p99 " +
                                    text(get("/prefetch/us_p99")) + " us"});
  rows.push_back({"hits (blocks)", "device " + text(get("/prefetch/hits/device")) + ", host " +
                                       text(get("/prefetch/hits/host")) + ", nvme " +
                                       text(get("/prefetch/hits/nvme")) + ", miss " +
                                       text(get("/prefetch/hits/miss"))});
  rows.push_back({"read ahead", text(get("/prefetch/read_ahead/asked")) + " chunks asked, " +
                                    text(get("/prefetch/read_ahead/used")) + " used, " +
                                    text(get("/prefetch/read_ahead/late")) + " late, " +
                                    text(get("/prefetch/read_ahead/wasted")) + " wasted"});
  rows.push_back(
      {"recall", recall_text(get("/prefetch/recall/found"), get("/prefetch/recall/wanted"),
                             get("/prefetch/recall/rankings"))});
  rows.push_back({"moved", bytes_text(get("/prefetch/bytes_moved")) + " to windows, " +
                               bytes_text(get("/placement/promoted_bytes")) + " promoted, " +
                               bytes_text(get("/placement/demoted_bytes")) + " demoted"});
  rows.push_back({"evictions", "host " + text(get("/placement/evictions_host")) + ", nvme " +
                                   text(get("/placement/evictions_nvme")) + ", corrupt " +
                                   text(get("/placement/evictions_corrupt"))});
  return rows_text(rows);
}

std::string contexts_table(const json& contexts) {
  if (!contexts.is_array() || contexts.empty()) {
    return "no contexts\n";
  }
  constexpr std::array<const char*, 9> kKeys = {
      "context", "session", "pid", "tokens", "sentences", "stored", "covered", "windows", "name"};
  std::vector<std::vector<std::string>> lines;
  lines.emplace_back(kKeys.begin(), kKeys.end());
  for (const json& context : contexts) {
    std::vector<std::string> line;
    line.reserve(kKeys.size());
    for (const char* key : kKeys) {
      line.push_back(context.contains(key) ? text(context.at(key)) : "-");
    }
    lines.push_back(std::move(line));
  }
  std::array<size_t, kKeys.size()> widths{};
  for (const auto& line : lines) {
    for (size_t i = 0; i < line.size(); ++i) {
      widths[i] = std::max(widths[i], line[i].size());
    }
  }
  std::string out;
  for (const auto& line : lines) {
    for (size_t i = 0; i < line.size(); ++i) {
      const std::string pad(widths[i] - line[i].size(), ' ');
      out += i + 1 == line.size() ? line[i] + "\n" : pad + line[i] + "  ";  // numbers right
    }
  }
  return out;
}

}  // namespace skv
