#pragma once

#include <string>
#include <vector>

namespace skv::bench {

// Which side of `target` a ratio has to be on.
enum class Better { kHigher, kLower };

// One figure beside what bounds it, both taken in the same run.
struct Figure {
  std::string name;        // "rank.stream.q4"; docs/performance.md lists them
  std::string of;          // the case: sizes, counts ("200000 x 128 fp16, 8 heads")
  double value = 0;        // median
  std::string unit;        // "GB/s", "us"
  double limit = 0;        // in `unit`, measured in this run; 0: none
  std::string limit_name;  // "streaming read"
  double target = 0;       // of value / limit (of value, where there is no limit); 0: none
  Better better = Better::kHigher;
};

// Collects figures; prints each as a line of a table when it is added; writes them as a JSON list
// of
// {"name", "case", "value", "unit", "limit", "limit_name", "ratio", "target", "met"}.
class Report {
 public:
  // Takes --json FILE and --quick out of the arguments; others stay in `rest`.
  Report(int argc, char** argv);

  bool quick() const { return quick_; }
  const std::vector<std::string>& rest() const { return rest_; }
  void add(const Figure& figure);

  // Writes the file. Returns main's exit code: 0, also where a target is missed; 1: not written.
  int finish() const;

 private:
  bool quick_ = false;
  std::string json_path_;
  std::vector<std::string> rest_;
  std::vector<Figure> figures_;
};

// Requires: !values.empty(). Sorts them.
double median(std::vector<double>& values);
double quantile(std::vector<double>& values, double q);

// Seconds on the monotonic clock.
double now();

// The third cache of this CPU, as the system reports it; 32 MiB where it does not.
uint64_t l3_bytes();

}  // namespace skv::bench
