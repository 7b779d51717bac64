#pragma once

#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "ipc/unique_fd.h"

namespace skv::test {

// One end of a line between a test and the engine process it forked: what each says comes out at
// the other in order; a broken line says nothing and false.
class Line {
 public:
  explicit Line(UniqueFd fd) : fd_(std::move(fd)) {}

  template <typename Item>
  bool say(const std::vector<Item>& items) {
    static_assert(std::is_trivially_copyable_v<Item>);
    const uint64_t count = items.size();
    return send_all(&count, sizeof count) && send_all(items.data(), count * sizeof(Item));
  }
  bool say(uint64_t value) { return say(std::vector<uint64_t>{value}); }
  bool say_text(const std::string& text) {
    return say(std::vector<char>(text.begin(), text.end()));
  }

  template <typename Item>
  bool hear(std::vector<Item>& items) {
    uint64_t count = 0;
    if (!receive_all(&count, sizeof count)) {
      return false;
    }
    items.resize(count);
    return receive_all(items.data(), count * sizeof(Item));
  }
  bool hear(uint64_t& value) {
    std::vector<uint64_t> items;
    const bool heard = hear(items) && items.size() == 1;
    value = heard ? items[0] : 0;
    return heard;
  }
  std::string hear_text() {
    std::vector<char> text;
    return hear(text) ? std::string(text.begin(), text.end()) : "the other process is gone";
  }

 private:
  bool send_all(const void* bytes, size_t count) {
    const auto* at = static_cast<const char*>(bytes);
    while (count > 0) {
      const ssize_t sent = ::send(fd_.get(), at, count, MSG_NOSIGNAL);
      if (sent <= 0) {
        return false;
      }
      at += sent;
      count -= static_cast<size_t>(sent);
    }
    return true;
  }
  bool receive_all(void* bytes, size_t count) {
    auto* at = static_cast<char*>(bytes);
    while (count > 0) {
      const ssize_t got = ::recv(fd_.get(), at, count, 0);
      if (got <= 0) {
        return false;
      }
      at += got;
      count -= static_cast<size_t>(got);
    }
    return true;
  }

  UniqueFd fd_;
};

// A second engine process: runs `body` on its end of a line, then exits without the test program's
// end. Dies with the test. Fork it before the test has threads.
class EngineProcess {
 public:
  template <typename Body>
  explicit EngineProcess(Body body) {
    int ends[2] = {-1, -1};
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
      return;
    }
    UniqueFd ours(ends[0]);
    UniqueFd theirs(ends[1]);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ours.reset();
      Line line(std::move(theirs));
      try {
        body(line);
      } catch (...) {  // never back into the test program
        ::_exit(1);
      }
      ::_exit(0);
    }
    line_ = Line(std::move(ours));
  }
  ~EngineProcess() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
  }
  EngineProcess(const EngineProcess&) = delete;
  EngineProcess& operator=(const EngineProcess&) = delete;

  Line& line() { return line_; }

 private:
  pid_t pid_ = -1;
  Line line_{UniqueFd()};
};

}  // namespace skv::test
