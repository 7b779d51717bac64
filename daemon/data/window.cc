#include "daemon/data/window.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <numeric>
#include <string>
#include <utility>

#include "ipc/types/check.h"

namespace skv {

Window::Window(const OpenWindow& options, std::shared_ptr<Feed> feed, bool slots_in_host)
    : options_(options), feed_(std::move(feed)), slots_in_host_(slots_in_host) {}

void Window::lay_out() {
  const BodyLayout& body = feed_->layout();
  uint64_t unit = slots_in_host_ ? kPageBytes : 0;
  for (uint32_t layer = 0; layer < body.layer_count(); ++layer) {
    unit = std::gcd(unit, uint64_t{body.block_bytes(layer)});
  }
  slot_unit_bytes_ = static_cast<uint32_t>(unit);
  tables_bytes_ = kWindowHeaderBytes;
  uint32_t residents = 0;
  for (uint32_t layer = 0; layer < body.layer_count(); ++layer) {
    Layer place;
    place.heads = body.kv_heads(layer);
    place.first_resident = residents;
    place.slots = slots_bytes_;
    place.header = tables_bytes_;
    layers_.push_back(place);
    residents += place.heads;
    slots_bytes_ += uint64_t{place.heads} * options_.resident_blocks * body.block_bytes(layer);
    tables_bytes_ += sizeof(LayerTableHeader) + 2 * TableLayout::of(place.heads, width()).bytes;
  }
  tables_bytes_ = round_up(tables_bytes_, kPageBytes);
}

Result<std::unique_ptr<Window>> Window::create(const OpenWindow& options,
                                               std::shared_ptr<Feed> feed,
                                               bool slots_in_host,
                                               uint64_t arena_bytes,
                                               UniqueFd& tables) {
  std::unique_ptr<Window> window(new Window(options, std::move(feed), slots_in_host));
  window->lay_out();
  if (slots_in_host) window->slots_bytes_ = arena_bytes;
  if (window->slots_bytes_ / window->slot_unit_bytes_ > UINT32_MAX) {
    return Error{ErrorCode::kTooLarge,
                 "slots of " + std::to_string(window->slots_bytes_) + " bytes in units of " +
                     std::to_string(window->slot_unit_bytes_) + " need more than 32 bits"};
  }
  Result<UniqueFd> memory = create_shared_memory("skv-window", window->tables_bytes_);
  if (!memory.ok()) return memory.error();
  Result<MappedMemory> mapping = MappedMemory::map(memory.value().get(), window->tables_bytes_,
                                                   MappedMemory::Access::kReadWrite);
  if (!mapping.ok()) return mapping.error();
  window->tables_ = std::move(mapping).value();

  const BodyLayout& body = window->feed_->layout();
  auto* header = new (window->tables_.data()) WindowHeader{};
  header->magic = kWindowMagic;
  header->version = kWindowVersion;
  header->layer_count = body.layer_count();
  header->width = window->width();
  header->slot_unit_bytes = window->slot_unit_bytes_;
  header->slots_bytes = window->slots_bytes_;
  for (const Layer& layer : window->layers_) {
    new (window->tables_.data() + layer.header) LayerTableHeader{};
    if (slots_in_host) continue;
    for (uint32_t head = 0; head < layer.heads; ++head) {
      window->residents_.emplace_back(options.resident_blocks);
    }
  }
  tables = std::move(memory).value();
  return window;
}

uint64_t Window::readers_done() {
  const auto* header = std::launder(reinterpret_cast<const WindowHeader*>(tables_.data()));
  const uint64_t said = header->readers_done.load(std::memory_order_acquire);
  readers_done_ = std::max(readers_done_, std::min(said, version_));
  return readers_done_;
}

bool Window::buffer_is_free(uint32_t layer, uint64_t readers_done) const {
  const Layer& place = layers_[layer];
  return place.versions[1 - place.current] <= readers_done;
}

uint64_t Window::slot_offset(uint32_t layer, uint32_t head, uint32_t slot) const {
  return layers_[layer].slots +
         (uint64_t{head} * options_.resident_blocks + slot) * feed_->layout().block_bytes(layer);
}

// In the order of the table's key. NOLINTNEXTLINE(bugprone-easily-swappable-parameters)
void Window::publish(uint32_t layer,
                     uint64_t version,
                     uint32_t covered_to,
                     const LayerTable& table) {
  Layer& place = layers_[layer];
  const uint32_t buffer = 1 - place.current;
  SKV_CHECK(version > place.versions[place.current], "versions rise");
  SKV_CHECK(table.indptr.size() == place.heads + 1, "a table has all heads of its layer");
  const TableLayout at = TableLayout::of(place.heads, width());
  std::byte* base = tables_.data() + place.header + sizeof(LayerTableHeader) + buffer * at.bytes;

  TableHeader header{};
  header.version = version;
  header.covered_to = covered_to;
  header.entry_count = static_cast<uint32_t>(table.entries.size());
  header.head_count = place.heads;
  header.unread_mass = table.unread_mass;
  std::memcpy(base, &header, sizeof header);
  std::memcpy(base + at.indptr, table.indptr.data(), 4 * table.indptr.size());
  auto* slot = reinterpret_cast<uint32_t*>(base + at.slot);
  auto* block = reinterpret_cast<uint32_t*>(base + at.block);
  auto* sentence = reinterpret_cast<uint32_t*>(base + at.sentence);
  auto* score = reinterpret_cast<float*>(base + at.score);
  auto* origin = reinterpret_cast<uint8_t*>(base + at.origin);
  for (size_t i = 0; i < table.entries.size(); ++i) {
    const TableEntry& entry = table.entries[i];
    slot[i] = entry.slot;
    block[i] = entry.block;
    sentence[i] = entry.sentence;
    score[i] = entry.score;
    origin[i] = static_cast<uint8_t>(entry.origin);
  }

  place.versions[buffer] = version;
  place.current = buffer;
  auto* layer_header =
      std::launder(reinterpret_cast<LayerTableHeader*>(tables_.data() + place.header));
  layer_header->current.store(version << 1 | buffer, std::memory_order_release);
}

void Window::published(uint64_t version, std::vector<ExtentLease>& leases) {
  SKV_CHECK(version > version_, "versions rise");
  version_ = version;
  if (leases.empty()) return;
  held_.push_back({version, std::move(leases)});
  leases = std::vector<ExtentLease>();
  if (spare_.empty()) return;
  leases = std::move(spare_.back());
  spare_.pop_back();
}

void Window::release_read() {
  if (held_.empty()) return;
  const uint64_t done = readers_done();
  size_t read = 0;
  while (read < held_.size() && held_[read].version <= done) {
    held_[read].leases.clear();
    spare_.push_back(std::move(held_[read].leases));
    ++read;
  }
  held_.erase(held_.begin(), held_.begin() + static_cast<std::ptrdiff_t>(read));
}

}  // namespace skv
