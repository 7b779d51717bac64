#include "daemon/core.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/random.h>

#include <algorithm>
#include <fstream>
#include <utility>

#include "daemon/limits.h"
#include "ipc/os_error.h"

namespace skv {
namespace {

template <size_t N>
std::array<uint8_t, N> random_bytes() {
  std::array<uint8_t, N> bytes{};
  SKV_CHECK(::getrandom(bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(N),
            "the system gives no random bytes");
  return bytes;
}

}  // namespace

std::array<uint8_t, 16> random_uuid() { return random_bytes<16>(); }
Digest random_digest() { return Digest{random_bytes<32>()}; }

std::array<uint8_t, 16> system_boot_id() {
  std::array<uint8_t, 16> id{};
  std::ifstream in("/proc/sys/kernel/random/boot_id");
  std::string text;
  in >> text;
  size_t nibble = 0;
  for (const char c : text) {
    const int value = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
    if (value >= 0 && nibble < 32) {
      id[nibble / 2] = static_cast<uint8_t>(id[nibble / 2] << 4 | value);
      ++nibble;
    }
  }
  return id;
}

Core::Core(const Parts& parts)
    : config(*parts.config),
      loop(*parts.loop),
      directory(*parts.directory),
      host(*parts.host),
      nvme(parts.nvme),
      placement(*parts.placement),
      data(*parts.data),
      feeds(*parts.feeds),
      lease_maps(*parts.lease_maps),
      tasks(*parts.tasks),
      shared_directories(config.shared_directory_bytes),
      instance(random_uuid()),
      boot_id(system_boot_id()),
      started_ns(loop.now_ns()) {
  directory.set_edge_mirror(&shared_directories);
}

Session* Core::find_session(SessionId id) {
  const auto found = sessions.find(id);
  return found == sessions.end() ? nullptr : found->second.get();
}

Result<Space*> Core::space_of(uid_t uid) {
  if (const auto found = spaces_.find(uid); found != spaces_.end()) {
    return found->second.get();
  }
  auto space = std::make_unique<Space>();
  space->id = SpaceId{next_space_++};
  space->uid = uid;
  if (nvme != nullptr) {
    const Result<Digest> salt = nvme->space_salt(uid);
    if (!salt.ok()) {
      return salt.error();
    }
    space->salt = salt.value();
  } else {
    space->salt = random_digest();
  }
  if (const Result<void> added = placement.add_space(space->id, uid, SpaceQuota{}); !added.ok()) {
    return added.error();
  }
  if (const Result<void> shared = shared_directories.add_space(space->id); !shared.ok()) {
    spdlog::warn("space {}: no shared directory, clients have to ask: {}", uid,
                 shared.error().message);
  }
  const Result<HostStore::Arena> arena = host.arena(space->id);
  if (!arena.ok()) {
    return arena.error();
  }
  UniqueFd writable(::fcntl(arena.value().fd, F_DUPFD_CLOEXEC, 3));
  if (!writable.valid()) {
    return os_error("duplicate the arena's descriptor");
  }
  space->arena_read_only_fd = arena.value().read_only_fd;
  space->arena_bytes = arena.value().memory.size();
  const uint64_t vectors_bytes = config.host_vectors_bytes > 0
                                     ? config.host_vectors_bytes
                                     : std::max(config.host_budget_bytes, kVectorPagesBytesMin);
  data.post(MapArena{space->id, std::move(writable), arena.value().memory.data(),
                     arena.value().memory.size(), vectors_bytes});
  return spaces_.emplace(uid, std::move(space)).first->second.get();
}

std::shared_ptr<const Model> Core::intern(const ModelDescriptor& descriptor,
                                          const std::vector<uint8_t>& encoded) {
  std::erase_if(models_, [](const auto& entry) { return entry.second.expired(); });
  std::weak_ptr<const Model>& known = models_[encoded];
  std::shared_ptr<const Model> model = known.lock();
  if (model == nullptr) {
    model = std::make_shared<const Model>(descriptor);
    known = model;
  }
  return model;
}

void Core::finish_session(SessionId id) {
  Session* const session = find_session(id);
  if (session == nullptr) {
    return;
  }
  for (const auto& [lease, chunks] : session->loans) {
    for (const ChunkLease& chunk : chunks) {
      placement.release(chunk);
    }
  }
  session->loans.clear();
  for (const auto& [uid, put] : session->puts) {
    for (const ChunkLease& chunk : put.leases) {
      placement.release(chunk);
    }
  }
  session->puts.clear();
  for (const auto& [uid, chunks] : session->revoked) {
    for (const ChunkLease& chunk : chunks) {
      placement.release(chunk);
    }
  }
  session->revoked.clear();
  for (const std::shared_ptr<Gather>& gather : session->gathers) {
    for (size_t i = 0; i < gather->came.size(); ++i) {
      if (gather->came[i]) {
        placement.release(gather->leases[i]);
      }
    }
  }
  session->gathers.clear();
  tasks.drop(id);
  feeds.session_closed(id);
  lease_maps.session_closed(id);
  for (const auto& [window, state] : session->windows) {
    windows_opening.erase(window);
    windows_closing.erase(window);
  }
  for (const ChannelId channel : session->channels) {
    channels_opening.erase(channel);
  }
  const SessionCharge left = placement.charge(id);
  if (!left.zero() || tasks.count(id) != 0 || feeds.count(id) != 0) {
    ++counters.charges_left;
    spdlog::critical(
        "session {} ended and still holds {} chunk leases, {} sentence leases, {} puts, {} "
        "requests, {} tasks, {} feeds",
        raw(id), left.chunk_leases, left.sentence_leases, left.open_puts, left.requests,
        tasks.count(id), feeds.count(id));
  }
  if (session->space != nullptr) {
    --session->space->sessions;
  }
  spdlog::debug("session {} is gone", raw(id));
  sessions.erase(id);
  if (session_ended) {
    session_ended();
  }
}

}  // namespace skv
