#pragma once

#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>

namespace skv::bench {

// As much of the Redis protocol as SET and GET of large values need, over a connected stream
// socket: requests may be sent ahead of their answers.
class RedisClient {
 public:
  explicit RedisClient(int fd) : fd_(fd) {}
  ~RedisClient() { ::close(fd_); }
  RedisClient(const RedisClient&) = delete;
  RedisClient& operator=(const RedisClient&) = delete;

  bool send_set(const std::string& key, const char* value, size_t bytes) {
    const std::string head = "*3\r\n$3\r\nSET\r\n$" + std::to_string(key.size()) + "\r\n" + key +
                             "\r\n$" + std::to_string(bytes) + "\r\n";
    return send_all(head.data(), head.size()) && send_all(value, bytes) && send_all("\r\n", 2);
  }
  bool send_get(const std::string& key) {
    const std::string all =
        "*2\r\n$3\r\nGET\r\n$" + std::to_string(key.size()) + "\r\n" + key + "\r\n";
    return send_all(all.data(), all.size());
  }
  bool receive_ok() {
    std::string line;
    return receive_line(line) && line == "+OK";
  }
  // Straight into `to`.
  bool receive_value(char* to, size_t bytes) {
    std::string line;
    if (!receive_line(line) || line != "$" + std::to_string(bytes)) return false;
    const size_t have = std::min(bytes, filled_ - at_);
    std::memcpy(to, buffer_ + at_, have);
    at_ += have;
    for (size_t got = have; got < bytes;) {
      const ssize_t count = ::recv(fd_, to + got, bytes - got, 0);
      if (count <= 0) return false;
      got += static_cast<size_t>(count);
    }
    return receive_line(line) && line.empty();
  }

 private:
  bool send_all(const char* from, size_t bytes) {
    while (bytes > 0) {
      const ssize_t sent = ::send(fd_, from, bytes, MSG_NOSIGNAL);
      if (sent <= 0) return false;
      from += sent;
      bytes -= static_cast<size_t>(sent);
    }
    return true;
  }
  bool receive_line(std::string& line) {
    line.clear();
    for (;;) {
      for (; at_ < filled_; ++at_) {
        line += buffer_[at_];
        if (line.size() < 2 || line.substr(line.size() - 2) != "\r\n") continue;
        line.resize(line.size() - 2);
        ++at_;
        return true;
      }
      const ssize_t got = ::recv(fd_, buffer_, sizeof buffer_, 0);
      if (got <= 0) return false;
      at_ = 0;
      filled_ = static_cast<size_t>(got);
    }
  }

  int fd_;
  size_t at_ = 0;
  size_t filled_ = 0;
  char buffer_[4096];
};

}  // namespace skv::bench
