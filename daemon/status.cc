#include "daemon/status.h"

#include <sys/resource.h>

#include <algorithm>
#include <utility>

#include "daemon/limits.h"

namespace skv {
namespace {

using nlohmann::json;

const char* state_name(SessionState state) {
  switch (state) {
    case SessionState::kGreeting:
      return "greeting";
    case SessionState::kOpen:
      return "open";
    case SessionState::kClosing:
      return "closing";
    case SessionState::kEnding:
      return "ending";
  }
  return "?";
}

json nvme_json(const Core& core) {
  if (core.nvme == nullptr) {
    return nullptr;
  }
  const NvmeStore::Stats stats = core.nvme->stats();
  return {{"path", core.config.nvme_path},
          {"backend", stats.backend},
          {"direct", stats.direct},
          {"read_only", stats.read_only},
          {"used_bytes", stats.live_bytes},
          {"budget_bytes", stats.capacity_bytes},
          {"sentences", stats.record_count},
          {"segments", stats.segment_count},
          {"segments_clean", stats.clean_segments},
          {"written_bytes", stats.written_bytes},
          {"read_bytes", stats.read_bytes},
          {"copied_bytes", stats.copied_bytes},
          {"corrupt", stats.corrupt_records},
          {"io_errors", stats.io_errors},
          {"recovered", stats.recovered_records},
          {"indexed_segments", stats.indexed_segments},
          {"skipped", stats.skipped_records},
          {"purges", stats.purges}};
}

json placement_json(const Core& core) {
  const PlacementCounters& c = core.placement.counters();
  const PlacementUsage u = core.placement.usage();
  return {{"promotions", c.promotions},
          {"promoted_bytes", c.promoted_bytes},
          {"promotion_failures", c.promotion_failures},
          {"demotions", c.demotions},
          {"demoted_bytes", c.demoted_bytes},
          {"nvme_writes", c.nvme_writes},
          {"nvme_write_failures", c.nvme_write_failures},
          {"evictions_host", c.evictions_host},
          {"evictions_nvme", c.evictions_nvme},
          {"evictions_corrupt", c.evictions_corrupt},
          {"evictions_unreachable", c.evictions_unreachable},
          {"dropped", c.dropped},
          {"host_hits", c.host_hits},
          {"nvme_hits", c.nvme_hits},
          {"chunk_misses", c.chunk_misses},
          {"read_ahead", c.read_ahead},
          {"read_ahead_bytes", c.read_ahead_bytes},
          {"read_ahead_refused", c.read_ahead_refused},
          {"vectors_written", c.vectors_written},
          {"reserves_full", c.reserves_full},
          {"reserve_waits", c.reserve_waits},
          {"recovered", c.recovered},
          {"recovered_unreachable", c.recovered_unreachable},
          {"vectors_bytes", u.vectors_bytes},
          {"chunk_leases", u.chunk_leases},
          {"sentence_leases", u.sentence_leases},
          {"reads_in_flight", u.reads_in_flight},
          {"writes_in_flight", u.writes_in_flight},
          {"waiting", u.waiting}};
}

}  // namespace

json status_json(const Core& core, const DataStatistics& data) {
  const HostStore::Stats host = core.host.stats();
  const SharedDirectories::Usage shared = core.shared_directories.usage();
  const LeaseMaps::Usage maps = core.lease_maps.usage();
  uint64_t contexts = 0;
  uint64_t memories = 0;
  uint64_t memory_bytes = 0;
  uint64_t requests = 0;
  uint64_t loans = 0;
  uint64_t puts = 0;
  for (const auto& [id, session] : core.sessions) {
    contexts += session->contexts.size();
    memories += session->memories.size();
    memory_bytes += session->memory_bytes;
    requests += session->requests_in_flight;
    loans += session->loans.size();
    puts += session->puts.size();
  }
  return {{"daemon",
           {{"version", SKV_VERSION},
            {"health", core.health},
            {"uptime_s", (core.loop.now_ns() - core.started_ns) / 1'000'000'000},
            {"socket", core.config.socket_path}}},
          {"tiers",
           {{"device",
             {{"kind", core.device_kind},
              {"used_bytes", data.device_bytes_used},
              {"budget_bytes", data.device_bytes_budget},
              {"lost", data.devices_lost}}},
            {"host",
             {{"used_bytes", host.used_bytes},
              {"charged_bytes", host.charged_bytes},
              {"peak_bytes", host.peak_charged_bytes},
              {"budget_bytes", host.budget_bytes},
              {"vector_pages_bytes", data.vector_pages_bytes},
              {"extents", host.extents}}},
            {"nvme", nvme_json(core)}}},
          {"directory",
           {{"sentences", core.directory.sentence_count()},
            {"boundaries", core.directory.boundary_count()},
            {"shared_bytes", shared.bytes},
            {"shared_incomplete", shared.incomplete}}},
          {"sessions",
           {{"open", core.sessions.size()},
            {"total", core.counters.sessions_total},
            {"refused", core.counters.sessions_refused},
            {"contexts", contexts},
            {"windows", data.windows},
            {"channels", data.channels},
            {"memories", memories},
            {"memory_bytes", memory_bytes},
            {"loans", loans},
            {"lease_maps", maps.maps},
            {"in_place_bytes", maps.bytes},
            {"in_place_leases", maps.leases},
            {"puts", puts},
            {"requests_in_flight", requests},
            {"charges_left", core.counters.charges_left}}},
          {"requests",
           {{"total", core.counters.requests},
            {"errors", core.counters.errors},
            {"protocol_errors", core.counters.protocol_errors},
            {"slow_readers", core.counters.slow_readers},
            {"tasks", core.tasks.count()},
            {"feeds", core.feeds.count()}}},
          {"prefetch",
           {{"count", data.prefetches},
            {"busy", data.prefetches_busy},
            {"failed", data.prefetches_failed},
            {"us_p50", data.prefetch_us_p50},
            {"us_p99", data.prefetch_us_p99},
            {"us_sum", data.prefetch_us},
            {"rank_us_sum", data.rank_us},
            {"blocks_read", data.blocks_read},
            {"bytes_moved", data.bytes_moved},
            {"hits",
             {{"device", data.hits_device},
              {"host", data.hits_host},
              {"nvme", data.hits_nvme},
              {"miss", data.misses}}},
            {"read_ahead",
             {{"asked", data.read_ahead_asked},
              {"used", data.read_ahead_used},
              {"late", data.read_ahead_late},
              {"wasted", data.read_ahead_wasted}}},
            {"recall",
             {{"rankings", data.recall_rankings},
              {"wanted", data.recall_wanted},
              {"found", data.recall_found}}}}},
          {"copies",
           {{"bytes_put", data.bytes_put},
            {"bytes_loaded", data.bytes_loaded},
            {"bytes_summed_again", data.bytes_summed_again},
            {"tasks", data.tasks}}},
          {"placement", placement_json(core)}};
}

json session_json(const Core& core, const Session& session) {
  const SessionCharge charge = core.placement.charge(session.id);
  const LeaseMaps::Usage maps = core.lease_maps.usage(session.id);
  return {{"session", raw(session.id)},
          {"name", session.name},
          {"state", state_name(session.state)},
          {"pid", session.connection->peer().pid},
          {"uid", session.connection->peer().uid},
          {"space", session.space == nullptr ? 0 : raw(session.space->id)},
          {"open_s", (core.loop.now_ns() - session.opened_ns) / 1'000'000'000},
          {"requests", session.requests_total},
          {"requests_in_flight", session.requests_in_flight},
          {"models", session.models.size()},
          {"contexts", session.contexts.size()},
          {"windows", session.windows.size()},
          {"channels", session.channels.size()},
          {"memories", session.memories.size()},
          {"memory_bytes", session.memory_bytes},
          {"loans", session.loans.size()},
          {"lease_maps", maps.maps},
          {"in_place_bytes", maps.bytes},
          {"in_place_leases", maps.leases},
          {"puts", session.puts.size()},
          {"chunk_leases", charge.chunk_leases},
          {"sentence_leases", charge.sentence_leases},
          {"tasks", core.tasks.count(session.id)},
          {"feeds", core.feeds.count(session.id)}};
}

ContextsPage contexts_json(const Core& core, const Space& space, uint32_t first) {
  ContextsPage page{json::array(), 0};
  uint32_t index = 0;
  for (const auto& [id, session] : core.sessions) {
    if (session->space != &space) {
      continue;
    }
    for (const auto& [context_id, context] : session->contexts) {
      if (index++ < first) {
        continue;
      }
      if (page.contexts.size() >= kStatContextsPage) {
        page.next = index - 1;
        return page;
      }
      const auto windows = std::count_if(
          session->windows.begin(), session->windows.end(),
          [id = context_id](const auto& entry) { return entry.second.context == id; });
      page.contexts.push_back(
          {{"context", raw(context_id)},
           {"session", raw(id)},
           {"name", session->name},
           {"pid", session->connection->peer().pid},
           {"tokens", context->token_count()},
           {"sentences", context->sentence_count()},
           {"stored", context->stored_prefix(core.directory, /*with_vectors=*/false)},
           {"covered", core.feeds.covered(context_id)},
           {"windows", windows}});
    }
  }
  return page;
}

std::vector<std::string> limits_text(const Config& config) {
  const uint64_t sessions = config.sessions_max;
  const uint64_t send = std::min<uint64_t>(
      kSendQueueBytesMax, static_cast<uint64_t>(config.session_send_queue) * kMessageBytesMax);
  const uint64_t descriptors_per_session = kDescriptorsPerSession +
                                           kDescriptorsPerChannel * config.session_channels_max +
                                           kDescriptorsPerMemory * config.session_memories_max +
                                           kDescriptorsPerWindow * config.session_windows_max;
  const uint64_t descriptors = kOwnDescriptors + sessions * descriptors_per_session;
  rlimit files{};
  ::getrlimit(RLIMIT_NOFILE, &files);
  std::vector<std::string> lines;
  lines.push_back(
      "limits: tiers host " + size_text(config.host_budget_bytes) + " in slabs of " +
      size_text(config.host_slab_bytes) +
      " (kept warm: " + size_text(std::min(config.host_warm_bytes, config.host_budget_bytes / 8)) +
      "), nvme " + (config.has_nvme() ? size_text(config.nvme_bytes) : std::string("none")) +
      ", device " + name(config.device_kind) +
      (config.device_kind == DeviceKind::kNone ? std::string()
                                               : " " + size_text(config.device_budget_bytes)));
  lines.push_back("limits: " + std::to_string(sessions) + " sessions x (staging " +
                  size_text(config.session_staging_bytes) + " + send queue " + size_text(send) +
                  ") = " + size_text(sessions * (config.session_staging_bytes + send)) +
                  " at most, touched as used");
  lines.push_back("limits: per session " + std::to_string(config.session_contexts_max) +
                  " contexts, " + std::to_string(config.session_windows_max) + " windows, " +
                  std::to_string(config.session_memories_max) + " memories of " +
                  size_text(config.session_memory_bytes) + ", " +
                  std::to_string(config.session_channels_max) + " channels, " +
                  std::to_string(config.session_requests_max) + " requests, " +
                  std::to_string(config.session_leases_max) + " leases, " +
                  size_text(config.in_place_bytes()) + " leased in place without asking");
  lines.push_back("limits: " + std::to_string(descriptors) +
                  " descriptors if every session used "
                  "all of its limits, the process may open " +
                  std::to_string(files.rlim_cur));
  return lines;
}

}  // namespace skv
