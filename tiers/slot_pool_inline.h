#pragma once

#include <memory>

#include "tiers/slot_pool.h"

namespace skv {

class SlabTable;

// The emulated device without a process of its own: everything completes inside the call, and is
// reported by the next poll(). For tests that have to be the same each run.
class InlineSlotPool final : public SlotPool {
 public:
  struct Options {
    uint64_t budget_bytes = 0;
    size_t moves_per_submit = ~size_t{0};  // takes at most this many at once
    bool hold_completions = false;         // until release_completions(): a slow device
    uint32_t copy_threads = 1;
  };
  explicit InlineSlotPool(const Options& options);
  InlineSlotPool(const InlineSlotPool&) = delete;
  InlineSlotPool& operator=(const InlineSlotPool&) = delete;
  ~InlineSlotPool() override;

  const char* kind() const override { return "emulated"; }
  std::array<uint8_t, 16> device_uuid() const override { return {}; }
  bool has_slabs() const override { return true; }
  uint64_t budget_bytes() const override;
  uint64_t used_bytes() const override;
  Result<void> map_arena(SpaceId space, int arena, uint64_t bytes) override;
  void unmap_arena(SpaceId space) override;
  Result<void> create_slab(PoolTicket ticket, uint64_t bytes) override;
  void destroy_slab(SlabId slab) override;
  size_t submit(PoolTicket ticket,
                SpaceId space,
                SlabId slab,
                std::span<const Move> moves) override;
  Poll poll() override;
  int wake_descriptor() const override { return -1; }

  // Faults, for tests.
  void release_completions() { released_ = completions_.size(); }
  void lose_device();

 private:
  struct Arena {
    UniqueFd descriptor;
    uint64_t bytes;
  };
  void start_device();

  Options options_;
  std::unique_ptr<SlabTable> table_;  // none: the device is lost
  std::vector<std::pair<SpaceId, Arena>> arenas_;
  std::vector<Completion> completions_;
  size_t released_ = 0;  // of completions_, from the front
  std::optional<std::string> lost_;
  uint32_t next_slab_ = 1;
};

}  // namespace skv
