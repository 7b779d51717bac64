#include "daemon/config_keys.h"

namespace skv::config {
namespace {

constexpr uint64_t kKiB = 1ULL << 10;
constexpr uint64_t kMiB = 1ULL << 20;
constexpr uint64_t kGiB = 1ULL << 30;
constexpr uint64_t kTiB = 1ULL << 40;
constexpr uint64_t kMs = 1'000'000ULL;
constexpr uint64_t kS = 1'000 * kMs;
constexpr size_t kSocketPathMax = 107;  // sockaddr_un
constexpr size_t kPathMax = 4095;

}  // namespace

const std::vector<Key>& keys() {
  static const std::vector<Key> kKeys = {
      {"socket.path", Path{&Config::socket_path, kSocketPathMax}},
      {"socket.mode", Mode{&Config::socket_mode}},
      {"socket.group", Text{&Config::socket_group, 32}},
      {"log.level", Level{}},
      {"log.target", Target{}},
      {"tiers.host.budget", Size{&Config::host_budget_bytes, 1 * kMiB, 64 * kTiB}},
      {"tiers.host.slab", Size{&Config::host_slab_bytes, 64 * kKiB, 256 * kMiB}},
      {"tiers.host.warm", Size{&Config::host_warm_bytes, 0, 64 * kTiB}},
      {"tiers.host.vectors", Size{&Config::host_vectors_bytes, 0, 64 * kTiB}},
      {"tiers.nvme.path", Path{&Config::nvme_path, kPathMax}},
      {"tiers.nvme.size", Size{&Config::nvme_bytes, 4 * kMiB, 1024 * kTiB}},
      {"tiers.nvme.segment", Size{&Config::nvme_segment_bytes, 1 * kMiB, 256 * kMiB}},
      {"tiers.device.kind", Kind{}},
      {"tiers.device.budget", Size{&Config::device_budget_bytes, 64 * kKiB, 64 * kTiB}},
      {"tiers.device.copy_threads", Count{&Config::device_copy_threads, 0, 256}},
      {"tiers.device.uuid", Text{&Config::device_uuid, 64}},
      {"data.spin", Duration{&Config::data_spin_ns, 0, 10 * kMs}},
      {"data.spin_cores", Count{&Config::data_spin_cores, 1, 4096}},
      {"data.recall_every", Count{&Config::data_recall_every, 0, 1U << 30}},
      {"directory.shared", Size{&Config::shared_directory_bytes, 64 * kKiB, 64 * kGiB}},
      {"sessions.max", Count{&Config::sessions_max, 1, 65536}},
      {"sessions.contexts", Count{&Config::session_contexts_max, 1, 65536}},
      {"sessions.windows", Count{&Config::session_windows_max, 1, 4096}},
      {"sessions.memories", Count{&Config::session_memories_max, 1, 4096}},
      {"sessions.channels", Count{&Config::session_channels_max, 1, 64}},
      {"sessions.requests", Count{&Config::session_requests_max, 1, 65536}},
      {"sessions.leases", Count{&Config::session_leases_max, 1, 1U << 20}},
      {"sessions.send_queue", Count{&Config::session_send_queue, 8, 65536}},
      {"sessions.memory", Size{&Config::session_memory_bytes, 64 * kKiB, 64 * kTiB}},
      {"sessions.staging", Size{&Config::session_staging_bytes, 64 * kKiB, 1 * kGiB}},
      {"sessions.in_place", Size{&Config::session_in_place_bytes, 0, 64 * kTiB}},
      {"sessions.context_tokens", Count{&Config::session_context_tokens_max, 64, 1U << 30}},
      {"deadlines.reply", Duration{&Config::reply_deadline_ns, 100 * kMs, 3600 * kS}},
      {"deadlines.load", Duration{&Config::load_deadline_ns, 10 * kMs, 3600 * kS}},
      {"deadlines.reserve", Duration{&Config::reserve_deadline_ns, 10 * kMs, 3600 * kS}},
      {"deadlines.wait", Duration{&Config::wait_deadline_ns, 1 * kMs, 3600 * kS}},
      {"deadlines.drain", Duration{&Config::drain_deadline_ns, 100 * kMs, 3600 * kS}},
  };
  return kKeys;
}

}  // namespace skv::config
