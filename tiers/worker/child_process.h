#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "ipc/types/result.h"
#include "ipc/unique_fd.h"

namespace skv {

// One process that we started, watched by a pidfd: no signal handler, no race on its pid.
//
// Thread  the one that starts it also ends it: the child asks to die with that thread.
// Owns    the process: the destructor kills it, waits (milliseconds) and reaps it.
class ChildProcess {
 public:
  // `inherited` becomes descriptor `as` of the child; the child gets no other but the standard
  // ones.
  struct Options {
    std::string program;
    std::vector<std::string> arguments;  // without argv[0]
    int inherited = -1;
    int as = 3;
  };
  static Result<ChildProcess> spawn(const Options& options);

  ChildProcess() = default;
  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&& other) noexcept;
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;
  ~ChildProcess();

  pid_t pid() const { return pid_; }
  int pidfd() const { return pidfd_.get(); }  // readable when it has ended
  // How it ended, once it has; reaps it.
  std::optional<std::string> ended();
  // Ends it if it still runs, and says how it ended. For a child that has closed its end of a
  // socket and so is about to go: it gets `grace_ms` for that, then SIGKILL.
  std::string end(int grace_ms);

 private:
  void kill();

  pid_t pid_ = 0;
  UniqueFd pidfd_;
};

}  // namespace skv
