#include "tiers/worker/device_worker.h"

#include <poll.h>
#include <sys/prctl.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "ipc/codec.h"
#include "ipc/doorbell.h"
#include "ipc/os_error.h"
#include "ipc/shared_memory.h"
#include "ipc/socket.h"
#include "tiers/worker/slab_table.h"

namespace skv {
namespace {

// Serves one daemon over one socket. Thread: the process's only one.
class DeviceWorker {
 public:
  explicit DeviceWorker(DeviceWorkerOptions options)
      : options_(std::move(options)), socket_(UniqueFd(options_.socket)) {}

  Result<void> run() {
    while (!closed_) {
      if (Result<void> read = read_socket(); !read.ok()) return read;
      if (Result<void> moved = run_batches(); !moved.ok()) return moved;
      if (Result<void> slept = sleep(); !slept.ok()) return slept;
    }
    return {};
  }

 private:
  Result<void> read_socket() {
    while (!closed_) {
      Frame frame;
      Result<ReceiveOutcome> received = socket_.receive(frame);
      if (!received.ok()) return received.error();
      if (received.value() == ReceiveOutcome::kWouldBlock) return {};
      if (received.value() == ReceiveOutcome::kClosed) {
        closed_ = true;
      } else if (Result<void> handled = handle(frame); !handled.ok()) {
        return handled;
      }
    }
    return {};
  }

  // An error ends the worker: the daemon and this process do not speak the same language.
  Result<void> handle(Frame& frame) {
    const auto verb = static_cast<WorkerVerb>(frame.header.verb);
    if (verb == WorkerVerb::kStart) return start(frame);
    if (!table_) return Error{ErrorCode::kProtocol, "a request before the start"};
    switch (verb) {
      case WorkerVerb::kMapArena: {
        const Result<WorkerMapArena> message = decode_body<WorkerMapArena>(frame.body);
        if (!message.ok()) return message.error();
        if (frame.fds.size() != 1) return Error{ErrorCode::kProtocol, "an arena without memory"};
        return table_->map_arena(SpaceId{message.value().space}, std::move(frame.fds[0]),
                                 message.value().bytes);
      }
      case WorkerVerb::kUnmapArena: {
        const Result<WorkerUnmapArena> message = decode_body<WorkerUnmapArena>(frame.body);
        if (!message.ok()) return message.error();
        table_->unmap_arena(SpaceId{message.value().space});
        return {};
      }
      case WorkerVerb::kCreateSlab:
        return create_slab(frame);
      case WorkerVerb::kDestroySlab: {
        const Result<WorkerDestroySlab> message = decode_body<WorkerDestroySlab>(frame.body);
        if (!message.ok()) return message.error();
        table_->destroy_slab(SlabId{message.value().slab});
        return {};
      }
      default:
        return Error{ErrorCode::kProtocol, "unknown request " + std::to_string(frame.header.verb)};
    }
  }

  Result<void> start(Frame& frame) {
    const Result<WorkerStart> message = decode_body<WorkerStart>(frame.body);
    if (!message.ok()) return message.error();
    if (table_ || frame.fds.size() != 3) return Error{ErrorCode::kProtocol, "a wrong start"};
    if (message.value().kind != options_.kind ||
        message.value().device_uuid != options_.device_uuid) {
      return Error{ErrorCode::kProtocol, "started for another device than the command line's"};
    }
    Result<std::unique_ptr<DeviceBackend>> backend =
        make_device_backend(options_.kind, message.value().copy_threads);
    if (!backend.ok()) return backend.error();
    Result<MappedMemory> memory =
        MappedMemory::map(frame.fds[0].get(), kWorkerLinkBytes, MappedMemory::Access::kReadWrite);
    if (!memory.ok()) return memory.error();
    memory_ = std::move(memory).value();
    doorbell_ = std::move(frame.fds[1]);
    daemon_doorbell_ = std::move(frame.fds[2]);
    batches_ = RingConsumer<WorkerBatch>(worker_batches(memory_.data()));
    done_ = RingProducer<WorkerDone>(worker_done(memory_.data()));
    table_ = std::make_unique<SlabTable>(std::move(backend).value(), message.value().budget_bytes);
    return reply(encode_reply(frame.header, Empty{}), {});
  }

  Result<void> create_slab(const Frame& frame) {
    const Result<WorkerCreateSlab> message = decode_body<WorkerCreateSlab>(frame.body);
    if (!message.ok()) return message.error();
    const Result<DeviceBackend::NewSlab> made =
        table_->create_slab(SlabId{message.value().slab}, message.value().bytes);
    if (!made.ok()) return reply(encode_error_reply(frame.header, made.error()), {});
    const std::array<int, 1> descriptor{made.value().descriptor.get()};
    return reply(encode_reply(frame.header, Empty{}, 1), descriptor);
  }

  // Waits for room: the daemon always reads its end, and nothing else is worth doing meanwhile.
  Result<void> reply(const std::vector<uint8_t>& frame, std::span<const int> fds) {
    for (;;) {
      const Result<SendOutcome> sent = socket_.send(frame, fds);
      if (!sent.ok()) return sent.error();
      if (sent.value() == SendOutcome::kSent) return {};
      pollfd writable{socket_.fd(), POLLOUT, 0};
      if (::poll(&writable, 1, -1) < 0 && errno != EINTR) return os_error("poll of the socket");
    }
  }

  Result<void> run_batches() {
    if (!table_) return {};
    bool answered = false;
    for (;;) {
      Result<std::optional<WorkerBatch>> batch = batches_.pop();
      if (!batch.ok()) return batch.error();
      if (!batch.value()) break;
      if (Result<void> done = run_batch(*batch.value(), answered); !done.ok()) return done;
    }
    for (const PoolTicket ticket : table_->poll()) {
      if (Result<void> told = tell(raw(ticket), ErrorCode::kOk); !told.ok()) return told;
      answered = true;
    }
    if (answered) ring_doorbell(daemon_doorbell_.get());
    return {};
  }

  Result<void> run_batch(const WorkerBatch& batch, bool& answered) {
    const SpaceId space{batch.space};
    const SlabId slab{batch.slab};
    if (!table_->has_arena(space) || !table_->has_slab(slab)) {
      if (Result<void> read = read_socket(); !read.ok()) return read;
    }
    Result<void> started = Error{ErrorCode::kInvalidArgument, "moves outside the batch area"};
    if (range_inside(batch.first_move, batch.move_count, kWorkerMoves)) {
      // Copied, then checked: what is checked is what runs.
      moves_.resize(batch.move_count);
      if (batch.move_count > 0) {
        std::memcpy(moves_.data(),
                    memory_.data() + kWorkerMovesOffset +
                        uint64_t{batch.first_move} * sizeof(SlotPool::Move),
                    moves_.size() * sizeof(SlotPool::Move));
      }
      started = table_->start({PoolTicket{batch.ticket}, space, slab, moves_});
    }
    if (started.ok()) return {};
    std::fprintf(stderr, "skvd device worker: %s\n", started.error().message.c_str());
    answered = true;
    return tell(batch.ticket, started.error().code);
  }

  Result<void> tell(uint64_t ticket, ErrorCode status) {
    const Result<bool> pushed = done_.push({ticket, static_cast<int32_t>(status), 0});
    if (!pushed.ok()) return pushed.error();
    if (!pushed.value()) return Error{ErrorCode::kProtocol, "more batches than the ring holds"};
    return {};
  }

  Result<void> sleep() {
    if (closed_) return {};
    if (table_) {
      announce_sleep(worker_link_header(memory_.data()).worker_sleeps);
      const Result<uint32_t> waiting = batches_.available();
      if (!waiting.ok()) return waiting.error();
      if (waiting.value() > 0) {
        announce_awake(worker_link_header(memory_.data()).worker_sleeps);
        return {};
      }
    }
    std::array<pollfd, 2> watched{pollfd{socket_.fd(), POLLIN, 0},
                                  pollfd{doorbell_.get(), POLLIN, 0}};
    if (::poll(watched.data(), watched.size(), -1) < 0 && errno != EINTR) {
      return os_error("poll of socket and doorbell");
    }
    if (table_) {
      announce_awake(worker_link_header(memory_.data()).worker_sleeps);
      drain_doorbell(doorbell_.get());
    }
    return {};
  }

  DeviceWorkerOptions options_;
  FrameSocket socket_;
  bool closed_ = false;
  std::unique_ptr<SlabTable> table_;  // none before kStart
  MappedMemory memory_;
  UniqueFd doorbell_;
  UniqueFd daemon_doorbell_;
  RingConsumer<WorkerBatch> batches_;
  RingProducer<WorkerDone> done_;
  std::vector<SlotPool::Move> moves_;
};

}  // namespace

int run_device_worker(DeviceWorkerOptions options) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // a daemon that died before this: the socket tells
  ::prctl(PR_SET_NAME, "skvd-device");
  std::signal(SIGINT, SIG_IGN);
  std::signal(SIGTERM, SIG_IGN);
  std::signal(SIGPIPE, SIG_IGN);
  DeviceWorker worker(std::move(options));
  const Result<void> ended = worker.run();
  if (ended.ok() || ended.error().code == ErrorCode::kDisconnected) return 0;
  std::fprintf(stderr, "skvd device worker: %s\n", ended.error().message.c_str());
  return 1;
}

}  // namespace skv
