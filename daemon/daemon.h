#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "daemon/config.h"
#include "daemon/core.h"
#include "daemon/data/data_thread.h"
#include "daemon/directory.h"
#include "daemon/feeds.h"
#include "daemon/lease_maps.h"
#include "daemon/loop.h"
#include "daemon/placement.h"
#include "daemon/server.h"
#include "daemon/service_manager.h"
#include "daemon/tasks.h"
#include "tiers/host_store.h"
#include "tiers/nvme_store.h"

namespace skv {

// The process: opens the tiers, starts the data thread, listens, and on SIGTERM or SIGINT drains.
//
// Drain   the gate closes (no new sessions, no new work), clients are told to go away, what is in
//         flight ends within deadlines.drain, connections close, what is not on NVMe is written
//         there and flushed within the same deadline again; then the process ends with 0. Killing
//         it at any point is safe: what was flushed before is found again.
// Thread  the loop thread makes, runs and destroys it.
// Owns    every part, and takes them down in the reverse order.
class Daemon {
 public:
  struct Options {
    Config config;
    ServiceManager* manager = nullptr;  // outlives the daemon
    std::string worker_program;         // of the device worker; empty: /proc/self/exe
  };
  // Listens when it returns, and has said READY. Blocks for recovery of the NVMe tier.
  static Result<std::unique_ptr<Daemon>> start(Options options);
  ~Daemon();
  Daemon(const Daemon&) = delete;
  Daemon& operator=(const Daemon&) = delete;

  void run();    // until drained
  void drain();  // as SIGTERM does; again: at once

 private:
  explicit Daemon(Options options);
  Result<void> open_tiers();
  Result<void> open_data();
  Result<void> recover();
  Result<void> listen(UniqueFd lock);
  void watch_signals();

  void accepted(UniqueFd socket);
  void on_frame(SessionId id, Frame& frame);
  void on_request(ChannelRequest request);
  void serve(Session& session, Frame& frame, Reply::Send send);
  void on_closing(SessionId id, const std::string& why, Connection::Cause cause);
  void on_gone(SessionId id);
  void send(SessionId id, std::vector<uint8_t> frame, std::vector<UniqueFd> fds);
  void answered(Session& session, const std::vector<uint8_t>& frame);
  void drain_data();
  void after_work();
  void housekeeping();
  void watchdog();

  enum class DrainStep : uint8_t { kNone, kRequests, kFlush, kDone };
  void drain_next();
  void drain_flush();
  void drain_done(const std::string& how);

  Options options_;
  const Config& config_;
  ServiceManager& manager_;
  Loop loop_;
  std::unique_ptr<HostStore> host_;
  std::unique_ptr<NvmeStore> nvme_;
  std::unique_ptr<Directory> directory_;
  std::unique_ptr<DataThread> data_;
  std::unique_ptr<Feeds> feeds_;
  std::unique_ptr<LeaseMaps> lease_maps_;
  std::unique_ptr<Placement> placement_;
  std::unique_ptr<Tasks> tasks_;
  std::unique_ptr<Core> core_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<AsyncWatch> data_watch_;
  std::unique_ptr<PollWatch> nvme_watch_;
  std::unique_ptr<TimerWatch> placement_timer_;
  std::unique_ptr<TimerWatch> housekeeping_timer_;
  std::unique_ptr<TimerWatch> watchdog_timer_;
  std::unique_ptr<TimerWatch> drain_timer_;
  std::vector<std::unique_ptr<SignalWatch>> signals_;
  std::string status_told_;
  bool placement_timed_ = false;
  bool frames_queued_ = false;
  DrainStep drain_step_ = DrainStep::kNone;
};

}  // namespace skv
