#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "ipc/channel.h"
#include "ipc/codec.h"
#include "ipc/layout/window.h"
#include "ipc/messages.h"
#include "ipc/shared_memory.h"
#include "ipc/socket.h"

namespace skv::test {

// A daemon that is a thread: it answers every verb plausibly, and misbehaves where a test says so.
//
// It stores nothing. Appended tokens close a sentence of 4 blocks at each 32 tokens; puts are
// always reserved and committed; a window's table has one entry per head (slot = head, block 0).
//
// Thread  its own; the public methods are the test's.
class FakeServer {
 public:
  // What to do with one request instead of answering it well.
  struct Twist {
    bool silent = false;                   // no reply
    bool hang_up = false;                  // close this connection
    bool late = false;                     // hold the good reply back until release_late()
    std::optional<Error> error{};          // an error reply
    std::function<void(Frame&)> change{};  // alters the good reply; body_bytes follows by itself
  };

  FakeServer();
  ~FakeServer();
  FakeServer(const FakeServer&) = delete;
  FakeServer& operator=(const FakeServer&) = delete;

  const std::string& path() const { return path_; }
  void stop();   // as if killed: socket gone, connections closed
  void start();  // a new instance on the same path, remembering nothing

  // For the next `times` requests of that verb (-1: all).
  void on(Verb verb, Twist twist, int times = -1);
  void always_well();
  void release_late() { late_released_ = true; }
  void set_path_blocks(std::vector<uint8_t> blocks);  // what a match answers
  void set_prefetch_silent(bool silent) { prefetch_silent_ = silent; }

  // Bodies of all requests of that verb, in order, over all connections and instances.
  template <typename Message>
  std::vector<Message> received(Verb verb) {
    const std::lock_guard lock(mutex_);
    std::vector<Message> messages;
    for (const auto& [seen, body] : log_) {
      if (seen == verb) messages.push_back(decode_body<Message>(body).value());
    }
    return messages;
  }
  size_t count(Verb verb);
  void forget_received();
  uint32_t channels_open() const { return channels_open_; }

 private:
  struct Channel {
    uint32_t id;
    DaemonChannel rings;
  };
  struct Window {
    MappedMemory tables;
    uint64_t version = 0;
    uint32_t width = 0;
  };
  struct Client {
    FrameSocket socket;
    std::vector<Channel> channels;
    std::map<uint32_t, uint32_t> context_tokens;
    std::map<uint32_t, uint32_t> context_sentences;
    std::map<uint32_t, Window> windows;
    bool gone = false;
  };
  // Where a request came from, and its answer goes: the socket, or a submission of a channel.
  struct Route {
    uint32_t channel = 0;  // 0: the socket
    SubmissionEntry entry{};
  };
  struct Answer {
    std::vector<uint8_t> frame;
    std::vector<UniqueFd> fds;
    Route route{};
  };

  void run();
  void serve(Client& client);
  void serve_one(Client& client, Frame& request, const Route& route);
  void serve_channels(Client& client, bool silent);
  static CompletionEntry prefetch(Client& client, Channel& channel, const SubmissionEntry& entry);
  Answer answer(Client& client, const Frame& request);
  Answer answer_hello(const Frame& request);
  Answer answer_window(Client& client, const Frame& request);
  Answer answer_append(Client& client, const Frame& request);
  Answer answer_match(const Frame& request);
  Answer answer_channel(Client& client, const Frame& request);
  Answer answer_load(const Frame& request);
  std::optional<Twist> take_twist(Verb verb);
  static void send(Client& client, const Answer& answer);

  std::string path_;
  UniqueFd listener_;
  std::thread thread_;
  std::atomic<bool> stopping_{false};
  std::atomic<bool> prefetch_silent_{false};
  std::atomic<bool> late_released_{false};
  std::atomic<uint32_t> channels_open_{0};

  std::mutex mutex_;  // what the test's thread asks for and looks at
  std::vector<std::pair<Verb, std::vector<uint8_t>>> log_;
  std::map<Verb, std::pair<Twist, int>> twists_;
  std::vector<uint8_t> path_blocks_;

  // The server's thread.
  uint8_t instance_ = 0;
  uint32_t next_id_ = 1;
  UniqueFd host_;
  std::vector<std::unique_ptr<Client>> clients_;
  std::vector<std::pair<Client*, Answer>> late_;
};

// Two layers of 1 and 2 kv heads, fp16, 2 query heads per kv head, dims of 16.
ModelDescriptor small_model();

}  // namespace skv::test
