#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "tests/daemon/test_engine.h"

namespace skv::test {

// What one version of a window's tables says, without where it says it: the read set, its scores
// to the bit, and a hash of the bytes in the slots. Equal for equal queries, whatever the tiers had
// to do for it.
struct Reading {
  struct Entry {
    uint32_t layer, head, block, sentence, score_bits;
    friend bool operator==(const Entry&, const Entry&) = default;
  };
  uint32_t covered_to = 0;
  std::vector<Entry> entries;         // by layer, head, block
  std::vector<uint32_t> unread_bits;  // by layer
  uint64_t bytes_hash = 0;            // of all slots in that order

  friend bool operator==(const Reading&, const Reading&) = default;
  friend void PrintTo(const Reading& reading, std::ostream* out) {
    *out << "covered to " << reading.covered_to << ", hash " << reading.bytes_hash
         << ", layer/head:"
         << "block";
    for (const Entry& entry : reading.entries) {
      *out << ' ' << entry.layer << '/' << entry.head << ':' << entry.block;
    }
  }
};

// Blocks by where they were when a prefetch wanted them, over all steps.
struct Hits {
  uint64_t device = 0, host = 0, nvme = 0;
};

// An engine's window, its channel, and the engine's side of their rules.
//
// `lag`: how many versions the engine reads at once. 1: each table is done with before the next
// prefetch. 2: the table before the current one is still read while the next is made, so its slots
// must hold their bytes until then, which read() checks.
class WindowReader {
 public:
  static Result<WindowReader> open(TestEngine& engine, const WindowOpen& counts, uint32_t lag) {
    Result<TestEngine::Window> window = engine.open_window(counts);
    if (!window.ok()) {
      return window.error();
    }
    Result<ClientChannel> channel = engine.open_channel();
    if (!channel.ok()) {
      return channel.error();
    }
    return WindowReader(engine, std::move(window).value(), std::move(channel).value(), lag);
  }

  // One prefetch by the key of `token`, its tables read, every byte in a slot checked.
  Result<Reading> read(uint32_t token) {
    const Result<PrefetchRow> done = engine_->prefetch(channel_, window_, token);
    if (!done.ok()) {
      return done.error();
    }
    const PrefetchRow& completion = done.value();
    if (completion.status != 0 || completion.misses != 0) {
      return Error{static_cast<ErrorCode>(completion.status),
                   "status " + std::to_string(completion.status) + ", " +
                       std::to_string(completion.misses) + " misses"};
    }
    hits_.device += completion.hits_device;
    hits_.host += completion.hits_host;
    hits_.nvme += completion.hits_nvme;
    Result<Reading> now = tables_of(completion.version);
    if (!now.ok()) {
      return now.error();
    }
    if (now.value().entries.size() != completion.read_blocks ||
        completion.hits_device + completion.hits_host + completion.hits_nvme !=
            completion.read_blocks) {
      return Error{ErrorCode::kInternal, "the completion's counts are not those of the tables"};
    }
    if (lag_ == 2 && version_ != 0) {
      const Result<Reading> before = tables_of(version_);
      if (!before.ok() || !(before.value() == before_)) {
        return Error{ErrorCode::kInternal, "a table that is still read changed: " +
                                               (before.ok() ? "" : before.error().message)};
      }
    }
    header().readers_done.store(lag_ == 2 ? version_ : completion.version);
    version_ = completion.version;
    before_ = now.value();
    return now;
  }

  const Hits& hits() const { return hits_; }
  const TestEngine::Window& window() const { return window_; }

 private:
  WindowReader(TestEngine& engine, TestEngine::Window window, ClientChannel channel, uint32_t lag)
      : engine_(&engine), window_(std::move(window)), channel_(std::move(channel)), lag_(lag) {}

  WindowHeader& header() { return *reinterpret_cast<WindowHeader*>(window_.tables.data()); }

  Result<Reading> tables_of(uint64_t version) const {
    Reading reading;
    uint64_t layer_at = kWindowHeaderBytes;
    const TableLayout at = TableLayout::of(2, window_.reply.width);
    for (uint32_t layer = 0; layer < engine_->layout().layer_count(); ++layer) {
      const std::byte* const base = window_.tables.data() + layer_at;
      const std::byte* buffer = base + sizeof(LayerTableHeader);
      if (reinterpret_cast<const TableHeader*>(buffer)->version != version) {
        buffer += at.bytes;
      }
      if (reinterpret_cast<const TableHeader*>(buffer)->version != version) {
        return Error{ErrorCode::kInternal, "layer " + std::to_string(layer) +
                                               " has no table of version " +
                                               std::to_string(version)};
      }
      if (const Result<void> read = add_layer(buffer, layer, reading); !read.ok()) {
        return read.error();
      }
      layer_at += sizeof(LayerTableHeader) + 2 * at.bytes;
    }
    return reading;
  }

  Result<void> add_layer(const std::byte* buffer, uint32_t layer, Reading& reading) const {
    const TableLayout at = TableLayout::of(2, window_.reply.width);
    const auto* header = reinterpret_cast<const TableHeader*>(buffer);
    const auto* indptr = reinterpret_cast<const uint32_t*>(buffer + at.indptr);
    const auto* slot = reinterpret_cast<const uint32_t*>(buffer + at.slot);
    const auto* block = reinterpret_cast<const uint32_t*>(buffer + at.block);
    const auto* sentence = reinterpret_cast<const uint32_t*>(buffer + at.sentence);
    const auto* score = reinterpret_cast<const float*>(buffer + at.score);
    reading.covered_to = header->covered_to;
    reading.unread_bits.push_back(std::bit_cast<uint32_t>(header->unread_mass));
    for (uint32_t head = 0; head < 2; ++head) {
      for (uint32_t i = indptr[head]; i < indptr[head + 1]; ++i) {
        const uint64_t offset = static_cast<uint64_t>(slot[i]) * window_.reply.slot_unit_bytes;
        const std::byte* const bytes = window_.slots.data() + offset;
        if (!engine_->block_is(bytes, layer, head, block[i])) {
          return Error{ErrorCode::kCorrupt, "layer " + std::to_string(layer) + " head " +
                                                std::to_string(head) + " block " +
                                                std::to_string(block[i]) + ": wrong bytes"};
        }
        reading.entries.push_back(
            {layer, head, block[i], sentence[i], std::bit_cast<uint32_t>(score[i])});
        hash(bytes, engine_->layout().block_bytes(layer), reading.bytes_hash);
      }
    }
    return {};
  }
  static void hash(const std::byte* bytes, uint64_t count, uint64_t& into) {
    for (uint64_t i = 0; i < count; i += sizeof into) {
      uint64_t word = 0;
      std::memcpy(&word, bytes + i, sizeof word);
      into = (into ^ word) * 0x100000001B3ULL;
      into ^= into >> 29;
    }
  }

  TestEngine* engine_;
  TestEngine::Window window_;
  ClientChannel channel_;
  uint32_t lag_;
  uint64_t version_ = 0;
  Reading before_;
  Hits hits_;
};

}  // namespace skv::test
