#include "daemon/data/window.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "ipc/types/check.h"

namespace skv {
Window::Window(const OpenWindow& options, std::shared_ptr<Feed> feed, bool slots_in_host)
    : options_(options),
      feed_(std::move(feed)),
      slots_in_host_(slots_in_host),
      layout_(feed_->layout(),
              options.shape,
              slots_in_host,
              client_ranks() ? feed_->map()->sentence_capacity() : 0) {}

Result<std::unique_ptr<Window>> Window::create(const OpenWindow& options,
                                               std::shared_ptr<Feed> feed,
                                               bool slots_in_host,
                                               uint64_t arena_bytes,
                                               UniqueFd& tables) {
  std::unique_ptr<Window> window(new Window(options, std::move(feed), slots_in_host));
  const WindowLayout& layout = window->layout_;
  window->slots_bytes_ = slots_in_host ? arena_bytes : layout.slots_bytes();
  if (window->slots_bytes_ / layout.slot_unit_bytes() > UINT32_MAX) {
    return Error{ErrorCode::kTooLarge,
                 "slots of " + std::to_string(window->slots_bytes_) + " bytes in units of " +
                     std::to_string(layout.slot_unit_bytes()) + " need more than 32 bits"};
  }
  Result<UniqueFd> memory = create_shared_memory("skv-window", layout.tables_bytes());
  if (!memory.ok()) return memory.error();
  Result<MappedMemory> mapping = MappedMemory::map(memory.value().get(), layout.tables_bytes(),
                                                   MappedMemory::Access::kReadWrite);
  if (!mapping.ok()) return mapping.error();
  window->memory_ = std::move(mapping).value();
  window->tables_ = WindowTables(layout, window->memory_.data());
  window->tables_.format(window->slots_bytes_);
  if (!window->client_ranks()) {
    window->kept_reads_ = KeptReads(options.shape.query_cosine, layout.resident_sets());
  }
  if (!slots_in_host && !window->client_ranks()) {
    for (uint32_t set = 0; set < layout.resident_sets(); ++set) {
      window->residents_.emplace_back(options.shape.resident_blocks);
    }
  }
  tables = std::move(memory).value();
  return window;
}

uint64_t Window::readers_done() {
  const uint64_t said = tables_.header().readers_done.load(std::memory_order_acquire);
  const uint64_t newest = client_ranks() ? said : version_;
  readers_done_ = std::max(readers_done_, std::min(said, newest));
  return readers_done_;
}

void Window::published(uint64_t version, std::vector<ExtentLease>& leases) {
  SKV_CHECK(version > version_, "versions rise");
  version_ = version;
  hold(version, std::move(leases));
  leases = std::vector<ExtentLease>();
  if (spare_.empty()) return;
  leases = std::move(spare_.back());
  spare_.pop_back();
}

void Window::hold(uint64_t version, std::vector<ExtentLease> leases) {
  if (leases.empty()) return;
  held_count_ += leases.size();
  held_.push_back({version, std::move(leases)});
}

void Window::release_read() {
  if (held_.empty()) return;
  const uint64_t done = readers_done();
  std::erase_if(held_, [&](Held& held) {
    if (held.version > done) return false;
    held_count_ -= held.leases.size();
    ExtentLease::release(held.leases);
    spare_.push_back(std::move(held.leases));
    return true;
  });
}

// ---- windows whose client ranks -----------------------------------------------------------------

uint64_t Window::making() const { return tables_.header().making.load(std::memory_order_seq_cst); }

bool Window::may_read(uint64_t making, const Extent& chunk, uint64_t bytes) const {
  // What was under way when the chunk was hidden may have found it before.
  if (making != 0 && this->making() == making) return true;
  const uint64_t done = tables_.header().readers_done.load(std::memory_order_acquire);
  const LayerRange layers = layout_.body().chunk_layers(chunk.chunk.chunk);
  for (uint32_t layer = layers.first; layer < layers.end(); ++layer) {
    if (tables_.names(layer, done, chunk.offset, bytes)) return true;
  }
  return false;
}

void Window::collect(DataCounters& counters) {
  const WindowHeader& header = tables_.header();
  const auto add = [](DataCounters::Counter& counter, uint64_t& seen, uint64_t now) {
    if (now > seen) DataCounters::add(counter, now - seen);
    seen = now;
  };
  add(counters.prefetches, collected_.prefetches,
      header.prefetches.load(std::memory_order_relaxed));
  const uint64_t read = header.read_blocks.load(std::memory_order_relaxed);
  const uint64_t before = collected_.read_blocks;
  if (slots_in_host_ && read > before) DataCounters::add(counters.hits_host, read - before);
  add(counters.blocks_read, collected_.read_blocks, read);
  add(counters.misses, collected_.misses, header.misses.load(std::memory_order_relaxed));
  add(counters.recall_rankings, collected_.recall.rankings,
      header.recall_rankings.load(std::memory_order_relaxed));
  add(counters.recall_wanted, collected_.recall.wanted,
      header.recall_wanted.load(std::memory_order_relaxed));
  add(counters.recall_found, collected_.recall.found,
      header.recall_found.load(std::memory_order_relaxed));

  const uint32_t sentences = feed_->sentence_count();
  std::byte* const touched = memory_.data() + layout_.touched_offset();
  for (uint32_t first = 0; first < sentences; first += 8) {
    auto* word = reinterpret_cast<uint64_t*>(touched + first);
    if (std::atomic_ref<uint64_t>(*word).load(std::memory_order_relaxed) == 0) continue;
    const uint64_t marks = std::atomic_ref<uint64_t>(*word).exchange(0, std::memory_order_relaxed);
    for (uint32_t i = 0; i < 8 && first + i < sentences; ++i) {
      if ((marks >> (8 * i) & 0xFF) != 0) feed_->touch(first + i);
    }
  }
}

}  // namespace skv
