#pragma once

#include <uv.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "ipc/types/result.h"

namespace skv {

// The loop thread's libuv loop, and handles whose life is that of a C++ object.
//
// A uv handle must stay in memory until its close callback ran; here destroying a watch stops it at
// once (its callback is never called again) and gives the uv handle back on a later turn.
//
// Thread  the loop's, except AsyncWatch::send.
// Owns    the uv_loop_t; ~Loop runs the pending closes. Every watch dies before its Loop.
class Loop {
 public:
  Loop();
  ~Loop();
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  // Until stop(). The thread that calls it is the loop thread.
  void run();
  void stop();
  // One turn, for tests; waits for an event if `wait`. True if there may be more.
  bool turn(bool wait);

  uv_loop_t* uv() { return &loop_; }
  uint64_t now_ns() const;  // monotonic, not cached
  bool on_thread() const { return std::this_thread::get_id() == thread_; }
  // Runs `task` on a later turn of the loop, not from inside the caller. Loop thread only.
  void post(std::function<void()> task);

 private:
  void run_posted();

  uv_loop_t loop_{};
  uv_idle_t idle_{};
  std::vector<std::function<void()>> posted_;
  std::thread::id thread_;
};

// Readiness of a descriptor. Level triggered.
class PollWatch {
 public:
  // `ready(events)`: UV_READABLE | UV_WRITABLE | UV_DISCONNECT, or < 0: a uv error.
  using Ready = std::function<void(int events)>;
  static Result<std::unique_ptr<PollWatch>> open(Loop& loop, int fd, Ready ready);
  ~PollWatch();
  PollWatch(const PollWatch&) = delete;
  PollWatch& operator=(const PollWatch&) = delete;

  void watch(int events);  // 0: none

 private:
  struct State;
  explicit PollWatch(State* state) : state_(state) {}
  State* state_;
};

class TimerWatch {
 public:
  TimerWatch(Loop& loop, std::function<void()> fired);
  ~TimerWatch();
  TimerWatch(const TimerWatch&) = delete;
  TimerWatch& operator=(const TimerWatch&) = delete;

  // Rounded up to whole milliseconds. repeat_ns 0: once.
  void start(uint64_t after_ns, uint64_t repeat_ns = 0);
  void stop();

 private:
  struct State;
  State* state_;
};

class SignalWatch {
 public:
  SignalWatch(Loop& loop, int signal, std::function<void()> caught);
  ~SignalWatch();
  SignalWatch(const SignalWatch&) = delete;
  SignalWatch& operator=(const SignalWatch&) = delete;

 private:
  struct State;
  State* state_;
};

// Wakes the loop from any thread. Wake-ups merge: `woken` drains all there is.
class AsyncWatch {
 public:
  AsyncWatch(Loop& loop, std::function<void()> woken);
  ~AsyncWatch();
  AsyncWatch(const AsyncWatch&) = delete;
  AsyncWatch& operator=(const AsyncWatch&) = delete;

  void send();  // any thread, while this lives

 private:
  struct State;
  State* state_;
};

}  // namespace skv
