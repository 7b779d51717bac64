#include "kernels/window_tables.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <numeric>

#include "ipc/types/check.h"

namespace skv {

WindowLayout::WindowLayout(const BodyLayout& body,
                           const WindowShape& shape,
                           bool slots_in_host,
                           uint32_t touched_capacity)
    : body_(&body), shape_(shape), slots_in_host_(slots_in_host) {
  uint64_t unit = slots_in_host ? kPageBytes : 0;
  for (uint32_t layer = 0; layer < body.layer_count(); ++layer) {
    unit = std::gcd(unit, uint64_t{body.block_bytes(layer)});
  }
  slot_unit_bytes_ = static_cast<uint32_t>(unit);
  tables_bytes_ = kWindowHeaderBytes;
  for (uint32_t layer = 0; layer < body.layer_count(); ++layer) {
    const uint32_t heads = body.kv_heads(layer);
    layers_.push_back({resident_sets_, slots_bytes_, tables_bytes_});
    resident_sets_ += heads;
    if (!slots_in_host) {
      slots_bytes_ += uint64_t{heads} * shape.resident_blocks * body.block_bytes(layer);
    }
    tables_bytes_ += sizeof(LayerTableHeader) + 2 * TableLayout::of(heads, width()).bytes;
  }
  if (touched_capacity > 0) {
    touched_offset_ = round_up(tables_bytes_, 64);
    tables_bytes_ = touched_offset_ + round_up(touched_capacity, 8);
  }
  tables_bytes_ = round_up(tables_bytes_, kPageBytes);
}

WindowTables::WindowTables(const WindowLayout& layout, std::byte* memory)
    : layout_(&layout), memory_(memory), layers_(layout.body().layer_count()) {}

void WindowTables::format(uint64_t slots_bytes) {
  auto* header = new (memory_) WindowHeader{};
  header->magic = kWindowMagic;
  header->version = kWindowVersion;
  header->layer_count = layout_->body().layer_count();
  header->width = layout_->width();
  header->slot_unit_bytes = layout_->slot_unit_bytes();
  header->slots_bytes = slots_bytes;
  header->touched_offset = layout_->touched_offset();
  for (uint32_t layer = 0; layer < layers_.size(); ++layer) {
    new (memory_ + layout_->table_offset(layer)) LayerTableHeader{};
  }
}

WindowHeader& WindowTables::header() const {
  return *std::launder(reinterpret_cast<WindowHeader*>(memory_));
}

bool WindowTables::buffer_is_free(uint32_t layer, uint64_t readers_done) const {
  const Layer& place = layers_[layer];
  return place.versions[1 - place.current] <= readers_done;
}

std::byte* WindowTables::buffer_base(uint32_t layer, uint32_t buffer) const {
  const uint64_t bytes = TableLayout::of(layout_->body().kv_heads(layer), layout_->width()).bytes;
  return memory_ + layout_->table_offset(layer) + sizeof(LayerTableHeader) + buffer * bytes;
}

TableArrays WindowTables::buffer(uint32_t layer) const {
  const TableLayout at = TableLayout::of(layout_->body().kv_heads(layer), layout_->width());
  std::byte* const base = buffer_base(layer, 1 - layers_[layer].current);
  return {reinterpret_cast<uint32_t*>(base + at.indptr),
          reinterpret_cast<uint32_t*>(base + at.slot),
          reinterpret_cast<uint32_t*>(base + at.block),
          reinterpret_cast<uint32_t*>(base + at.sentence),
          reinterpret_cast<float*>(base + at.score),
          reinterpret_cast<uint8_t*>(base + at.origin)};
}

// NOLINTNEXTLINE(bugprone-easily-swappable-parameters)
bool WindowTables::names(uint32_t layer,
                         uint64_t readers_done,
                         uint64_t offset,
                         uint64_t bytes) const {
  const uint32_t unit = layout_->slot_unit_bytes();
  const uint64_t entries = uint64_t{layout_->body().kv_heads(layer)} * layout_->width();
  const TableLayout at = TableLayout::of(layout_->body().kv_heads(layer), layout_->width());
  for (uint32_t buffer = 0; buffer < 2; ++buffer) {
    std::byte* const base = buffer_base(layer, buffer);
    TableHeader header;
    std::memcpy(&header, base, sizeof header);
    if (header.version <= readers_done) continue;
    const auto* slots = reinterpret_cast<uint32_t*>(base + at.slot);
    const uint64_t count = std::min<uint64_t>(header.entry_count, entries);
    for (uint64_t i = 0; i < count; ++i) {
      if (uint64_t{slots[i]} * unit - offset < bytes) return true;
    }
  }
  return false;
}

void WindowTables::publish(uint32_t layer, const Published& table) {
  Layer& place = layers_[layer];
  const uint32_t buffer = 1 - place.current;
  SKV_CHECK(table.version > place.versions[place.current], "versions rise");
  TableHeader header{};
  header.version = table.version;
  header.covered_to = table.covered_to;
  header.entry_count = table.entry_count;
  header.head_count = layout_->body().kv_heads(layer);
  header.unread_mass = table.unread_mass;
  std::memcpy(buffer_base(layer, buffer), &header, sizeof header);
  place.versions[buffer] = table.version;
  place.current = buffer;
  auto* layer_header =
      std::launder(reinterpret_cast<LayerTableHeader*>(memory_ + layout_->table_offset(layer)));
  layer_header->current.store(table.version << 1 | buffer, std::memory_order_release);
}

}  // namespace skv
