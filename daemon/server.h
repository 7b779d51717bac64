#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "daemon/loop.h"
#include "ipc/unique_fd.h"

namespace skv {

// The listening control socket.
//
// A lock file beside it (PATH.lock, flock) says whose the path is: a socket left by a dead daemon
// is replaced, a live daemon's is not. One reserve descriptor lets it accept and close when the
// process has none left, instead of spinning on a readable listener.
//
// Thread  loop.
class Server {
 public:
  struct Options {
    std::string path;
    uint32_t mode = 0660;
    std::string group;  // of the socket; empty: the process's own
    UniqueFd lock;      // of lock()
  };
  // Makes the path this process's. Before anything that two daemons must not both do. Errors:
  // kBusy: another daemon holds it (with its pid). kIo: with the call.
  static Result<UniqueFd> lock(const std::string& path);
  static Result<std::unique_ptr<Server>> open(Loop& loop,
                                              Options options,
                                              std::function<void(UniqueFd)> accepted);
  ~Server();  // stops listening and removes the socket; the lock file stays
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  uint64_t refused() const { return refused_; }  // for want of a descriptor

 private:
  Server(Options options, std::function<void(UniqueFd)> accepted)
      : options_(std::move(options)), accepted_(std::move(accepted)) {}
  void accept_some();
  void refuse_one();

  Options options_;
  std::function<void(UniqueFd)> accepted_;
  UniqueFd socket_;
  UniqueFd reserve_;
  std::unique_ptr<PollWatch> watch_;
  uint64_t refused_ = 0;
};

}  // namespace skv
