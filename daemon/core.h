#pragma once

#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "daemon/config.h"
#include "daemon/data/data_thread.h"
#include "daemon/directory.h"
#include "daemon/feeds.h"
#include "daemon/lease_maps.h"
#include "daemon/loop.h"
#include "daemon/placement.h"
#include "daemon/reply.h"
#include "daemon/session.h"
#include "daemon/shared_directories.h"
#include "daemon/tasks.h"
#include "tiers/host_store.h"
#include "tiers/nvme_store.h"

namespace skv {

// What the verb handlers work on: the parts of the daemon and the sessions' tables, without sockets
// and threads. Daemon (daemon.h) owns one and connects it to the world.
//
// Thread  loop.
struct Core {
  struct Parts {
    const Config* config = nullptr;
    Loop* loop = nullptr;
    Directory* directory = nullptr;
    HostStore* host = nullptr;
    NvmeStore* nvme = nullptr;  // null: no NVMe tier
    Placement* placement = nullptr;
    DataPort* data = nullptr;
    Feeds* feeds = nullptr;
    LeaseMaps* lease_maps = nullptr;
    Tasks* tasks = nullptr;
  };
  explicit Core(const Parts& parts);
  ~Core() { directory.set_edge_mirror(nullptr); }
  Core(const Core&) = delete;
  Core& operator=(const Core&) = delete;

  const Config& config;
  Loop& loop;
  Directory& directory;
  HostStore& host;
  NvmeStore* nvme;
  Placement& placement;
  DataPort& data;
  Feeds& feeds;
  LeaseMaps& lease_maps;
  Tasks& tasks;
  SharedDirectories shared_directories;

  // Of hello's reply.
  std::array<uint8_t, 16> instance{};
  std::array<uint8_t, 16> boot_id{};
  std::string device_kind = "none";
  std::array<uint8_t, 16> device_uuid{};

  uint64_t started_ns = 0;
  bool data_answered = true;  // the last Ping was
  bool draining = false;      // only what ends things is served
  std::string health = "starting";

  struct Counters {
    uint64_t sessions_total = 0;
    uint64_t sessions_refused = 0;
    uint64_t requests = 0;
    uint64_t errors = 0;
    uint64_t protocol_errors = 0;
    uint64_t slow_readers = 0;
    uint64_t charges_left = 0;  // a session ended and something was still charged to it: a bug
    uint64_t windows_lost = 0;
  } counters;

  std::map<SessionId, std::unique_ptr<Session>> sessions;
  Session* find_session(SessionId id);

  // The space of a uid, made on first use: salt, arena, placement, data thread.
  Result<Space*> space_of(uid_t uid);
  const std::map<uid_t, std::unique_ptr<Space>>& spaces() const { return spaces_; }

  // One object per distinct descriptor, while anything uses it.
  std::shared_ptr<const Model> intern(const ModelDescriptor& descriptor,
                                      const std::vector<uint8_t>& encoded);

  // Windows and channels whose answer is on its way.
  std::unordered_map<WindowId, ReplyPtr> windows_opening;
  std::unordered_map<ChannelId, ReplyPtr> channels_opening;
  // Runs when the data thread closed the window.
  std::unordered_map<WindowId, std::function<void()>> windows_closing;

  // Ids are unique over all sessions, so that another session's handle is found in none.
  template <typename Id>
  Id next_id() {
    return Id{static_cast<std::underlying_type_t<Id>>(next_id_++)};
  }

  // An event of the data thread (core_events.cc).
  void handle(DataEvent event);
  // The data thread let go of a session: gives back all it held and forgets it.
  void finish_session(SessionId id);
  // Set by Daemon: closes the session's connection, and hears when a session is gone.
  std::function<void(Session&, const std::string& why)> close_connection;
  std::function<void()> session_ended;
  // Set by Daemon: serves a request that came by a channel as if by the socket.
  std::function<void(ChannelRequest)> serve;
  std::function<DataStatistics()> data_statistics;  // empty numbers in tests without a thread

 private:
  std::map<uid_t, std::unique_ptr<Space>> spaces_;
  std::map<std::vector<uint8_t>, std::weak_ptr<const Model>> models_;
  uint32_t next_id_ = 1;
  uint32_t next_space_ = 1;
};

// 16 random bytes; of the boot.
std::array<uint8_t, 16> random_uuid();
std::array<uint8_t, 16> system_boot_id();
Digest random_digest();

}  // namespace skv
