#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <type_traits>

#include "ipc/layout/body_layout.h"
#include "ipc/messages.h"
#include "ipc/ring.h"
#include "tiers/slot_pool.h"

namespace skv {

// Between the daemon and its device worker, both of one build: frames of ipc/codec.h on an
// inherited SEQPACKET socket for what is rare, and two rings plus a batch area in one sealed memfd
// for moves.
//
//   [WorkerLinkHeader 4 KiB][kWorkerBatches x WorkerBatch][kWorkerBatches x WorkerDone]
//   [kWorkerMoves x SlotPool::Move]
//
// The daemon sends a frame before it pushes a batch that needs it, so a worker that does not know a
// slab or an arena reads its socket once more before it refuses.
enum class WorkerVerb : uint16_t {
  kStart = 256,     // + memory, doorbell of the worker, doorbell of the daemon; answered
  kMapArena = 257,  // + the arena
  kUnmapArena = 258,
  kCreateSlab = 259,  // answered, + the slab
  kDestroySlab = 260,
};

struct WorkerStart {
  std::string kind;
  std::array<uint8_t, 16> device_uuid{};
  uint64_t budget_bytes = 0;
  uint32_t copy_threads = 1;
  SKV_FIELDS(kind, device_uuid, budget_bytes, copy_threads)
};
struct WorkerMapArena {
  uint32_t space = 0;
  uint64_t bytes = 0;
  SKV_FIELDS(space, bytes)
};
struct WorkerUnmapArena {
  uint32_t space = 0;
  SKV_FIELDS(space)
};
struct WorkerCreateSlab {
  uint32_t slab = 0;
  uint64_t bytes = 0;
  SKV_FIELDS(slab, bytes)
};
struct WorkerDestroySlab {
  uint32_t slab = 0;
  SKV_FIELDS(slab)
};

inline constexpr uint32_t kWorkerBatches = 256;      // in flight
inline constexpr uint32_t kWorkerMoves = 32 * 1024;  // in flight: 768 KiB
inline constexpr int kWorkerSocket = 3;              // descriptor that the worker inherits

struct WorkerBatch {
  uint64_t ticket;
  uint32_t space;
  uint32_t slab;
  uint32_t first_move;  // in the batch area
  uint32_t move_count;
};
static_assert(sizeof(WorkerBatch) == 24);

struct WorkerDone {
  uint64_t ticket;
  int32_t status;  // ErrorCode
  uint32_t reserved;
};
static_assert(sizeof(WorkerDone) == 16);

static_assert(sizeof(SlotPool::Move) == 24 && std::is_trivially_copyable_v<SlotPool::Move>);

struct WorkerLinkHeader {
  alignas(64) std::atomic<uint32_t> batch_tail;  // daemon writes
  alignas(64) std::atomic<uint32_t> batch_head;  // worker writes
  alignas(64) std::atomic<uint32_t> done_tail;   // worker writes
  alignas(64) std::atomic<uint32_t> done_head;   // daemon writes
  alignas(64) std::atomic<uint32_t> worker_sleeps;
};
static_assert(sizeof(WorkerLinkHeader) == 320);

inline constexpr uint64_t kWorkerBatchesOffset = kPageBytes;
inline constexpr uint64_t kWorkerDoneOffset =
    kWorkerBatchesOffset + kWorkerBatches * sizeof(WorkerBatch);
inline constexpr uint64_t kWorkerMovesOffset =
    kWorkerDoneOffset + kWorkerBatches * sizeof(WorkerDone);
inline constexpr uint64_t kWorkerLinkBytes =
    (kWorkerMovesOffset + kWorkerMoves * sizeof(SlotPool::Move) + kPageBytes - 1) / kPageBytes *
    kPageBytes;

inline WorkerLinkHeader& worker_link_header(std::byte* base) {
  return *reinterpret_cast<WorkerLinkHeader*>(base);
}
inline RingMemory<WorkerBatch> worker_batches(std::byte* base) {
  WorkerLinkHeader& header = worker_link_header(base);
  return {&header.batch_tail, &header.batch_head, base + kWorkerBatchesOffset, kWorkerBatches};
}
inline RingMemory<WorkerDone> worker_done(std::byte* base) {
  WorkerLinkHeader& header = worker_link_header(base);
  return {&header.done_tail, &header.done_head, base + kWorkerDoneOffset, kWorkerBatches};
}

}  // namespace skv
