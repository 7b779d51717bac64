#include "daemon/data/data_thread.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <deque>
#include <string>
#include <thread>
#include <utility>

#include "daemon/data/bounded_queue.h"
#include "daemon/data/data_core.h"
#include "ipc/doorbell.h"
#include "ipc/os_error.h"
#include "ipc/spin.h"
#include "ipc/types/check.h"

namespace skv {
namespace {

constexpr uint32_t kCommandsPerTurn = 64;

}  // namespace

struct DataThread::State {
  State(DataOptions options_in, std::unique_ptr<SlotPool> pool_in, std::function<void()> wake)
      : options(std::move(options_in)),
        pool(std::move(pool_in)),
        wake_loop(std::move(wake)),
        commands(options.commands_max),
        events(options.events_max),
        spin(uint64_t{options.spin_us} * 1000) {}

  // Loop side.
  DataOptions options;
  std::unique_ptr<SlotPool> pool;  // the thread's, from its start to its end
  std::function<void()> wake_loop;
  std::deque<DataCommand> spilled;  // behind a full queue
  std::thread thread;

  // Shared.
  BoundedQueue<DataCommand> commands;
  BoundedQueue<DataEvent> events;
  std::atomic<uint32_t> sleeps{0};  // the data thread sleeps: ring the doorbell
  std::atomic<bool> stop{false};
  std::atomic<bool> events_held{false};    // the event queue was full: ring when it has room again
  std::atomic<bool> commands_held{false};  // the same for commands: wake the loop
  UniqueFd doorbell;
  DataCounters counters;

  // Data thread's.
  UniqueFd epoll;
  AdaptiveSpin spin;

  void run();
  void take_commands(DataCore& core);
  void hand_over(DataCore& core);
  void sleep(DataCore& core, uint64_t wake_ns);
  void wait(uint64_t limit_ns) const;
  void push_spilled();
  // `edges`: what rings is an event each time, and the descriptor need not be read.
  enum class Trigger : uint8_t { kEdges, kLevel };
  void watch(int fd, bool added, Trigger trigger = Trigger::kEdges) const;
  bool spun(DataCore& core, uint64_t start_ns, uint64_t wake_ns);
  void ring() {
    if (sleeps.load(std::memory_order_seq_cst) != 0) ring_doorbell(doorbell.get());
  }
};

// ---- the data thread ----------------------------------------------------------------------------

void DataThread::State::watch(int fd, bool added, Trigger trigger) const {
  epoll_event event{};
  event.events = EPOLLIN;
  if (trigger == Trigger::kEdges) event.events |= EPOLLET;
  event.data.fd = fd;
  ::epoll_ctl(epoll.get(), added ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, fd, &event);
}

void DataThread::State::take_commands(DataCore& core) {
  for (uint32_t taken = 0; taken < kCommandsPerTurn; ++taken) {
    std::optional<DataCommand> command = commands.pop();
    if (!command) {
      if (commands_held.exchange(false, std::memory_order_seq_cst)) wake_loop();
      return;
    }
    core.handle(std::move(*command));
  }
}

// Events that find no room stay in the core; the loop rings when it has made some.
void DataThread::State::hand_over(DataCore& core) {
  std::vector<DataEvent>& made = core.events();
  if (made.empty()) return;
  size_t handed = 0;
  while (handed < made.size() && events.push(made[handed])) ++handed;
  if (handed < made.size()) {
    // Announced, then tried again: the loop may have drained in between and not seen it.
    events_held.store(true, std::memory_order_seq_cst);
    while (handed < made.size() && events.push(made[handed])) ++handed;
  }
  made.erase(made.begin(), made.begin() + static_cast<std::ptrdiff_t>(handed));
  if (handed > 0) wake_loop();
}

// Looks at the rings and the command queue without a system call and without being rung for.
bool DataThread::State::spun(DataCore& core, uint64_t start_ns, uint64_t wake_ns) {
  const uint64_t budget_ns = core.idle() ? spin.budget_ns() : 0;
  if (budget_ns == 0) return false;
  const uint64_t end_ns = std::min(start_ns + budget_ns, wake_ns);
  do {
    if (core.ready() || !commands.empty() || stop.load(std::memory_order_relaxed)) return true;
    spin_pause();
  } while (core.now_ns() < end_ns);
  return false;
}

// One system call at most: doorbells are watched for edges, so that none has to be read.
void DataThread::State::sleep(DataCore& core, uint64_t wake_ns) {
  const uint64_t start_ns = core.now_ns();
  if (!spun(core, start_ns, wake_ns)) {
    sleeps.store(1, std::memory_order_seq_cst);
    const bool quiet =
        core.prepare_sleep() && commands.empty() && !stop.load(std::memory_order_seq_cst) &&
        // Held events with the announcement taken: the loop has made room and saw us awake.
        (core.events().empty() || events_held.load(std::memory_order_seq_cst));
    const uint64_t now = core.now_ns();
    if (quiet && now < wake_ns) wait(wake_ns == UINT64_MAX ? wake_ns : wake_ns - now);
    sleeps.store(0, std::memory_order_relaxed);
    core.awake();
  }
  spin.waited(core.now_ns() - start_ns);
}

void DataThread::State::wait(uint64_t limit_ns) const {
  epoll_event woken[16];
  const timespec limit{static_cast<time_t>(limit_ns / 1'000'000'000),
                       static_cast<long>(limit_ns % 1'000'000'000)};
  const bool forever = limit_ns == UINT64_MAX;
  if (::epoll_pwait2(epoll.get(), woken, 16, forever ? nullptr : &limit, nullptr) >= 0) return;
  if (errno != ENOSYS) return;  // EINTR: look again
  const uint64_t limit_ms = std::min<uint64_t>(limit_ns / 1'000'000 + 1, 60'000);
  ::epoll_wait(epoll.get(), woken, 16, forever ? -1 : static_cast<int>(limit_ms));
}

void DataThread::State::run() {
  ::pthread_setname_np(::pthread_self(), "skvd-data");
  options.called = [this] { return !commands.empty() || stop.load(std::memory_order_relaxed); };
  DataCore core(options, *pool, counters, [this](int fd, bool added) { watch(fd, added); });
  while (!stop.load(std::memory_order_acquire)) {
    take_commands(core);
    const uint64_t wake_ns = core.step();
    hand_over(core);
    if (wake_ns > core.now_ns() && commands.empty()) sleep(core, wake_ns);
  }
}

// ---- the loop's side ----------------------------------------------------------------------------

void DataThread::State::push_spilled() {
  // Announced first: if the thread empties the queue just now, this try finds room; if it is still
  // full, the thread sees the announcement when it has emptied it.
  commands_held.store(true, std::memory_order_seq_cst);
  while (!spilled.empty() && commands.push(spilled.front())) spilled.pop_front();
}

DataThread::DataThread(std::unique_ptr<State> state) : state_(std::move(state)) {}

DataThread::~DataThread() { stop(); }

Result<std::unique_ptr<DataThread>> DataThread::start(DataOptions options,
                                                      std::unique_ptr<SlotPool> pool,
                                                      std::function<void()> wake_loop) {
  if (cores_allowed() < options.spin_cores) options.spin_us = 0;
  SKV_CHECK(options.commands_max > 0 && options.events_max > 0, "queues have places");
  auto state = std::make_unique<State>(std::move(options), std::move(pool), std::move(wake_loop));
  Result<UniqueFd> doorbell = create_event_doorbell();
  if (!doorbell.ok()) return doorbell.error();
  state->doorbell = std::move(doorbell).value();
  state->epoll.reset(::epoll_create1(EPOLL_CLOEXEC));
  if (!state->epoll) return os_error("epoll_create1 of the data thread");
  state->watch(state->doorbell.get(), true);
  if (state->pool->wake_descriptor() >= 0) {
    state->watch(state->pool->wake_descriptor(), true, State::Trigger::kLevel);
  }
  State* const borrowed = state.get();
  state->thread = std::thread([borrowed] { borrowed->run(); });
  return std::unique_ptr<DataThread>(new DataThread(std::move(state)));
}

void DataThread::post(DataCommand command) {
  State& state = *state_;
  if (!state.spilled.empty() || !state.commands.push(command)) {
    state.spilled.push_back(std::move(command));
    DataCounters::add(state.counters.commands_spilled, 1);
    state.push_spilled();
  }
  state.ring();
}

size_t DataThread::drain(const std::function<void(DataEvent)>& handle, size_t events_max) {
  State& state = *state_;
  size_t count = 0;
  while (count < events_max) {
    std::optional<DataEvent> event = state.events.pop();
    if (!event) break;
    handle(std::move(*event));
    ++count;
  }
  bool ring = state.events_held.exchange(false, std::memory_order_seq_cst);
  if (!state.spilled.empty()) {
    state.push_spilled();
    ring = true;
  }
  if (ring) state.ring();
  return count;
}

DataStatistics DataThread::statistics() const {
  const DataCounters& from = state_->counters;
  DataStatistics to;
  const auto get = [](const DataCounters::Counter& counter) {
    return counter.load(std::memory_order_relaxed);
  };
  to.prefetches = get(from.prefetches);
  to.prefetches_busy = get(from.prefetches_busy);
  to.prefetches_failed = get(from.prefetches_failed);
  to.hits_device = get(from.hits_device);
  to.hits_host = get(from.hits_host);
  to.hits_nvme = get(from.hits_nvme);
  to.misses = get(from.misses);
  to.read_ahead_asked = get(from.read_ahead_asked);
  to.read_ahead_used = get(from.read_ahead_used);
  to.read_ahead_late = get(from.read_ahead_late);
  to.read_ahead_wasted = get(from.read_ahead_wasted);
  to.blocks_read = get(from.blocks_read);
  to.bytes_moved = get(from.bytes_moved);
  to.bytes_put = get(from.bytes_put);
  to.bytes_loaded = get(from.bytes_loaded);
  to.bytes_summed_again = get(from.bytes_summed_again);
  to.tasks = get(from.tasks);
  to.rank_us = get(from.rank_ns) / 1000;
  to.recall_rankings = get(from.recall_rankings);
  to.recall_wanted = get(from.recall_wanted);
  to.recall_found = get(from.recall_found);
  to.prefetch_us = get(from.prefetch_us);
  to.prefetch_us_p50 = from.latency_us.quantile(0.50);
  to.prefetch_us_p99 = from.latency_us.quantile(0.99);
  to.protocol_errors = get(from.protocol_errors);
  to.devices_lost = get(from.devices_lost);
  to.commands_spilled = get(from.commands_spilled);
  to.channels = get(from.channels);
  to.windows = get(from.windows);
  to.feeds = get(from.feeds);
  to.vector_pages_bytes = get(from.vector_pages_bytes);
  to.device_bytes_used = get(from.device_bytes_used);
  to.device_bytes_budget = get(from.device_bytes_budget);
  return to;
}

void DataThread::stop() {
  State& state = *state_;
  if (!state.thread.joinable()) return;
  state.stop.store(true, std::memory_order_seq_cst);
  ring_doorbell(state.doorbell.get());
  state.thread.join();
}

}  // namespace skv
