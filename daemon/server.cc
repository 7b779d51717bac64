#include "daemon/server.h"

#include <fcntl.h>
#include <grp.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <optional>
#include <utility>
#include <vector>

#include "daemon/limits.h"
#include "ipc/os_error.h"
#include "ipc/socket.h"

namespace skv {
namespace {

UniqueFd spare_descriptor() { return UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC)); }

// nullopt: no group was asked for.
Result<std::optional<gid_t>> find_group(const std::string& name) {
  if (name.empty()) {
    return std::optional<gid_t>();
  }
  group entry{};
  group* found = nullptr;
  std::vector<char> buffer(size_t{16} * 1024);
  if (::getgrnam_r(name.c_str(), &entry, buffer.data(), buffer.size(), &found) != 0 ||
      found == nullptr) {
    return Error{ErrorCode::kInvalidArgument,
                 "socket.group \"" + name + "\" is not a group of this machine"};
  }
  return std::optional<gid_t>(found->gr_gid);
}

}  // namespace

Result<UniqueFd> Server::lock(const std::string& socket_path) {
  const std::string path = socket_path + ".lock";
  UniqueFd lock(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!lock.valid()) {
    return os_error("open " + path);
  }
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) {
      return os_error("flock " + path);
    }
    char pid[24] = {};
    const ssize_t got = ::pread(lock.get(), pid, sizeof pid - 1, 0);
    return Error{ErrorCode::kBusy,
                 "another skvd (pid " + std::string(pid, got > 0 ? static_cast<size_t>(got) : 0) +
                     ") serves " + socket_path + "; stop it, or set another socket.path"};
  }
  const std::string pid = std::to_string(::getpid());
  if (::ftruncate(lock.get(), 0) != 0 ||
      ::pwrite(lock.get(), pid.data(), pid.size(), 0) != static_cast<ssize_t>(pid.size())) {
    return os_error("write " + path);
  }
  return lock;
}

Result<std::unique_ptr<Server>> Server::open(Loop& loop,
                                             Options options,
                                             std::function<void(UniqueFd)> accepted) {
  std::unique_ptr<Server> server(new Server(std::move(options), std::move(accepted)));
  const Result<std::optional<gid_t>> group = find_group(server->options_.group);
  if (!group.ok()) {
    return group.error();
  }
  Result<UniqueFd> socket =
      listen_on({server->options_.path, server->options_.mode, kListenBacklog});
  if (!socket.ok()) {
    return socket.error();
  }
  server->socket_ = std::move(socket).value();
  // A process may give its file to a group that it is in; whoever is in it may connect then.
  if (group.value().has_value() &&
      ::chown(server->options_.path.c_str(), static_cast<uid_t>(-1), *group.value()) != 0) {
    return os_error("give " + server->options_.path + " to group " + server->options_.group);
  }
  server->reserve_ = spare_descriptor();
  Server* const self = server.get();
  Result<std::unique_ptr<PollWatch>> watch =
      PollWatch::open(loop, self->socket_.get(), [self](int) { self->accept_some(); });
  if (!watch.ok()) {
    return watch.error();
  }
  self->watch_ = std::move(watch).value();
  self->watch_->watch(UV_READABLE);
  return server;
}

Server::~Server() {
  watch_.reset();
  if (socket_.valid()) {
    ::unlink(options_.path.c_str());
  }
}

void Server::accept_some() {
  for (int i = 0; i < kListenBacklog; ++i) {
    Result<std::optional<UniqueFd>> accepted = accept_from(socket_.get());
    if (accepted.ok()) {
      if (!accepted.value().has_value()) {
        return;
      }
      accepted_(std::move(*accepted.value()));
      continue;
    }
    refuse_one();
    if (refused_ == 1 || refused_ % 1000 == 0) {
      spdlog::error("cannot accept ({} so far): {}", refused_, accepted.error().message);
    }
    return;
  }
}

void Server::refuse_one() {
  ++refused_;
  reserve_.reset();
  UniqueFd refused(::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  refused.reset();
  reserve_ = spare_descriptor();
}

}  // namespace skv
