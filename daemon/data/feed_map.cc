#include "daemon/data/feed_map.h"

#include <cstring>
#include <new>
#include <utility>

#include "ipc/types/check.h"

namespace skv {

Result<std::shared_ptr<FeedMap>> FeedMap::create(uint32_t sentence_capacity, uint32_t chunk_count) {
  std::shared_ptr<FeedMap> map(new FeedMap);
  map->at_ = FeedLayout::of(sentence_capacity, chunk_count);
  map->capacity_ = sentence_capacity;
  map->chunk_count_ = chunk_count;
  Result<UniqueFd> memory = create_shared_memory("skv-feed", map->at_.bytes);
  if (!memory.ok()) return memory.error();
  Result<UniqueFd> read_only = reopen_read_only(memory.value().get());
  if (!read_only.ok()) return read_only.error();
  Result<MappedMemory> mapped =
      MappedMemory::map(memory.value().get(), map->at_.bytes, MappedMemory::Access::kReadWrite);
  if (!mapped.ok()) return mapped.error();
  map->read_only_ = std::move(read_only).value();
  map->memory_ = std::move(mapped).value();
  auto* header = new (map->memory_.data()) FeedHeader{};
  header->magic = kFeedMagic;
  header->version = kFeedVersion;
  header->sentence_capacity = sentence_capacity;
  header->chunk_count = chunk_count;
  header->bytes = map->at_.bytes;
  return map;
}

FeedHeader& FeedMap::header() const {
  return *std::launder(reinterpret_cast<FeedHeader*>(memory_.data()));
}

void FeedMap::promise(uint32_t sentence_count) {
  header().promised_count.store(sentence_count, std::memory_order_release);
}

void FeedMap::set_page(uint32_t page_index, uint64_t offset) {
  std::memcpy(memory_.data() + at_.pages + 8 * uint64_t{page_index}, &offset, sizeof offset);
}

void FeedMap::set_sentence(uint32_t sentence_index, const FeedSentenceEntry& entry) {
  SKV_CHECK(sentence_index < capacity_, "a context has as many sentences as its tokens allow");
  std::memcpy(memory_.data() + at_.sentences + sizeof entry * uint64_t{sentence_index}, &entry,
              sizeof entry);
}

void FeedMap::publish(uint32_t sentence_count) {
  header().sentence_count.store(sentence_count, std::memory_order_release);
}

void FeedMap::end() { header().ended.store(1, std::memory_order_release); }

std::atomic<uint32_t>& FeedMap::host_page(uint32_t sentence_index, uint32_t chunk) const {
  return *reinterpret_cast<std::atomic<uint32_t>*>(
      memory_.data() + at_.host_pages + 4 * (uint64_t{chunk} * capacity_ + sentence_index));
}

void FeedMap::show_chunk(uint32_t sentence_index, uint32_t chunk, uint64_t host_offset) {
  if (host_offset / kFeedHostUnit >= UINT32_MAX) return;  // beyond 16 TiB: asked for by the ring
  host_page(sentence_index, chunk)
      .store(static_cast<uint32_t>(host_offset / kFeedHostUnit) + 1, std::memory_order_release);
}

void FeedMap::hide_chunk(uint32_t sentence_index, uint32_t chunk) {
  host_page(sentence_index, chunk)
      .store(0, std::memory_order_seq_cst);  // before `making` is looked at
}

}  // namespace skv
