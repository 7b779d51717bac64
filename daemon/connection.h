#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "daemon/loop.h"
#include "ipc/socket.h"
#include "ipc/unique_fd.h"

namespace skv {

// One accepted connection: frames in, frames out, and the end of its process.
//
// Reading stops while half of the send queue is taken (backpressure on a slow reader), and the
// connection closes when the queue is full. A pidfd ends it even when a forked child kept the
// socket. After close() the daemon reads nothing more, but the peer may still be reading what it
// leased, so `gone` comes only once the peer has hung up or its process has ended.
//
// Thread  loop. Callbacks may destroy nothing of this; the owner frees it on a later turn
//         (Loop::post).
// Limits  Options; kFramesPerWake frames are read per readiness event.
class Connection {
 public:
  struct Options {
    uint32_t send_queue_max = 512;  // frames
    uint64_t send_bytes_max = 4ULL << 20;
  };
  enum class Cause : uint8_t {
    kPeer = 0,   // it hung up or its process ended
    kSlow = 1,   // it does not read
    kFault = 2,  // what it sent is not of the protocol
    kOurs = 3,   // close()
  };
  struct Events {
    std::function<void(Frame& frame)> frame;
    std::function<void(const std::string& why, Cause cause)> closing;  // once
    // The peer has hung up or its process has ended: nobody reads what was leased. Once, last.
    std::function<void()> gone;
  };

  static Result<std::unique_ptr<Connection>> open(Loop& loop,
                                                  UniqueFd socket,
                                                  const Options& options,
                                                  Events events);
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  ~Connection() = default;

  // Queues a frame; descriptors are owned until they were sent. Ignored once closing. A full queue
  // closes the connection.
  void send(std::vector<uint8_t> frame, std::vector<UniqueFd> fds = {});
  // What is queued still goes out as far as the peer reads it at once.
  void close(const std::string& why);

  const PeerCredentials& peer() const { return peer_; }
  bool closing() const { return closing_; }
  size_t queued() const { return queue_.size(); }
  uint64_t frames_received() const { return frames_received_; }

 private:
  struct Outgoing {
    std::vector<uint8_t> frame;
    std::vector<UniqueFd> fds;
  };

  Connection(Loop& loop, UniqueFd socket, const Options& options, Events events);
  void on_ready(int events);
  void read_some();
  void write_some();
  void update_watch();
  void begin_closing(const std::string& why, Cause cause);
  void now_gone();
  bool backpressure() const { return queue_.size() * 2 >= options_.send_queue_max; }

  Loop& loop_;
  Options options_;
  Events events_;
  PeerCredentials peer_;
  FrameSocket socket_;
  UniqueFd pidfd_;
  std::unique_ptr<PollWatch> socket_watch_;
  std::unique_ptr<PollWatch> pid_watch_;
  std::deque<Outgoing> queue_;
  uint64_t queued_bytes_ = 0;
  uint64_t frames_received_ = 0;
  bool closing_ = false;
  bool gone_ = false;
};

}  // namespace skv
