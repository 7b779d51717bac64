#pragma once

#include <poll.h>
#include <sys/socket.h>

#include <chrono>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "ipc/codec.h"
#include "ipc/socket.h"

namespace skv::test {

// A client without a library: speaks the protocol, or not, as a test wants.
class RawClient {
 public:
  bool connect(const std::string& path) {
    Result<UniqueFd> socket = connect_to(path);
    if (!socket.ok()) {
      return false;
    }
    socket_ = FrameSocket(std::move(socket).value());
    return true;
  }
  // Connected, and hello answered.
  bool open(const std::string& path, const std::string& name = "test") {
    if (!connect(path)) {
      return false;
    }
    Hello message;
    message.client_name = name;
    Result<HelloReply> reply = call<HelloReply>(Verb::kHello, message);
    if (!reply.ok()) {
      error_ = reply.error();
      return false;
    }
    hello_ = std::move(reply).value();
    hello_fds_ = std::move(fds_);
    return true;
  }
  void close() { socket_.close(); }

  // Sends a request and waits for its reply; events and replies of other tickets are kept.
  template <typename Answer, typename Message>
  Result<Answer> call(Verb verb, const Message& message, const std::vector<int>& fds = {}) {
    const uint64_t ticket = post(verb, message, fds);
    return answer<Answer>(ticket);
  }
  template <typename Message>
  uint64_t post(Verb verb, const Message& message, const std::vector<int>& fds = {}) {
    const uint64_t ticket = next_ticket_++;
    send_bytes(encode_request(verb, Ticket{ticket}, message, static_cast<uint16_t>(fds.size())),
               fds);
    return ticket;
  }
  template <typename Answer>
  Result<Answer> answer(uint64_t ticket) {
    for (size_t i = 0; i < kept_.size(); ++i) {
      if (kept_[i].header.is_reply == 1 && kept_[i].header.ticket == ticket) {
        Frame frame = std::move(kept_[i]);
        kept_.erase(kept_.begin() + static_cast<std::ptrdiff_t>(i));
        fds_ = std::move(frame.fds);
        return decode_reply<Answer>(frame.header, frame.body);
      }
    }
    for (;;) {
      Result<Frame> frame = receive();
      if (!frame.ok()) {
        return frame.error();
      }
      if (frame.value().header.is_reply == 1 && frame.value().header.ticket == ticket) {
        fds_ = std::move(frame.value().fds);
        return decode_reply<Answer>(frame.value().header, frame.value().body);
      }
      kept_.push_back(std::move(frame).value());
    }
  }

  // Whatever the bytes are. False: the daemon is gone or its buffer is full.
  bool send_bytes(const std::vector<uint8_t>& bytes, const std::vector<int>& fds = {}) {
    iovec part{const_cast<uint8_t*>(bytes.data()), bytes.size()};
    alignas(cmsghdr) char control[CMSG_SPACE(16 * sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (!fds.empty()) {
      message.msg_control = control;
      message.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
      cmsghdr* rights = CMSG_FIRSTHDR(&message);
      rights->cmsg_level = SOL_SOCKET;
      rights->cmsg_type = SCM_RIGHTS;
      rights->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
      std::memcpy(CMSG_DATA(rights), fds.data(), fds.size() * sizeof(int));
    }
    return ::sendmsg(socket_.fd(), &message, MSG_NOSIGNAL) >= 0;
  }

  // The next frame, whatever it is. kDisconnected: the daemon closed; kTimeout.
  Result<Frame> receive(int timeout_ms = 30'000) {
    pollfd ready{socket_.fd(), POLLIN, 0};
    if (::poll(&ready, 1, timeout_ms) == 0) {
      return Error{ErrorCode::kTimeout, "no frame came"};
    }
    Frame frame;
    const Result<ReceiveOutcome> outcome = socket_.receive(frame);
    if (!outcome.ok()) {
      return outcome.error();
    }
    if (outcome.value() != ReceiveOutcome::kFrame) {
      return Error{ErrorCode::kDisconnected, "the daemon closed the connection"};
    }
    return frame;
  }
  // Reads until the daemon closes; false if it does not within the time.
  bool closed_by_daemon(int timeout_ms = 10'000) {
    for (;;) {
      const Result<Frame> frame = receive(timeout_ms);
      if (!frame.ok()) {
        return frame.error().code == ErrorCode::kDisconnected;
      }
    }
  }

  nlohmann::json stat(StatKind kind = StatKind::kStatus) {
    const Result<StatReply> reply =
        call<StatReply>(Verb::kStat, Stat{static_cast<uint8_t>(kind), 0});
    return reply.ok() ? nlohmann::json::parse(reply.value().json) : nlohmann::json();
  }
  // Asks for the status until it is as wanted; the last one seen.
  template <typename Wanted>
  nlohmann::json wait_status(Wanted wanted, int timeout_ms = 30'000) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
    for (;;) {
      nlohmann::json status = stat();
      if (status.is_null() || wanted(status) || std::chrono::steady_clock::now() > deadline) {
        return status;
      }
      ::poll(nullptr, 0, 5);
    }
  }

  const HelloReply& hello() const { return hello_; }
  std::vector<UniqueFd>& hello_fds() { return hello_fds_; }  // staging, host arena
  std::vector<UniqueFd>& fds() { return fds_; }              // of the last reply
  std::vector<Frame>& kept() { return kept_; }
  const Error& error() const { return error_; }
  int fd() const { return socket_.fd(); }

 private:
  FrameSocket socket_;
  HelloReply hello_;
  std::vector<UniqueFd> hello_fds_;
  std::vector<UniqueFd> fds_;
  std::vector<Frame> kept_;
  Error error_;
  uint64_t next_ticket_ = 1;
};

}  // namespace skv::test
