#include "ipc/shared_directory.h"

#include <algorithm>
#include <bit>
#include <string>
#include <utility>

#include "ipc/identity/model.h"

namespace skv {
namespace {

// Bits of BoundaryEdges that say that a slot holds a boundary.
constexpr uint64_t kAnyEdge =
    BoundaryEdges{
        .stored = BoundaryEdges::kMask, .host = 0, .pending = BoundaryEdges::kMask, .owner = 0}
        .pack();
constexpr uint32_t kAhead = 8;  // slots that are fetched before they are looked at

uint64_t bytes_of(uint64_t slot_count) {
  return kSharedDirectorySlotsOffset + slot_count * sizeof(SharedDirectorySlot);
}

}  // namespace

// --- writer --------------------------------------------------------------------------------------

Result<std::unique_ptr<SharedDirectoryWriter>> SharedDirectoryWriter::create(uint64_t slots_max) {
  const uint64_t most = std::bit_floor(std::max(slots_max, kSharedDirectorySlotsMin));
  std::unique_ptr<SharedDirectoryWriter> writer(new SharedDirectoryWriter(most));
  if (Result<void> opened = writer->open(kSharedDirectorySlotsMin, 1); !opened.ok()) {
    return opened.error();
  }
  return writer;
}

Result<void> SharedDirectoryWriter::open(uint64_t slot_count, uint64_t generation) {
  const uint64_t bytes = bytes_of(slot_count);
  Result<UniqueFd> fd = create_shared_memory("skv-directory", bytes);
  if (!fd.ok()) return fd.error();
  Result<UniqueFd> read_only = reopen_read_only(fd.value().get());
  if (!read_only.ok()) return read_only.error();
  Result<MappedMemory> mapped =
      MappedMemory::map(fd.value().get(), bytes, MappedMemory::Access::kReadWrite);
  if (!mapped.ok()) return mapped.error();
  memory_ = std::move(mapped).value();
  read_only_ = std::move(read_only).value();
  mask_ = slot_count - 1;
  used_ = live_ = 0;
  SharedDirectoryHeader& made = header();
  made.magic = kSharedDirectoryMagic;
  made.version = kSharedDirectoryVersion;
  made.slot_bytes = sizeof(SharedDirectorySlot);
  made.slot_count = slot_count;
  made.generation = generation;
  made.newest.store(generation, std::memory_order_release);
  return {};
}

SharedDirectorySlot* SharedDirectoryWriter::find(uint64_t tag) const {
  for (uint32_t probe = 0; probe < kSharedDirectoryProbesMax; ++probe) {
    SharedDirectorySlot& at = slot(tag + probe);
    const uint64_t there = at.tag.load(std::memory_order_relaxed);
    if (there == 0) return nullptr;
    if (there == tag) return &at;
  }
  return nullptr;
}

void SharedDirectoryWriter::set(const Digest& boundary_key, const BoundaryEdges& edges) {
  const uint64_t tag = shared_directory_tag(boundary_key);
  const uint64_t state = edges.any() ? edges.pack() : 0;
  if (SharedDirectorySlot* known = find(tag)) {
    const bool was = (known->state.load(std::memory_order_relaxed) & kAnyEdge) != 0;
    known->state.store(state, std::memory_order_release);
    live_ += (state != 0 ? 1 : 0) - (was ? 1 : 0);
    if (state == 0) take_out(static_cast<uint64_t>(known - &slot(0)));
    return;
  }
  if (state == 0) return;
  const uint64_t slots = mask_ + 1;
  if ((live_ + 1) * 8 > slots * 5 || (used_ + 1) * 4 > slots * 3) make_room(0);
  if (insert(tag, state) || (make_room(2 * (mask_ + 1)) && insert(tag, state))) return;
  header().incomplete.store(1, std::memory_order_relaxed);
}

bool SharedDirectoryWriter::insert(uint64_t tag, uint64_t state) {
  for (uint32_t probe = 0; probe < kSharedDirectoryProbesMax; ++probe) {
    SharedDirectorySlot& at = slot(tag + probe);
    const uint64_t there = at.tag.load(std::memory_order_relaxed);
    if (there != 0 && (at.state.load(std::memory_order_relaxed) & kAnyEdge) != 0) continue;
    // A reader that looks for either tag looks at the tag before and after the state, so it never
    // takes the state of one for the other's: the state is empty while the tag changes.
    at.tag.store(tag, std::memory_order_release);
    at.state.store(state, std::memory_order_release);
    used_ += there == 0 ? 1 : 0;
    ++live_;
    return true;
  }
  return false;
}

// A slot without a boundary still carries searches over it, unless the next one ends them anyway.
void SharedDirectoryWriter::take_out(uint64_t at) {
  while (used_ > 0 && slot(at + 1).tag.load(std::memory_order_relaxed) == 0 &&
         slot(at).tag.load(std::memory_order_relaxed) != 0 &&
         (slot(at).state.load(std::memory_order_relaxed) & kAnyEdge) == 0) {
    slot(at).tag.store(0, std::memory_order_release);
    --used_;
    --at;
  }
}

// A new memory with what is live, at most half full where slots_max allows; the old one says that
// it was replaced. False: not worth it, or the system refused.
bool SharedDirectoryWriter::make_room(uint64_t slots_min) {
  const uint64_t old_count = mask_ + 1;
  uint64_t wanted =
      std::max(slots_min, live_ * 8 > old_count ? old_count : kSharedDirectorySlotsMin);
  while (wanted < 2 * (live_ + 1)) wanted *= 2;
  wanted = std::min(wanted, slots_max_);
  const bool worth = wanted > old_count || live_ * 4 < used_ * 3;
  if (refused_ || !worth) return false;
  MappedMemory old = std::move(memory_);
  auto& replaced = *reinterpret_cast<SharedDirectoryHeader*>(old.data());
  if (Result<void> opened = open(wanted, replaced.generation + 1); !opened.ok()) {
    memory_ = std::move(old);
    refused_ = true;
    return false;
  }
  const auto* slots =
      reinterpret_cast<const SharedDirectorySlot*>(old.data() + kSharedDirectorySlotsOffset);
  for (uint64_t index = 0; index < old_count; ++index) {
    const uint64_t state = slots[index].state.load(std::memory_order_relaxed);
    if ((state & kAnyEdge) == 0) continue;
    if (!insert(slots[index].tag.load(std::memory_order_relaxed), state)) {
      header().incomplete.store(1, std::memory_order_relaxed);
    }
  }
  if (replaced.incomplete.load(std::memory_order_relaxed) != 0) {
    header().incomplete.store(1, std::memory_order_relaxed);  // what was left out is not known here
  }
  replaced.newest.store(header().generation, std::memory_order_release);
  return true;
}

// --- reader --------------------------------------------------------------------------------------

SharedDirectoryReader::SharedDirectoryReader(MappedMemory memory)
    : memory_(std::move(memory)),
      slots_(reinterpret_cast<const SharedDirectorySlot*>(memory_.data() +
                                                          kSharedDirectorySlotsOffset)),
      mask_(header().slot_count - 1) {}

Result<SharedDirectoryReader> SharedDirectoryReader::open(MappedMemory memory) {
  const auto refuse = [](const std::string& why) {
    return Error{ErrorCode::kProtocol, "shared directory: " + why};
  };
  if (memory.bytes() < bytes_of(kSharedDirectorySlotsMin)) {
    return refuse(std::to_string(memory.bytes()) + " bytes are too few");
  }
  const auto& header = *reinterpret_cast<const SharedDirectoryHeader*>(memory.data());
  if (header.magic != kSharedDirectoryMagic || header.version != kSharedDirectoryVersion ||
      header.slot_bytes != sizeof(SharedDirectorySlot)) {
    return refuse("not one of version " + std::to_string(kSharedDirectoryVersion));
  }
  if (!std::has_single_bit(header.slot_count) ||
      header.slot_count > memory.bytes() / sizeof(SharedDirectorySlot) ||
      bytes_of(header.slot_count) != memory.bytes()) {
    return refuse(std::to_string(header.slot_count) + " slots in " +
                  std::to_string(memory.bytes()) + " bytes");
  }
  return SharedDirectoryReader(std::move(memory));
}

uint64_t SharedDirectoryReader::find(uint64_t tag) const {
  for (uint32_t probe = 0; probe < kSharedDirectoryProbesMax; ++probe) {
    const SharedDirectorySlot& at = slots_[(tag + probe) & mask_];
    const uint64_t there = at.tag.load(std::memory_order_acquire);
    if (there == 0) return 0;
    if (there != tag) continue;
    const uint64_t state = at.state.load(std::memory_order_acquire);
    // Given to another boundary meanwhile: then this one is not stored any more.
    return at.tag.load(std::memory_order_acquire) == tag ? state : 0;
  }
  return 0;
}

SharedDirectoryReader::Cover SharedDirectoryReader::match(const Query& query,
                                                          Scratch& scratch) const {
  const uint32_t longest = kSentenceTokensMax / query.block_tokens;
  const uint32_t shortest = kSentenceTokensMin / query.block_tokens;
  const uint32_t owner = query.session & BoundaryEdges::kManyOwners;
  const auto block_count = static_cast<uint32_t>(query.tags.size());
  scratch.edges.resize(block_count + 1);

  // Bit k of a window: whether the cover reaches the edge k + 1 blocks back; shifted so that its
  // bits stand over the lengths of BoundaryEdges.
  uint32_t stored_window = 1;
  uint32_t pending_window = 1;
  uint32_t stored_to = 0;
  uint32_t pending_to = 0;
  for (uint32_t block = 1; block <= std::min(kAhead, block_count); ++block) {
    __builtin_prefetch(&slots_[query.tags[block - 1] & mask_]);
  }
  for (uint32_t block = 1; block <= block_count && block <= pending_to + longest; ++block) {
    if (block + kAhead <= block_count) {
      __builtin_prefetch(&slots_[query.tags[block + kAhead - 1] & mask_]);
    }
    const BoundaryEdges edges = BoundaryEdges::unpack(find(query.tags[block - 1]));
    const uint32_t stored = edges.stored & (stored_window >> (shortest - 1));
    const uint32_t others = edges.owner == owner ? 0 : edges.pending;
    const bool pending =
        ((edges.stored | others) & (pending_window >> (shortest - 1)) & BoundaryEdges::kMask) != 0;
    scratch.edges[block] = stored | (stored & edges.host) << BoundaryEdges::kBits;
    stored_window = stored_window << 1 | (stored != 0 ? 1U : 0U);
    pending_window = pending_window << 1 | (pending ? 1U : 0U);
    if (stored != 0) stored_to = block;
    if (pending) pending_to = block;
  }

  Cover cover;
  cover.hit_tokens = stored_to * query.block_tokens;
  cover.pending_tokens = pending_to * query.block_tokens;
  if (stored_to == 0) return cover;

  // Where stored edges lead to the end of the cover, from behind; then forward by the longest.
  scratch.on_path.assign(stored_to + 1, 0);
  scratch.on_path[stored_to] = 1;
  for (uint32_t block = stored_to; block > 0; --block) {
    if (scratch.on_path[block] == 0) continue;
    for (uint32_t bits = scratch.edges[block] & BoundaryEdges::kMask; bits != 0; bits &= bits - 1) {
      scratch.on_path[block - shortest - static_cast<uint32_t>(std::countr_zero(bits))] = 1;
    }
  }
  for (uint32_t block = 0; block < stored_to;) {
    uint32_t length = std::min(longest, stored_to - block);
    for (; length >= shortest; --length) {
      // `shortest` is not 0. NOLINTNEXTLINE(clang-analyzer-core.UndefinedBinaryOperatorResult)
      const uint32_t bit = 1U << (length - shortest);
      if (scratch.on_path[block + length] == 0) continue;
      const uint32_t edges = scratch.edges[block + length];
      if ((edges & bit) == 0) continue;
      if ((edges & bit << BoundaryEdges::kBits) != 0)
        cover.host_tokens += length * query.block_tokens;
      break;
    }
    if (length < shortest) break;  // never: every boundary on the path has an edge out
    block += length;
  }
  return cover;
}

}  // namespace skv
