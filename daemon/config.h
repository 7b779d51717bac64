#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "ipc/types/result.h"

namespace skv {

enum class DeviceKind : uint8_t { kNone = 0, kEmulated = 1, kCuda = 2 };
enum class LogTarget : uint8_t { kAuto = 0, kStderr = 1, kJournal = 2 };

const char* name(DeviceKind kind);

// The daemon's configuration: what systemd/skvd.toml documents key by key.
//
// Units   bytes and nanoseconds, as the names say; counts are plain.
// Limits  every key has a range; load_config refuses what is outside, and what does not fit
// together. Thread  read once at start-up, immutable afterwards.
struct Config {
  std::string socket_path = "/run/skvd/skvd.sock";
  uint32_t socket_mode = 0660;
  std::string socket_group;  // empty: the process's own

  std::string log_level = "info";
  LogTarget log_target = LogTarget::kAuto;

  uint64_t host_budget_bytes = 1ULL << 30;
  uint64_t host_slab_bytes = 2ULL << 20;
  uint64_t host_warm_bytes = 64ULL << 20;  // at most an eighth of the budget is used
  // Pages of vectors of open contexts, per space, sparse; 0: as host_budget_bytes, at least 256
  // MiB.
  uint64_t host_vectors_bytes = 0;

  std::string nvme_path;  // empty: no NVMe tier
  uint64_t nvme_bytes = 0;
  uint64_t nvme_segment_bytes = 64ULL << 20;

  DeviceKind device_kind = DeviceKind::kNone;
  uint64_t device_budget_bytes = 256ULL << 20;
  std::string device_uuid;
  uint32_t device_copy_threads = 0;  // 0: a quarter of the cores, 1 to 8

  uint64_t data_spin_ns = 20'000;
  uint32_t data_spin_cores = 3;
  uint32_t data_recall_every = 4096;  // coarse rankings per one that is checked; 0: none

  uint64_t shared_directory_bytes = 64ULL << 20;  // of one space

  uint32_t sessions_max = 128;
  uint32_t session_contexts_max = 64;
  uint32_t session_windows_max = 64;  // SKV_PREFETCH_ROWS_MAX rows of a batch
  uint32_t session_memories_max = 64;
  uint32_t session_channels_max = 64;
  uint32_t session_requests_max = 256;
  uint32_t session_leases_max = 1024;
  uint32_t session_send_queue = 512;  // replies
  uint64_t session_memory_bytes = 64ULL << 30;
  uint64_t session_staging_bytes = 4ULL << 20;
  uint64_t session_in_place_bytes = 0;  // 0: in_place_bytes() decides
  uint32_t session_context_tokens_max = 1U << 20;

  uint64_t reply_deadline_ns = 30'000'000'000ULL;
  uint64_t load_deadline_ns = 10'000'000'000ULL;
  uint64_t reserve_deadline_ns = 10'000'000'000ULL;
  uint64_t wait_deadline_ns = 1'000'000'000ULL;
  uint64_t drain_deadline_ns = 10'000'000'000ULL;

  uint64_t in_place_bytes() const {
    return session_in_place_bytes > 0 ? session_in_place_bytes : host_budget_bytes / 2;
  }
  bool has_nvme() const { return !nvme_path.empty(); }
  bool deadlines_exceed_reply() const;  // a verb may outlast what clients wait for
};

// One wrong key or value. `line` is 1-based, 0 where the file as a whole is meant.
struct ConfigError {
  std::string file;
  uint32_t line = 0;
  std::string key;
  std::string message;

  std::string text() const;  // "FILE:LINE: KEY: MESSAGE"
};

struct LoadedConfig {
  Config config;
  std::vector<ConfigError> errors;  // all that is wrong, in file order; empty: usable
};

// Reads a TOML file. Never throws: what toml++ reports comes back as an error like every other.
LoadedConfig load_config(const std::string& path);
LoadedConfig parse_config(std::string_view text, const std::string& file);

// "64GiB", "4096", "512 KiB" -> bytes; "2ms", "500us", "1min" -> nanoseconds.
Result<uint64_t> parse_size(std::string_view text);
Result<uint64_t> parse_duration(std::string_view text);
std::string size_text(uint64_t bytes);  // exact, in the largest unit that divides it
std::string duration_text(uint64_t duration_ns);

// Every key with its value in TOML, in the order of the file (skvd --print-config).
std::string print_config(const Config& config);
// Every known key, dotted.
std::vector<std::string> config_keys();

}  // namespace skv
