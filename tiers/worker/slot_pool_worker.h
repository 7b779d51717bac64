#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "ipc/ring.h"
#include "ipc/shared_memory.h"
#include "ipc/socket.h"
#include "tiers/slot_pool.h"
#include "tiers/worker/child_process.h"
#include "tiers/worker/protocol.h"

namespace skv {

// The device tier in a process of its own (tiers/worker/README.md), so that a device error costs
// that process and not the daemon.
//
// The worker is started by the first create_slab, and again by the first one after it died; after
// kStartsMax starts within kStartsWindowNs create_slab refuses with kStale until the window passed.
// One that hangs is killed after one to two times `hang_ms` without an answer.
class WorkerSlotPool final : public SlotPool {
 public:
  static constexpr size_t kStartsMax = 8;
  static constexpr uint64_t kStartsWindowNs = 10'000'000'000;

  // kUnsupported, by name, for a kind that this build's worker does not serve.
  static Result<std::unique_ptr<SlotPool>> create(const SlotPoolOptions& options);
  WorkerSlotPool(const WorkerSlotPool&) = delete;
  WorkerSlotPool& operator=(const WorkerSlotPool&) = delete;
  ~WorkerSlotPool() override;

  const char* kind() const override { return options_.kind.c_str(); }
  std::array<uint8_t, 16> device_uuid() const override { return options_.device_uuid; }
  bool has_slabs() const override { return true; }
  uint64_t budget_bytes() const override { return options_.budget_bytes; }
  uint64_t used_bytes() const override { return used_bytes_; }
  Result<void> map_arena(SpaceId space, int arena, uint64_t bytes) override;
  void unmap_arena(SpaceId space) override;
  Result<void> create_slab(PoolTicket ticket, uint64_t bytes) override;
  void destroy_slab(SlabId slab) override;
  size_t submit(PoolTicket ticket,
                SpaceId space,
                SlabId slab,
                std::span<const Move> moves) override;
  Poll poll() override;
  int wake_descriptor() const override { return epoll_.get(); }

  pid_t worker_pid() const { return worker_ ? worker_->process.pid() : 0; }

 private:
  struct Arena {
    UniqueFd descriptor;
    uint64_t bytes = 0;
  };
  struct OutgoingFrame {
    std::vector<uint8_t> bytes;
    std::vector<UniqueFd> fds;
  };
  struct Batch {
    PoolTicket ticket{};
    uint32_t first_move = 0;
    uint32_t end_move = 0;
    bool done = false;
  };
  struct NewSlab {
    SlabId id{};
    uint64_t bytes = 0;
  };
  // One life of the process and what was asked of it.
  struct Worker {
    ChildProcess process;
    FrameSocket socket;
    MappedMemory memory;
    UniqueFd doorbell;         // we ring it
    UniqueFd daemon_doorbell;  // it rings us
    RingProducer<WorkerBatch> batches;
    RingConsumer<WorkerDone> done;
    std::deque<OutgoingFrame> outgoing;
    std::deque<Batch> in_flight;                     // in order of the batch area
    std::unordered_map<uint64_t, NewSlab> creating;  // by ticket
    std::unordered_map<SlabId, uint64_t> slabs;      // bytes
    uint64_t answers = 0;                            // ever
    std::optional<uint64_t> answers_before;          // at the last tick, if one was owed then
  };

  explicit WorkerSlotPool(SlotPoolOptions options) : options_(std::move(options)) {}
  Result<void> start();
  Result<std::unique_ptr<Worker>> spawn();
  void watch(int fd, uint32_t events);
  void send(std::vector<uint8_t> frame, std::vector<UniqueFd> fds = {});
  Result<void> flush();
  Result<void> read_socket();
  Result<void> handle(Frame& frame);
  Result<void> take_done();
  Result<void> tick();
  void lose(const std::string& reason);
  std::optional<std::pair<uint32_t, uint32_t>> room_for(uint32_t moves) const;

  SlotPoolOptions options_;
  UniqueFd epoll_;
  UniqueFd ticks_;             // a timer, while there is a worker
  UniqueFd pending_doorbell_;  // rung when pending_ gets something outside poll()
  std::vector<std::pair<SpaceId, Arena>> arenas_;
  std::unique_ptr<Worker> worker_;  // none: not started, or died
  uint64_t used_bytes_ = 0;         // slabs and what is being created
  uint32_t next_slab_ = 1;
  std::deque<uint64_t> starts_ns_;
  Poll pending_;              // what the next poll() reports
  bool frames_wait_ = false;  // EPOLLOUT is on
};

}  // namespace skv
