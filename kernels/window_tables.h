#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "ipc/layout/body_layout.h"
#include "ipc/layout/window.h"
#include "kernels/cut.h"

namespace skv {

// Of shares, or relative to what was ranked (RankOptions::best_blocks). Values as ScoresKind on the
// wire.
enum class Scores : uint8_t { kShares = 0, kRelative = 1 };

// What a window was opened with. Blocks per (layer, kv head).
struct WindowShape {
  uint32_t budget_blocks = 0;
  uint32_t sink_blocks = 0;
  uint32_t recent_blocks = 0;
  uint32_t resident_blocks = 0;
  CutUnit cut = CutUnit::kBlock;
  uint32_t coarse_blocks = 0;  // 0: 4 x budget, at least 512
  float mass = 0.0F;           // CutOptions::mass
  // Of each (layer, kv head), layer by layer, at most budget_blocks; empty: all have that.
  std::vector<uint32_t> head_budgets = {};
  float query_cosine = 0.0F;  // kernels/kept_reads.h; 0: every prefetch ranks
  Scores scores = Scores::kShares;

  // `resident_set`: WindowLayout::resident_set(layer, head).
  CutOptions cut_options(uint32_t resident_set) const {
    return {cut, head_budgets.empty() ? budget_blocks : head_budgets[resident_set], mass};
  }
  uint32_t width() const { return sink_blocks + budget_blocks + recent_blocks; }
};

// Where everything of one window is, in its tables' memory and in its slots: the same arithmetic
// for the daemon, which makes the memory, and for the client, which maps it.
//
// Units   bytes.
// Thread  immutable after construction; any. Borrows the body layout.
class WindowLayout {
 public:
  // `touched_capacity`: sentences of the context, for windows whose client ranks; else 0.
  WindowLayout(const BodyLayout& body,
               const WindowShape& shape,
               bool slots_in_host,
               uint32_t touched_capacity);

  const BodyLayout& body() const { return *body_; }
  const WindowShape& shape() const { return shape_; }
  uint32_t width() const { return shape_.width(); }
  bool slots_in_host() const { return slots_in_host_; }
  uint32_t slot_unit_bytes() const { return slot_unit_bytes_; }
  uint64_t tables_bytes() const { return tables_bytes_; }
  uint64_t slots_bytes() const { return slots_bytes_; }  // 0 where they are in the host tier
  uint64_t touched_offset() const { return touched_offset_; }
  uint32_t resident_sets() const { return resident_sets_; }

  uint64_t table_offset(uint32_t layer) const { return layers_[layer].header; }
  // Index of the resident set of a (layer, head).
  uint32_t resident_set(uint32_t layer, uint32_t head) const {
    return layers_[layer].first_resident + head;
  }
  // From the slots' start.
  uint64_t slot_offset(uint32_t layer, uint32_t head, uint32_t slot) const {
    return layers_[layer].slots +
           (uint64_t{head} * shape_.resident_blocks + slot) * body_->block_bytes(layer);
  }
  // As a table says it.
  uint32_t slot_index(uint32_t layer, uint32_t head, uint32_t slot) const {
    return static_cast<uint32_t>(slot_offset(layer, head, slot) / slot_unit_bytes_);
  }

 private:
  struct Layer {
    uint32_t first_resident = 0;
    uint64_t slots = 0;   // offset of its slots
    uint64_t header = 0;  // offset of its LayerTableHeader
  };
  const BodyLayout* body_;
  WindowShape shape_;
  bool slots_in_host_;
  uint32_t slot_unit_bytes_ = 1;
  uint32_t resident_sets_ = 0;
  uint64_t slots_bytes_ = 0;
  uint64_t tables_bytes_ = 0;
  uint64_t touched_offset_ = 0;
  std::vector<Layer> layers_;
};

// The arrays of one table, to be filled from entry 0 on; room for heads x width entries.
struct TableArrays {
  uint32_t* indptr = nullptr;
  uint32_t* slot = nullptr;
  uint32_t* block = nullptr;
  uint32_t* sentence = nullptr;
  float* score = nullptr;
  uint8_t* origin = nullptr;

  // The same table from entry `at` on.
  TableArrays from(uint32_t at) const {
    return {indptr, slot + at, block + at, sentence + at, score + at, origin + at};
  }
};

// Writes the tables of one window: the daemon, or the client that ranks for itself. What it has
// written is its own knowledge and never read back from the memory.
//
// Versions  a buffer may be written again only when readers_done has reached the version it holds.
// Thread    the one that ranks. Borrows layout and memory.
class WindowTables {
 public:
  WindowTables() = default;
  WindowTables(const WindowLayout& layout, std::byte* memory);
  // Makes the memory a window's. Once, by the daemon.
  void format(uint64_t slots_bytes);

  WindowHeader& header() const;
  bool buffer_is_free(uint32_t layer, uint64_t readers_done) const;
  // The buffer that is not current. Requires: buffer_is_free.
  TableArrays buffer(uint32_t layer) const;
  struct Published {
    uint64_t version = 0;
    uint32_t covered_to = 0;
    uint32_t entry_count = 0;
    float unread_mass = 0.0F;
  };
  // Whether a table that readers may still have (its version is above readers_done) names a slot in
  // [offset, offset + bytes). For a side that did not write the tables: what it reads is hostile,
  // and so is the answer.
  bool names(uint32_t layer, uint64_t readers_done, uint64_t offset, uint64_t bytes) const;
  // Makes the buffer current, in one store. Requires: versions rise per layer.
  void publish(uint32_t layer, const Published& table);

 private:
  struct Layer {
    uint32_t current = 1;           // buffer
    uint64_t versions[2] = {0, 0};  // that the buffers hold
  };
  std::byte* buffer_base(uint32_t layer, uint32_t buffer) const;

  const WindowLayout* layout_ = nullptr;
  std::byte* memory_ = nullptr;
  std::vector<Layer> layers_;
};

}  // namespace skv
