#include "daemon/loop.h"

#include <ctime>
#include <utility>
#include <vector>

namespace skv {
namespace {

uint64_t to_ms(uint64_t ns) { return (ns + 999'999) / 1'000'000; }

// Closes the handle inside `state`; the state goes with the close callback.
template <typename State>
void close_state(State* state) {
  uv_close(reinterpret_cast<uv_handle_t*>(&state->handle),
           [](uv_handle_t* handle) { delete static_cast<State*>(handle->data); });
}

}  // namespace

Loop::Loop() : thread_(std::this_thread::get_id()) {
  SKV_CHECK(uv_loop_init(&loop_) == 0, "no event loop");
  SKV_CHECK(uv_idle_init(&loop_, &idle_) == 0, "no idle handle");
  idle_.data = this;
}

Loop::~Loop() {
  uv_close(reinterpret_cast<uv_handle_t*>(&idle_), nullptr);
  while (uv_run(&loop_, UV_RUN_NOWAIT) != 0) {
  }
  const int rc = uv_loop_close(&loop_);
  SKV_CHECK(rc == 0, "a watch outlived its loop");
}

void Loop::run() {
  thread_ = std::this_thread::get_id();
  uv_run(&loop_, UV_RUN_DEFAULT);
}

void Loop::stop() { uv_stop(&loop_); }

bool Loop::turn(bool wait) {
  thread_ = std::this_thread::get_id();
  return uv_run(&loop_, wait ? UV_RUN_ONCE : UV_RUN_NOWAIT) != 0;
}

uint64_t Loop::now_ns() const {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000ULL + static_cast<uint64_t>(now.tv_nsec);
}

void Loop::post(std::function<void()> task) {
  SKV_CHECK(on_thread(), "post from another thread");
  posted_.push_back(std::move(task));
  uv_idle_start(&idle_, [](uv_idle_t* idle) { static_cast<Loop*>(idle->data)->run_posted(); });
}

void Loop::run_posted() {
  std::vector<std::function<void()>> tasks;
  tasks.swap(posted_);
  uv_idle_stop(&idle_);
  for (std::function<void()>& task : tasks) {
    task();
  }
}

struct PollWatch::State {
  uv_poll_t handle;
  Ready ready;
  bool closed = false;
};

Result<std::unique_ptr<PollWatch>> PollWatch::open(Loop& loop, int fd, Ready ready) {
  auto* state = new State{{}, std::move(ready), false};
  if (const int rc = uv_poll_init(loop.uv(), &state->handle, fd); rc != 0) {
    delete state;  // uv never saw it
    return Error{ErrorCode::kIo, std::string("uv_poll_init: ") + uv_strerror(rc)};
  }
  state->handle.data = state;
  return std::unique_ptr<PollWatch>(new PollWatch(state));
}

PollWatch::~PollWatch() {
  uv_poll_stop(&state_->handle);
  state_->closed = true;
  close_state(state_);
}

void PollWatch::watch(int events) {
  if (events == 0) {
    uv_poll_stop(&state_->handle);
    return;
  }
  uv_poll_start(&state_->handle, events, [](uv_poll_t* handle, int status, int got) {
    auto* state = static_cast<State*>(handle->data);
    if (!state->closed) {
      // The callback may destroy its own watch; uv frees the state on a later turn.
      state->ready(status < 0 ? status : got);
    }
  });
}

struct TimerWatch::State {
  uv_timer_t handle;
  std::function<void()> fired;
};

TimerWatch::TimerWatch(Loop& loop, std::function<void()> fired)
    : state_(new State{{}, std::move(fired)}) {
  uv_timer_init(loop.uv(), &state_->handle);
  state_->handle.data = state_;
}

TimerWatch::~TimerWatch() {
  uv_timer_stop(&state_->handle);
  close_state(state_);
}

void TimerWatch::start(uint64_t after_ns, uint64_t repeat_ns) {
  uv_update_time(state_->handle.loop);
  uv_timer_start(
      &state_->handle, [](uv_timer_t* handle) { static_cast<State*>(handle->data)->fired(); },
      to_ms(after_ns), to_ms(repeat_ns));
}

void TimerWatch::stop() { uv_timer_stop(&state_->handle); }

struct SignalWatch::State {
  uv_signal_t handle;
  std::function<void()> caught;
};

SignalWatch::SignalWatch(Loop& loop, int signal, std::function<void()> caught)
    : state_(new State{{}, std::move(caught)}) {
  uv_signal_init(loop.uv(), &state_->handle);
  state_->handle.data = state_;
  uv_signal_start(
      &state_->handle,
      [](uv_signal_t* handle, int) { static_cast<State*>(handle->data)->caught(); }, signal);
}

SignalWatch::~SignalWatch() {
  uv_signal_stop(&state_->handle);
  close_state(state_);
}

struct AsyncWatch::State {
  uv_async_t handle;
  std::function<void()> woken;
  bool closed = false;
};

AsyncWatch::AsyncWatch(Loop& loop, std::function<void()> woken)
    : state_(new State{{}, std::move(woken), false}) {
  uv_async_init(loop.uv(), &state_->handle, [](uv_async_t* handle) {
    auto* state = static_cast<State*>(handle->data);
    if (!state->closed) {
      state->woken();
    }
  });
  state_->handle.data = state_;
}

AsyncWatch::~AsyncWatch() {
  state_->closed = true;
  close_state(state_);
}

void AsyncWatch::send() { uv_async_send(&state_->handle); }

}  // namespace skv
