#include "tiers/worker/slot_pool_worker.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <ctime>
#include <utility>

#include "ipc/codec.h"
#include "ipc/doorbell.h"
#include "ipc/os_error.h"
#include "ipc/types/check.h"
#include "tiers/worker/device_backend.h"

namespace skv {
namespace {

uint64_t monotonic_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

UniqueFd duplicate(int fd) { return UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, 0)); }

template <typename Message>
std::vector<uint8_t> request(WorkerVerb verb,
                             PoolTicket ticket,
                             const Message& message,
                             uint16_t fd_count = 0) {
  FrameHeader header;
  header.verb = static_cast<uint16_t>(verb);
  header.ticket = raw(ticket);
  header.fd_count = fd_count;
  return encode_frame(header, message);
}

}  // namespace

Result<std::unique_ptr<SlotPool>> WorkerSlotPool::create(const SlotPoolOptions& options) {
  if (Result<std::unique_ptr<DeviceBackend>> backend =
          make_device_backend(options.kind, options.copy_threads);
      !backend.ok()) {
    return backend.error();
  }
  std::unique_ptr<WorkerSlotPool> pool(new WorkerSlotPool(options));
  if (pool->options_.worker_program.empty()) pool->options_.worker_program = "/proc/self/exe";
  pool->epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
  if (!pool->epoll_) return os_error("epoll_create1 of the slot pool");
  Result<UniqueFd> doorbell = create_event_doorbell();
  if (!doorbell.ok()) return doorbell.error();
  pool->pending_doorbell_ = std::move(doorbell).value();
  pool->watch(pool->pending_doorbell_.get(), EPOLLIN);
  return std::unique_ptr<SlotPool>(std::move(pool));
}

WorkerSlotPool::~WorkerSlotPool() = default;

Result<void> WorkerSlotPool::start() {
  const uint64_t now = monotonic_ns();
  while (!starts_ns_.empty() && now - starts_ns_.front() > kStartsWindowNs) starts_ns_.pop_front();
  if (starts_ns_.size() >= kStartsMax) {
    return Error{ErrorCode::kStale, "the device worker was started " +
                                        std::to_string(starts_ns_.size()) +
                                        " times within 10 s; try again later"};
  }
  starts_ns_.push_back(now);
  Result<std::unique_ptr<Worker>> spawned = spawn();
  if (!spawned.ok()) return spawned.error();
  ticks_.reset(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
  if (!ticks_) return os_error("timerfd_create of the device worker");
  itimerspec period{};
  period.it_interval.tv_sec = options_.hang_ms / 1000;
  period.it_interval.tv_nsec = static_cast<int64_t>(options_.hang_ms % 1000) * 1'000'000;
  period.it_value = period.it_interval;
  if (::timerfd_settime(ticks_.get(), 0, &period, nullptr) != 0) {
    return os_error("timerfd_settime of the device worker");
  }
  worker_ = std::move(spawned).value();
  frames_wait_ = false;
  watch(ticks_.get(), EPOLLIN);
  watch(worker_->socket.fd(), EPOLLIN);
  watch(worker_->daemon_doorbell.get(), EPOLLIN);
  watch(worker_->process.pidfd(), EPOLLIN);
  return {};
}

Result<std::unique_ptr<WorkerSlotPool::Worker>> WorkerSlotPool::spawn() {
  auto worker = std::make_unique<Worker>();
  Result<UniqueFd> memory = create_shared_memory("skvd-device-link", kWorkerLinkBytes);
  if (!memory.ok()) return memory.error();
  Result<MappedMemory> mapping =
      MappedMemory::map(memory.value().get(), kWorkerLinkBytes, MappedMemory::Access::kReadWrite);
  if (!mapping.ok()) return mapping.error();
  worker->memory = std::move(mapping).value();
  worker->batches = RingProducer<WorkerBatch>(worker_batches(worker->memory.data()));
  worker->done = RingConsumer<WorkerDone>(worker_done(worker->memory.data()));
  Result<UniqueFd> doorbell = create_event_doorbell();
  if (!doorbell.ok()) return doorbell.error();
  Result<UniqueFd> daemon_doorbell = create_event_doorbell();
  if (!daemon_doorbell.ok()) return daemon_doorbell.error();
  worker->doorbell = std::move(doorbell).value();
  worker->daemon_doorbell = std::move(daemon_doorbell).value();
  Result<SocketPair> sockets = create_socket_pair();
  if (!sockets.ok()) return sockets.error();

  ChildProcess::Options child;
  child.program = options_.worker_program;
  child.arguments = {"--device-worker", uuid_text(options_.device_uuid), "--device-kind",
                     options_.kind};
  child.inherited = sockets.value().second.get();
  child.as = kWorkerSocket;
  Result<ChildProcess> process = ChildProcess::spawn(child);
  if (!process.ok()) return process.error();
  worker->process = std::move(process).value();
  worker->socket = FrameSocket(std::move(sockets.value().first));

  WorkerStart message;
  message.kind = options_.kind;
  message.device_uuid = options_.device_uuid;
  message.budget_bytes = options_.budget_bytes;
  message.copy_threads = options_.copy_threads;
  std::vector<UniqueFd> fds;
  fds.push_back(std::move(memory).value());
  fds.push_back(duplicate(worker->doorbell.get()));
  fds.push_back(duplicate(worker->daemon_doorbell.get()));
  worker->outgoing.push_back(
      {request(WorkerVerb::kStart, PoolTicket{}, message, 3), std::move(fds)});
  for (const auto& [space, arena] : arenas_) {
    std::vector<UniqueFd> descriptor;
    descriptor.push_back(duplicate(arena.descriptor.get()));
    worker->outgoing.push_back(
        {request(WorkerVerb::kMapArena, PoolTicket{}, WorkerMapArena{raw(space), arena.bytes}, 1),
         std::move(descriptor)});
  }
  return worker;
}

void WorkerSlotPool::watch(int fd, uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.fd = fd;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event);
  }
}

void WorkerSlotPool::send(std::vector<uint8_t> frame, std::vector<UniqueFd> fds) {
  if (!worker_) return;
  worker_->outgoing.push_back({std::move(frame), std::move(fds)});
  if (Result<void> sent = flush(); !sent.ok()) lose(sent.error().message);
}

Result<void> WorkerSlotPool::flush() {
  std::deque<OutgoingFrame>& outgoing = worker_->outgoing;
  while (!outgoing.empty()) {
    std::vector<int> fds;
    for (const UniqueFd& fd : outgoing.front().fds) fds.push_back(fd.get());
    const Result<SendOutcome> sent = worker_->socket.send(outgoing.front().bytes, fds);
    if (!sent.ok()) return sent.error();
    if (sent.value() == SendOutcome::kWouldBlock) break;
    outgoing.pop_front();
  }
  if (frames_wait_ != !outgoing.empty()) {
    frames_wait_ = !outgoing.empty();
    watch(worker_->socket.fd(), frames_wait_ ? EPOLLIN | EPOLLOUT : EPOLLIN);
  }
  return {};
}

Result<void> WorkerSlotPool::map_arena(SpaceId space, int arena, uint64_t bytes) {
  UniqueFd kept = duplicate(arena);
  UniqueFd sent = duplicate(arena);
  if (!kept || !sent) return os_error("dup of an arena");
  std::erase_if(arenas_, [&](const auto& entry) { return entry.first == space; });
  arenas_.emplace_back(space, Arena{std::move(kept), bytes});
  std::vector<UniqueFd> fds;
  fds.push_back(std::move(sent));
  send(request(WorkerVerb::kMapArena, PoolTicket{}, WorkerMapArena{raw(space), bytes}, 1),
       std::move(fds));
  return {};
}

void WorkerSlotPool::unmap_arena(SpaceId space) {
  std::erase_if(arenas_, [&](const auto& entry) { return entry.first == space; });
  send(request(WorkerVerb::kUnmapArena, PoolTicket{}, WorkerUnmapArena{raw(space)}));
}

Result<void> WorkerSlotPool::create_slab(PoolTicket ticket, uint64_t bytes) {
  if (bytes == 0) return Error{ErrorCode::kInvalidArgument, "a slab of 0 bytes"};
  if (bytes > options_.budget_bytes - used_bytes_) {
    return no_room(bytes, used_bytes_, options_.budget_bytes);
  }
  if (!worker_) {
    if (Result<void> started = start(); !started.ok()) return started;
  }
  const SlabId id{next_slab_++};
  worker_->creating.emplace(raw(ticket), NewSlab{id, bytes});
  used_bytes_ += bytes;
  send(request(WorkerVerb::kCreateSlab, ticket, WorkerCreateSlab{raw(id), bytes}));
  return {};
}

void WorkerSlotPool::destroy_slab(SlabId slab) {
  if (!worker_) return;
  const auto found = worker_->slabs.find(slab);
  if (found == worker_->slabs.end()) return;
  used_bytes_ -= found->second;
  worker_->slabs.erase(found);
  send(request(WorkerVerb::kDestroySlab, PoolTicket{}, WorkerDestroySlab{raw(slab)}));
}

// Where a batch of `moves` or fewer fits, without wrapping: [first, end) with end > first. The area
// is used in a circle and given back in order.
std::optional<std::pair<uint32_t, uint32_t>> WorkerSlotPool::room_for(uint32_t moves) const {
  const std::deque<Batch>& in_flight = worker_->in_flight;
  if (in_flight.empty()) return std::pair(0U, std::min(moves, kWorkerMoves));
  const uint32_t oldest = in_flight.front().first_move;
  const uint32_t newest = in_flight.back().end_move;
  if (newest <= oldest) {  // wrapped: free is [newest, oldest)
    if (newest == oldest) return std::nullopt;
    return std::pair(newest, std::min(newest + moves, oldest));
  }
  // Free is [newest, end) and [0, oldest): the first if it holds all or is the larger.
  const uint32_t behind = kWorkerMoves - newest;
  if (behind > 0 && (behind >= moves || behind >= oldest)) {
    return std::pair(newest, newest + std::min(moves, behind));
  }
  if (oldest == 0) return std::nullopt;
  return std::pair(0U, std::min(moves, oldest));
}

size_t WorkerSlotPool::submit(PoolTicket ticket,
                              SpaceId space,
                              SlabId slab,
                              std::span<const Move> moves) {
  SKV_CHECK(!moves.empty(), "an empty batch");
  if (!worker_) {
    pending_.completions.push_back(
        {ticket, Error{ErrorCode::kStale, "the device worker of this slab is gone"}, {}});
    ring_doorbell(pending_doorbell_.get());
    return moves.size();
  }
  // A frame that still waits may be the one that this batch needs.
  if (!worker_->outgoing.empty() || worker_->in_flight.size() >= kWorkerBatches) return 0;
  const uint32_t wanted = static_cast<uint32_t>(std::min<size_t>(moves.size(), kWorkerMoves));
  const auto room = room_for(wanted);
  if (!room) return 0;
  const auto [first, end] = *room;
  const uint32_t count = end - first;
  std::memcpy(worker_->memory.data() + kWorkerMovesOffset + uint64_t{first} * sizeof(Move),
              moves.data(), count * sizeof(Move));
  const Result<bool> pushed =
      worker_->batches.push({raw(ticket), raw(space), raw(slab), first, count});
  if (!pushed.ok()) {
    worker_->in_flight.push_back({ticket, first, end, false});
    lose(pushed.error().message);
    return count;
  }
  if (!pushed.value()) return 0;
  worker_->in_flight.push_back({ticket, first, end, false});
  ring_if_asleep(worker_link_header(worker_->memory.data()).worker_sleeps, worker_->doorbell.get());
  return count;
}

SlotPool::Poll WorkerSlotPool::poll() {
  // Everything that can be new has rung a descriptor of the set: one system call in the usual case.
  std::array<epoll_event, 5> events{};
  const int ready = ::epoll_wait(epoll_.get(), events.data(), events.size(), 0);
  if (ready <= 0) return {};
  const bool ticked = std::any_of(events.begin(), events.begin() + ready,
                                  [&](const auto& event) { return event.data.fd == ticks_.get(); });
  if (worker_) {
    drain_doorbell(worker_->daemon_doorbell.get());
    Result<void> outcome = take_done();
    if (outcome.ok()) outcome = flush();
    if (outcome.ok()) outcome = read_socket();
    if (outcome.ok() && ticked) outcome = tick();
    if (!outcome.ok()) {
      lose(outcome.error().message);
    } else if (std::optional<std::string> ended = worker_->process.ended(); ended) {
      lose("device worker: " + *ended);
    }
  }
  drain_doorbell(pending_doorbell_.get());
  return std::exchange(pending_, {});
}

Result<void> WorkerSlotPool::take_done() {
  for (;;) {
    const Result<std::optional<WorkerDone>> next = worker_->done.pop();
    if (!next.ok()) return next.error();
    if (!next.value()) return {};
    const WorkerDone& done = *next.value();
    const auto batch = std::find_if(
        worker_->in_flight.begin(), worker_->in_flight.end(),
        [&](const Batch& each) { return raw(each.ticket) == done.ticket && !each.done; });
    if (batch == worker_->in_flight.end()) {
      return Error{ErrorCode::kProtocol, "the worker answered a batch that nobody gave it"};
    }
    batch->done = true;
    ++worker_->answers;
    Result<void> status;
    if (done.status != 0) {
      status = Error{static_cast<ErrorCode>(done.status), "the device worker refused a batch"};
    }
    pending_.completions.push_back({batch->ticket, std::move(status), {}});
    while (!worker_->in_flight.empty() && worker_->in_flight.front().done) {
      worker_->in_flight.pop_front();
    }
  }
}

// Two ticks with an answer owed at both and none between them: it hangs.
Result<void> WorkerSlotPool::tick() {
  uint64_t expirations = 0;
  if (::read(ticks_.get(), &expirations, sizeof expirations) <= 0) return {};
  const bool owes = !worker_->in_flight.empty() || !worker_->creating.empty();
  if (owes && worker_->answers_before == worker_->answers) {
    return Error{ErrorCode::kStale, "device worker: no answer for " +
                                        std::to_string(options_.hang_ms) + " ms, it is killed"};
  }
  worker_->answers_before = owes ? std::optional(worker_->answers) : std::nullopt;
  return {};
}

Result<void> WorkerSlotPool::read_socket() {
  for (;;) {
    Frame frame;
    const Result<ReceiveOutcome> received = worker_->socket.receive(frame);
    if (!received.ok()) return received.error();
    if (received.value() == ReceiveOutcome::kWouldBlock) return {};
    if (received.value() == ReceiveOutcome::kClosed) {
      constexpr int kGraceMs = 100;
      return Error{ErrorCode::kStale, "device worker: " + worker_->process.end(kGraceMs)};
    }
    if (Result<void> handled = handle(frame); !handled.ok()) return handled;
  }
}

Result<void> WorkerSlotPool::handle(Frame& frame) {
  const auto verb = static_cast<WorkerVerb>(frame.header.verb);
  const Result<Empty> reply = decode_reply<Empty>(frame.header, frame.body);
  ++worker_->answers;
  if (verb == WorkerVerb::kStart) {
    if (!reply.ok()) return reply.error();
    return {};
  }
  const auto created = worker_->creating.find(frame.header.ticket);
  if (verb != WorkerVerb::kCreateSlab || created == worker_->creating.end()) {
    return Error{ErrorCode::kProtocol, "the worker answered what nobody asked"};
  }
  const NewSlab slab = created->second;
  const PoolTicket ticket{frame.header.ticket};
  worker_->creating.erase(created);
  if (!reply.ok()) {
    used_bytes_ -= slab.bytes;
    pending_.completions.push_back({ticket, reply.error(), {}});
    return {};
  }
  if (frame.fds.size() != 1) return Error{ErrorCode::kProtocol, "a slab without a descriptor"};
  worker_->slabs.emplace(slab.id, slab.bytes);
  pending_.completions.push_back(
      {ticket, {}, Slab{slab.id, slab.bytes, std::move(frame.fds[0]), nullptr}});
  return {};
}

void WorkerSlotPool::lose(const std::string& reason) {
  if (!worker_) return;
  const Error stale{ErrorCode::kStale, "the device worker is gone: " + reason};
  for (const Batch& batch : worker_->in_flight) {
    if (!batch.done) pending_.completions.push_back({batch.ticket, stale, {}});
  }
  for (const auto& [ticket, slab] : worker_->creating) {
    pending_.completions.push_back({PoolTicket{ticket}, stale, {}});
  }
  pending_.lost = reason;
  ring_doorbell(pending_doorbell_.get());
  used_bytes_ = 0;
  worker_.reset();  // kills it if it still runs; closed descriptors leave the epoll set
  ticks_.reset();
  frames_wait_ = false;
}

}  // namespace skv
