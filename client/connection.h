#pragma once

#include <sys/types.h>

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "client/deadline.h"
#include "ipc/codec.h"
#include "ipc/messages.h"
#include "ipc/shared_directory.h"
#include "ipc/shared_memory.h"
#include "ipc/socket.h"
#include "ipc/types/result.h"

namespace skv::client {

class ThreadChannel;

// One request and, once it is done, its answer. Fields behind `channel` belong to the mutex of the
// connection, or of the channel that it went by, until done.
struct Operation {
  Verb verb{};
  uint64_t ticket = 0;
  std::shared_ptr<ThreadChannel> channel;  // null: it went by the socket
  bool done = false;
  bool abandoned = false;      // nobody will look: a late reply is undone
  std::optional<Error> error;  // the connection ended before the reply
  Frame frame;
};
using OperationPtr = std::shared_ptr<Operation>;

// One connection to one daemon process, from hello to its end. It never comes back to life: a
// session replaces it, and what lived under it knows by its serial.
//
// Thread  any. There is no reader thread: of the threads that wait for a reply one reads the socket
//         and hands out what arrives (the leader), the others sleep until theirs is there or the
//         leader has left.
// Errors  kDisconnected from submit(): nothing was sent. From wait(): the reply will not come.
//         kTimeout from wait(): the operation goes on; wait again or abandon it.
// Owns    the socket and read-only mappings of the space's memories, which windows, holds and
//         leases share. Threads keep a connection for its channels beyond the session: unmap() lets
//         go of the mappings before.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  struct Options {
    std::string path;
    std::string client_name;
    std::array<uint8_t, 16> client_instance{};
    std::optional<uint32_t> spin_us;  // of waits on channels, at most; none: by the number of cores
  };

  static Result<std::shared_ptr<Connection>> open(const Options& options, Deadline deadline);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // Distinct for all connections of this process; 0 is none.
  uint64_t serial() const { return serial_; }
  const HelloReply& hello() const { return hello_; }
  // Why the connection ended, after unmap().
  Result<std::shared_ptr<MappedMemory>> host();
  // The pages of vectors of the space, mapped the first time; a window_open brought `fd`.
  Result<std::shared_ptr<MappedMemory>> vectors(int fd, uint64_t bytes);
  const std::shared_ptr<MappedMemory>& staging() const { return staging_; }
  int staging_fd() const { return staging_fd_.get(); }
  const std::optional<uint32_t>& spin_us() const { return spin_us_; }
  int socket() const { return reader_.fd(); }  // for POLLHUP only
  bool alive() const { return !dead_.load(std::memory_order_acquire); }
  // Asks the system at most once in kPeerCheck whether the daemon has hung up; true once it has.
  bool peer_gone();
  // The space's shared directory. Mapped on first use, and again when the daemon has a new one.
  Result<std::shared_ptr<const SharedDirectoryReader>> directory();
  bool in_own_process() const;  // false in a forked child: leave the socket alone

  // By the calling thread's channel where the verb is one of every step and a place is free there,
  // else by the socket: the same frame, served by the same handler.
  template <typename Message>
  Result<OperationPtr> submit(Verb verb,
                              const Message& message,
                              Deadline deadline,
                              std::span<const int> fds = {}) {
    OperationPtr operation = begin(verb);
    const std::vector<uint8_t> frame =
        encode_request(verb, Ticket{operation->ticket}, message, static_cast<uint16_t>(fds.size()));
    Result<bool> by_channel = submit_by_channel(operation, frame, deadline);
    if (!by_channel.ok()) return by_channel.error();
    if (by_channel.value()) return operation;
    await(operation);
    if (Result<void> sent = send(frame, fds, deadline); !sent.ok()) {
      forget(operation);
      return sent.error();
    }
    return operation;
  }

  Result<void> wait(const OperationPtr& operation, Deadline deadline);
  void abandon(const OperationPtr& operation);
  // After end(), when the session has no more use of it: the memories stay mapped only where
  // something else shares them.
  void unmap();

  // After wait() said ok.
  template <typename Reply>
  Result<Reply> reply(const OperationPtr& operation) {
    Result<Reply> decoded = decode_reply<Reply>(operation->frame.header, operation->frame.body);
    if (!decoded.ok() && operation->frame.header.status == 0) end(decoded.error());
    return decoded;
  }

  // submit, wait, reply. A timeout abandons it.
  template <typename Reply, typename Message>
  Result<Reply> call(Verb verb,
                     const Message& message,
                     Deadline deadline,
                     std::span<const int> fds = {},
                     std::vector<UniqueFd>* received = nullptr) {
    Result<OperationPtr> operation = submit(verb, message, deadline, fds);
    if (!operation.ok()) return operation.error();
    if (Result<void> waited = wait(operation.value(), deadline); !waited.ok()) {
      abandon(operation.value());
      return waited.error();
    }
    if (received != nullptr) *received = std::move(operation.value()->frame.fds);
    return reply<Reply>(operation.value());
  }

  // Sends without waiting and without caring for the answer (undoing what nobody asked for).
  template <typename Message>
  void post(Verb verb, const Message& message) {
    Result<OperationPtr> operation = submit(verb, message, Clock::now());
    if (operation.ok()) abandon(operation.value());
  }

  // Gives back what the answer to an abandoned request opened.
  void undo(const Operation& late);
  // Hands out what has arrived, without waiting, unless another thread reads.
  void take_arrived() { drain(); }
  // Everything pending ends with `why`; the first call counts.
  void end(const Error& why);
  bool window_lost(uint32_t window);

  // Channels that threads of this process hold here; false above kThreadChannelsMax.
  bool take_channel();
  void give_back_channel();
  uint32_t channel_count() const { return channels_.load(std::memory_order_relaxed); }

 private:
  explicit Connection(UniqueFd socket);
  Result<void> say_hello(const Options& options, Deadline deadline);
  OperationPtr begin(Verb verb);
  Result<bool> submit_by_channel(const OperationPtr& operation,
                                 std::span<const uint8_t> frame,
                                 Deadline deadline);
  void await(const OperationPtr& operation);
  void forget(const OperationPtr& operation);
  Result<void> send(std::span<const uint8_t> frame, std::span<const int> fds, Deadline deadline);
  Result<void> read_one(Deadline deadline, bool& got, Frame& frame);
  void drain();
  void dispatch(Frame frame);
  void dispatch_event(const Frame& frame);
  void end_locked(const Error& why);

  const uint64_t serial_;
  const pid_t process_;
  std::optional<uint32_t> spin_us_;
  FrameSocket reader_;  // the thread that has reading_
  FrameSocket writer_;  // under send_mutex_; a duplicate descriptor of the same socket
  std::mutex send_mutex_;
  HelloReply hello_;
  std::shared_ptr<MappedMemory> host_;
  std::shared_ptr<MappedMemory> staging_;
  UniqueFd staging_fd_;
  std::atomic<bool> dead_{false};
  std::atomic<Clock::rep> peer_checked_{0};
  std::mutex directory_mutex_;
  std::shared_ptr<const SharedDirectoryReader> directory_;
  std::atomic<uint32_t> channels_{0};

  std::mutex mutex_;
  std::condition_variable changed_;
  bool reading_ = false;
  std::atomic<uint64_t> next_ticket_{1};
  std::map<uint64_t, OperationPtr> pending_;
  std::optional<Error> why_dead_;
  std::set<uint32_t> lost_windows_;
  std::shared_ptr<MappedMemory> vectors_;
  std::vector<Operation> to_undo_;
};

inline constexpr uint32_t kThreadChannelsMax = 64;

}  // namespace skv::client
