#include "daemon/connection.h"

#include <sys/socket.h>

#include <utility>

#include "daemon/limits.h"

namespace skv {

Connection::Connection(Loop& loop, UniqueFd socket, const Options& options, Events events)
    : loop_(loop), options_(options), events_(std::move(events)), socket_(std::move(socket)) {}

Result<std::unique_ptr<Connection>> Connection::open(Loop& loop,
                                                     UniqueFd socket,
                                                     const Options& options,
                                                     Events events) {
  std::unique_ptr<Connection> connection(
      new Connection(loop, std::move(socket), options, std::move(events)));
  Connection* const self = connection.get();
  const Result<PeerCredentials> peer = peer_credentials(self->socket_.fd());
  if (!peer.ok()) {
    return peer.error();
  }
  self->peer_ = peer.value();
  Result<UniqueFd> pidfd = open_peer_pidfd(self->socket_.fd());
  if (!pidfd.ok()) {
    return pidfd.error();
  }
  self->pidfd_ = std::move(pidfd).value();

  Result<std::unique_ptr<PollWatch>> pid_watch =
      PollWatch::open(loop, self->pidfd_.get(), [self](int) {
        self->begin_closing("its process ended", Cause::kPeer);
        self->now_gone();
      });
  if (!pid_watch.ok()) {
    return pid_watch.error();
  }
  self->pid_watch_ = std::move(pid_watch).value();
  Result<std::unique_ptr<PollWatch>> socket_watch =
      PollWatch::open(loop, self->socket_.fd(), [self](int ready) { self->on_ready(ready); });
  if (!socket_watch.ok()) {
    return socket_watch.error();
  }
  self->socket_watch_ = std::move(socket_watch).value();
  self->pid_watch_->watch(UV_READABLE);
  self->update_watch();
  return connection;
}

void Connection::update_watch() {
  if (gone_) {
    return;
  }
  int events = UV_DISCONNECT;
  if (!closing_ && !backpressure()) {
    events |= UV_READABLE;
  }
  if (!closing_ && !queue_.empty()) {
    events |= UV_WRITABLE;
  }
  socket_watch_->watch(events);
}

void Connection::on_ready(int events) {
  if (gone_) {
    return;
  }
  if (events < 0) {
    begin_closing("the socket failed", Cause::kPeer);
    now_gone();
    return;
  }
  if ((events & UV_WRITABLE) != 0) {
    write_some();
  }
  if ((events & UV_READABLE) != 0 && !closing_) {
    read_some();
  }
  // A hang-up counts only when all it sent was read, or when nobody is going to read it.
  if ((events & UV_DISCONNECT) != 0 && !gone_ && (closing_ || backpressure())) {
    begin_closing("it hung up", Cause::kPeer);
    now_gone();
  }
  update_watch();
}

void Connection::read_some() {
  for (uint32_t i = 0; i < kFramesPerWake && !closing_ && !backpressure(); ++i) {
    Frame frame;
    const Result<ReceiveOutcome> outcome = socket_.receive(frame);
    if (!outcome.ok()) {
      begin_closing(outcome.error().message, Cause::kFault);
      return;
    }
    if (outcome.value() == ReceiveOutcome::kWouldBlock) {
      return;
    }
    if (outcome.value() == ReceiveOutcome::kClosed) {
      begin_closing("it hung up", Cause::kPeer);
      now_gone();
      return;
    }
    ++frames_received_;
    events_.frame(frame);
  }
}

void Connection::send(std::vector<uint8_t> frame, std::vector<UniqueFd> fds) {
  if (closing_) {
    return;
  }
  if (queue_.size() >= options_.send_queue_max ||
      queued_bytes_ + frame.size() > options_.send_bytes_max) {
    begin_closing("it does not read its replies: " + std::to_string(queue_.size()) + " of " +
                      std::to_string(options_.send_queue_max) + " frames wait",
                  Cause::kSlow);
    return;
  }
  queued_bytes_ += frame.size();
  queue_.push_back({std::move(frame), std::move(fds)});
  write_some();
  update_watch();
}

void Connection::write_some() {
  while (!queue_.empty()) {
    const Outgoing& next = queue_.front();
    std::vector<int> fds;
    fds.reserve(next.fds.size());
    for (const UniqueFd& fd : next.fds) {
      fds.push_back(fd.get());
    }
    const Result<SendOutcome> outcome = socket_.send(next.frame, fds);
    if (!outcome.ok()) {
      // Whether the peer is gone is for the hang-up event to say.
      begin_closing(outcome.error().message, outcome.error().code == ErrorCode::kDisconnected
                                                 ? Cause::kPeer
                                                 : Cause::kFault);
      return;
    }
    if (outcome.value() == SendOutcome::kWouldBlock) {
      return;
    }
    queued_bytes_ -= next.frame.size();
    queue_.pop_front();
  }
}

void Connection::close(const std::string& why) { begin_closing(why, Cause::kOurs); }

void Connection::begin_closing(const std::string& why, Cause cause) {
  if (closing_) {
    return;
  }
  closing_ = true;
  queue_.clear();
  queued_bytes_ = 0;
  // The peer reads the end of the stream after what it was sent, and hangs up in its turn.
  ::shutdown(socket_.fd(), SHUT_WR);
  update_watch();
  events_.closing(why, cause);
}

void Connection::now_gone() {
  if (gone_) {
    return;
  }
  gone_ = true;
  socket_watch_->watch(0);
  pid_watch_->watch(0);
  events_.gone();
}

}  // namespace skv
