#include "tests/bench/report.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

namespace skv::bench {
namespace {

// value / limit, or 0 where there is no limit.
double ratio_of(const Figure& figure) {
  return figure.limit != 0 ? figure.value / figure.limit : 0;
}

bool met(const Figure& figure) {
  if (figure.target == 0) return true;
  const double held = figure.limit != 0 ? ratio_of(figure) : figure.value;
  return figure.better == Better::kHigher ? held >= figure.target : held <= figure.target;
}

}  // namespace

Report::Report(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--quick") {
      quick_ = true;
    } else if (argument == "--json" && i + 1 < argc) {
      json_path_ = argv[++i];
    } else {
      rest_.push_back(argument);
    }
  }
}

void Report::add(const Figure& figure) {
  if (figures_.empty()) {
    std::printf("%-22s %-62s %12s %-6s %12s %7s %7s\n", "name", "case", "value", "unit", "limit",
                "ratio", "target");
  }
  std::printf("%-22s %-62s %12.3f %-6s %12.3f %7.3f ", figure.name.c_str(), figure.of.c_str(),
              figure.value, figure.unit.c_str(), figure.limit, ratio_of(figure));
  if (figure.target != 0) {
    std::printf("%s%6.2f%s", figure.better == Better::kHigher ? ">=" : "<=", figure.target,
                met(figure) ? "" : "  missed");
  }
  std::printf("  %s\n", figure.limit_name.c_str());
  std::fflush(stdout);
  figures_.push_back(figure);
}

int Report::finish() const {
  if (json_path_.empty()) return 0;
  nlohmann::json list = nlohmann::json::array();
  for (const Figure& figure : figures_) {
    nlohmann::json entry = {
        {"name", figure.name}, {"case", figure.of}, {"value", figure.value},
        {"unit", figure.unit}, {"limit", nullptr},  {"limit_name", figure.limit_name},
        {"ratio", nullptr},    {"target", nullptr}, {"met", met(figure)}};
    if (figure.limit != 0) {
      entry["limit"] = figure.limit;
      entry["ratio"] = ratio_of(figure);
    }
    if (figure.target != 0) entry["target"] = figure.target;
    list.push_back(entry);
  }
  std::ofstream file(json_path_);
  file << list.dump(1) << '\n';
  file.close();
  if (!file) std::fprintf(stderr, "cannot write %s\n", json_path_.c_str());
  return file ? 0 : 1;
}

double quantile(std::vector<double>& values, double q) {
  std::sort(values.begin(), values.end());
  const auto at = static_cast<size_t>(q * static_cast<double>(values.size() - 1) + 0.5);
  return values[at];
}

double median(std::vector<double>& values) { return quantile(values, 0.5); }

double now() {
  const auto since = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(since).count();
}

uint64_t l3_bytes() {
  // "32768K". The C library multiplies by the cores of a socket, which virtual machines make up.
  std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index3/size");
  uint64_t kib = 0;
  if (file >> kib && kib != 0) return kib << 10;
  const long bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
  return bytes > 0 ? static_cast<uint64_t>(bytes) : uint64_t{32} << 20;
}

}  // namespace skv::bench
