#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "ipc/types/ids.h"
#include "ipc/types/result.h"
#include "ipc/unique_fd.h"

namespace skv {

enum class SlabId : uint32_t {};      // of one pool, never reused; 0 is none
enum class PoolTicket : uint64_t {};  // given by the caller, unique among what is in flight

// The device tier: slabs that clients map, filled by batches of moves from the host arenas.
//
// A pool knows slabs, arenas and byte ranges. It knows nothing of windows, blocks or leases;
// daemon/data/ decides those. Every pool passes tests/conformance/slot_pool_conformance.h.
//
// Shape    a slab is one range of bytes with one descriptor; an arena is the host tier of one space
//          (tiers/host arenas: a sealed memfd, its length is the tier's budget).
// Units    bytes; offsets from the start of the slab or the arena.
// Limits   the budget covers all slabs. submit() takes what fits the pool's batch area and says how
//          much that was.
// Thread   one thread, the data thread that owns it. Nothing blocks; outcomes come from poll().
// Owns     its slabs and its copies of the arenas' descriptors. A slab's descriptor is handed out
//          once, the client may keep it longer than the slab lives.
// Errors   a dead device fails every ticket in flight with kStale and reports `lost` once; slabs
// are
//          gone with it. The next create_slab starts the device again.
class SlotPool {
 public:
  struct Move {
    uint64_t from = 0;  // in the arena
    uint64_t to = 0;    // in the slab
    uint32_t bytes = 0;
  };

  struct Slab {
    SlabId id{};
    uint64_t bytes = 0;
    UniqueFd descriptor;        // to hand to the client; empty in `none`
    std::byte* base = nullptr;  // where the slab is mapped in this process, if it is
  };

  struct Completion {
    PoolTicket ticket{};
    Result<void> status;
    std::optional<Slab> slab;  // of create_slab, on success
  };

  struct Poll {
    std::vector<Completion> completions;
    std::optional<std::string> lost;  // the device died since the last poll, and how
  };

  virtual ~SlotPool() = default;

  virtual const char* kind() const = 0;  // "emulated", "cuda", "none"
  virtual std::array<uint8_t, 16> device_uuid() const = 0;
  // False in `none`: windows read host extents in place, create_slab and submit refuse.
  virtual bool has_slabs() const = 0;
  virtual uint64_t budget_bytes() const = 0;
  virtual uint64_t used_bytes() const = 0;

  // Makes the host tier of a space readable as the source of moves; kept for restarts of the
  // device. `arena` is duplicated. Moves from an arena that was not mapped fail.
  virtual Result<void> map_arena(SpaceId space, int arena, uint64_t bytes) = 0;
  virtual void unmap_arena(SpaceId space) = 0;

  // kNoSpace at once, with both numbers, when the budget cannot hold it; else a completion follows.
  virtual Result<void> create_slab(PoolTicket ticket, uint64_t bytes) = 0;
  // Requires: no batch into it is in flight. Unknown ids (a lost device's) are ignored.
  virtual void destroy_slab(SlabId slab) = 0;

  // Copies moves[0, taken) into the slab; one completion for them all. Returns `taken`: 0 when the
  // pool is full now (poll, then try again), less than all when only part fits. The moves are
  // copied before it returns. A batch with a range outside slab or arena completes with
  // kInvalidArgument and moves nothing.
  virtual size_t submit(PoolTicket ticket,
                        SpaceId space,
                        SlabId slab,
                        std::span<const Move> moves) = 0;

  virtual Poll poll() = 0;

  // Readable when poll() has something; -1 when everything completes inside submit(). Stable for
  // the life of the pool: an epoll descriptor, so it may be added to another epoll.
  virtual int wake_descriptor() const = 0;
};

struct SlotPoolOptions {
  std::string kind = "none";  // "none", "emulated", "cuda"
  std::array<uint8_t, 16> device_uuid{};
  uint64_t budget_bytes = 0;
  uint32_t copy_threads = 1;   // of the worker, where its processor copies
  std::string worker_program;  // path of skvd; empty: /proc/self/exe
  uint32_t hang_ms = 10'000;   // a worker that owes an answer and gives none for so long is dead
};

// 8-4-4-4-12 hexadecimal digits.
std::string uuid_text(const std::array<uint8_t, 16>& uuid);
std::optional<std::array<uint8_t, 16>> parse_uuid(const std::string& text);

// kNoSpace: a slab of `bytes` beside `used_bytes` is above the device budget.
Error no_room(uint64_t bytes, uint64_t used_bytes, uint64_t budget_bytes);

// kUnsupported, by name, for a kind this build does not serve.
Result<std::unique_ptr<SlotPool>> make_slot_pool(const SlotPoolOptions& options);

}  // namespace skv
