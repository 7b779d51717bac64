#include "ipc/lease_map.h"

#include <new>
#include <string>
#include <utility>

#include "ipc/layout/feed.h"
#include "ipc/types/check.h"

namespace skv {
namespace {

std::atomic<uint32_t>* item(const MappedMemory& memory,
                            const LeaseMapLayout& at,
                            uint32_t sentence,
                            uint32_t chunk) {
  return reinterpret_cast<std::atomic<uint32_t>*>(memory.data() + at.item(sentence, chunk));
}

}  // namespace

// --- the daemon's side ---------------------------------------------------------------------------

Result<std::unique_ptr<LeaseMapWriter>> LeaseMapWriter::create(uint32_t sentence_capacity,
                                                               uint32_t chunk_count) {
  std::unique_ptr<LeaseMapWriter> map(new LeaseMapWriter);
  map->at_ = LeaseMapLayout::of(sentence_capacity, chunk_count);
  map->capacity_ = sentence_capacity;
  const auto make = [bytes = map->at_.bytes](const char* name, UniqueFd& fd, MappedMemory& memory) {
    Result<UniqueFd> made = create_shared_memory(name, bytes);
    if (!made.ok()) return Result<void>(made.error());
    Result<MappedMemory> mapped =
        MappedMemory::map(made.value().get(), bytes, MappedMemory::Access::kReadWrite);
    if (!mapped.ok()) return Result<void>(mapped.error());
    fd = std::move(made).value();
    memory = std::move(mapped).value();
    return Result<void>();
  };
  UniqueFd writable;
  if (Result<void> made = make("skv-places", writable, map->places_); !made.ok()) {
    return made.error();
  }
  if (Result<void> made = make("skv-words", map->words_fd_, map->words_); !made.ok()) {
    return made.error();
  }
  Result<UniqueFd> read_only = reopen_read_only(writable.get());
  if (!read_only.ok()) return read_only.error();
  map->places_fd_ = std::move(read_only).value();
  new (map->places_.data())
      LeaseMapHeader{kLeaseMapMagic, kLeaseMapVersion, sentence_capacity, chunk_count};
  return map;
}

std::atomic<uint32_t>& LeaseMapWriter::place(uint32_t sentence, uint32_t chunk) const {
  SKV_CHECK(sentence < capacity_ && chunk < at_.chunk_count, "a chunk of the lease map");
  return *item(places_, at_, sentence, chunk);
}

std::atomic<uint32_t>& LeaseMapWriter::word(uint32_t sentence, uint32_t chunk) const {
  SKV_CHECK(sentence < capacity_ && chunk < at_.chunk_count, "a chunk of the lease map");
  return *item(words_, at_, sentence, chunk);
}

void LeaseMapWriter::show(uint32_t sentence, uint32_t chunk, uint64_t host_offset) {
  const uint64_t page = host_offset / kFeedHostUnit + 1;
  if (page > UINT32_MAX) return;  // beyond 16 TiB: leased by messages
  place(sentence, chunk).store(static_cast<uint32_t>(page), std::memory_order_seq_cst);
}

void LeaseMapWriter::hide(uint32_t sentence, uint32_t chunk) {
  place(sentence, chunk).store(0, std::memory_order_seq_cst);
}

bool LeaseMapWriter::held(uint32_t sentence, uint32_t chunk) const {
  return (word(sentence, chunk).load(std::memory_order_seq_cst) & kLeaseCount) != 0;
}

bool LeaseMapWriter::take_touched(uint32_t sentence, uint32_t chunk) {
  std::atomic<uint32_t>& marked = word(sentence, chunk);
  if ((marked.load(std::memory_order_relaxed) & kLeaseTouched) == 0) return false;
  marked.fetch_and(kLeaseCount, std::memory_order_relaxed);
  return true;
}

uint64_t LeaseMapWriter::leases() const {
  return reinterpret_cast<const LeaseWordsHeader*>(words_.data())
      ->leases.load(std::memory_order_relaxed);
}

// --- the client's side ---------------------------------------------------------------------------

LeaseMapReader::LeaseMapReader(MappedMemory places, MappedMemory words)
    : places_(std::move(places)), words_(std::move(words)) {
  const auto& header = *reinterpret_cast<const LeaseMapHeader*>(places_.data());
  capacity_ = header.sentence_capacity;
  at_ = LeaseMapLayout::of(capacity_, header.chunk_count);
}

Result<LeaseMapReader> LeaseMapReader::open(MappedMemory places,
                                            MappedMemory words,
                                            uint32_t chunk_count) {
  const auto refuse = [](const std::string& why) {
    return Error{ErrorCode::kProtocol, "lease map: " + why};
  };
  if (places.bytes() < LeaseMapLayout::kItems) return refuse("it is too small");
  const auto& header = *reinterpret_cast<const LeaseMapHeader*>(places.data());
  if (header.magic != kLeaseMapMagic || header.version != kLeaseMapVersion) {
    return refuse("not one of version " + std::to_string(kLeaseMapVersion));
  }
  if (header.chunk_count != chunk_count) {
    return refuse(std::to_string(header.chunk_count) + " chunks per sentence instead of " +
                  std::to_string(chunk_count));
  }
  LeaseMapReader reader(std::move(places), std::move(words));
  if (reader.places_.bytes() < reader.at_.bytes || reader.words_.bytes() < reader.at_.bytes) {
    return refuse("its memories have " + std::to_string(reader.places_.bytes()) + " and " +
                  std::to_string(reader.words_.bytes()) + " of " +
                  std::to_string(reader.at_.bytes) + " bytes");
  }
  return reader;
}

const std::atomic<uint32_t>* LeaseMapReader::places(const Range& range, uint32_t sentence) const {
  return item(places_, at_, range.first_sentence + sentence, range.first_chunk);
}

std::atomic<uint32_t>* LeaseMapReader::words(const Range& range, uint32_t sentence) const {
  return item(words_, at_, range.first_sentence + sentence, range.first_chunk);
}

bool LeaseMapReader::take_sentence(const Range& range,
                                   uint32_t sentence,
                                   std::vector<uint64_t>& offsets) const {
  const std::atomic<uint32_t>* const place = places(range, sentence);
  std::atomic<uint32_t>* const word = words(range, sentence);
  for (uint32_t chunk = 0; chunk < range.chunk_count; ++chunk) {
    const uint32_t before = word[chunk].fetch_add(1, std::memory_order_seq_cst);
    const uint32_t page = place[chunk].load(std::memory_order_seq_cst);
    if (page == 0) {
      for (uint32_t taken = 0; taken <= chunk; ++taken) {
        word[taken].fetch_sub(1, std::memory_order_release);
      }
      return false;
    }
    if ((before & kLeaseTouched) == 0) {
      word[chunk].fetch_or(kLeaseTouched, std::memory_order_relaxed);
    }
    offsets.push_back(uint64_t{page - 1} * kFeedHostUnit);
  }
  return true;
}

bool LeaseMapReader::take(const Range& range, std::vector<uint64_t>& offsets) const {
  if (range.first_sentence > capacity_ || range.sentence_count > capacity_ - range.first_sentence ||
      range.first_chunk > at_.chunk_count ||
      range.chunk_count > at_.chunk_count - range.first_chunk) {
    return false;
  }
  const size_t before = offsets.size();
  offsets.reserve(before + size_t{range.sentence_count} * range.chunk_count);
  for (uint32_t sentence = 0; sentence < range.sentence_count; ++sentence) {
    if (take_sentence(range, sentence, offsets)) continue;
    Range taken = range;
    taken.sentence_count = sentence;
    give_back(taken);
    offsets.resize(before);
    return false;
  }
  reinterpret_cast<LeaseWordsHeader*>(words_.data())
      ->leases.fetch_add(1, std::memory_order_relaxed);
  return true;
}

void LeaseMapReader::give_back(const Range& range) const {
  for (uint32_t sentence = 0; sentence < range.sentence_count; ++sentence) {
    std::atomic<uint32_t>* const word = words(range, sentence);
    for (uint32_t chunk = 0; chunk < range.chunk_count; ++chunk) {
      word[chunk].fetch_sub(1, std::memory_order_release);
    }
  }
}

}  // namespace skv
