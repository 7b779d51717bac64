#include "tiers/nvme_meta.h"

#include <sys/random.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <set>
#include <span>
#include <utility>

#include "tiers/aligned_buffer.h"

namespace skv {
namespace {

using nvme::kBlockBytes;
using nvme::kCopies;

Result<void> fill_random(std::span<uint8_t> bytes) {
  for (size_t at = 0; at < bytes.size();) {
    const ssize_t got = getrandom(bytes.data() + at, bytes.size() - at, 0);
    if (got < 0 && errno != EINTR) {
      return Error{ErrorCode::kIo, std::string("getrandom: ") + std::strerror(errno)};
    }
    at += got > 0 ? static_cast<size_t>(got) : 0;
  }
  return {};
}

template <typename T>
T load(std::span<const std::byte> bytes) {
  T value;
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

template <typename T>
void append(std::vector<std::byte>& out, const T& value) {
  const auto* const from = reinterpret_cast<const std::byte*>(&value);
  out.insert(out.end(), from, from + sizeof value);
}

bool all_zero(std::span<const std::byte> bytes) {
  return bytes[0] == std::byte{0} &&
         std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0;
}

}  // namespace

Result<NvmeMeta::Geometry> NvmeMeta::plan(const Geometry& wanted) {
  Geometry geometry = wanted;
  geometry.file_bytes = wanted.file_bytes / kBlockBytes * kBlockBytes;
  geometry.first_segment_offset = nvme::kFrontBytes;
  const uint64_t room =
      geometry.file_bytes > nvme::kFrontBytes ? geometry.file_bytes - nvme::kFrontBytes : 0;
  if (geometry.segment_bytes == 0) {
    geometry.segment_bytes = nvme::kSegmentBytesDefault;
    while (geometry.segment_bytes > nvme::kSegmentBytesMin && room / geometry.segment_bytes < 16) {
      geometry.segment_bytes /= 2;
    }
  }
  const uint64_t segment = geometry.segment_bytes;
  if (segment < nvme::kSegmentBytesMin || segment > nvme::kSegmentBytesMax ||
      (segment & (segment - 1)) != 0) {
    return Error{ErrorCode::kInvalidArgument,
                 "nvme.segment_bytes is " + std::to_string(segment) +
                     "; it must be a power of two from 1 MiB to 1 GiB"};
  }
  geometry.segment_count = room / segment;
  if (geometry.segment_count < nvme::kSegmentsMin) {
    return Error{ErrorCode::kInvalidArgument,
                 "nvme.bytes is " + std::to_string(wanted.file_bytes) + "; with segments of " +
                     std::to_string(segment) + " bytes it must be at least " +
                     std::to_string(nvme::kFrontBytes + nvme::kSegmentsMin * segment)};
  }
  return geometry;
}

Result<NvmeMeta> NvmeMeta::open(Disk& disk, const Geometry& wanted) {
  NvmeMeta meta;
  Result<bool> found = meta.load_superblock(disk, wanted);
  if (!found.ok()) {
    return found.error();
  }
  if (!found.value()) {
    if (Result<void> made = meta.format(disk, wanted); !made.ok()) {
      return made.error();
    }
  }
  if (Result<void> loaded = meta.load_tables(disk); !loaded.ok()) {
    return loaded.error();
  }
  // Before anything else is written: generations and record numbers of this open begin with it.
  ++meta.open_count_;
  if (Result<void> counted = meta.write_superblock(disk); !counted.ok()) {
    return counted.error();
  }
  return meta;
}

Result<bool> NvmeMeta::load_superblock(Disk& disk, const Geometry& wanted) {
  const AlignedBuffer front(nvme::kFrontBytes);
  if (disk.bytes() < nvme::kFrontBytes) {
    return Error{ErrorCode::kInvalidArgument,
                 "the nvme file is " + std::to_string(disk.bytes()) +
                     " bytes long and no store of skvd: give another path, or remove the file"};
  }
  if (Result<void> read = disk.read_now(0, front.span()); !read.ok()) {
    // One bad sector must not hide four copies: each is read alone.
    for (uint32_t copy = 0; copy < kCopies; ++copy) {
      (void)disk.read_now(nvme::superblock_offset(copy),
                          front.span().subspan(nvme::superblock_offset(copy), kBlockBytes));
    }
  }
  std::vector<nvme::Superblock> valid;
  uint32_t other_version = 0;
  uint32_t marked = 0;
  for (uint32_t copy = 0; copy < kCopies; ++copy) {
    const uint64_t offset = nvme::superblock_offset(copy);
    const std::span<const std::byte> block = front.span().subspan(offset, kBlockBytes);
    const auto superblock = load<nvme::Superblock>(block);
    if (superblock.prefix.magic != nvme::kSuperblockMagic) {
      continue;
    }
    ++marked;
    if (superblock.prefix.format_version != nvme::kFormatVersion) {
      other_version = superblock.prefix.format_version;
    }
    if (nvme::block_holds(block, {nvme::kSuperblockMagic, superblock.prefix.store_uuid, offset})) {
      valid.push_back(superblock);
    }
  }
  if (marked == 0) {
    if (all_zero(front.span())) {
      return false;
    }
    return Error{ErrorCode::kInvalidArgument,
                 "the nvme file holds something else than a store of skvd: give another path, or "
                 "remove the file to have a new store made"};
  }
  const auto same = [](const nvme::Superblock& a, const nvme::Superblock& b) {
    return a.prefix.store_uuid == b.prefix.store_uuid && a.file_bytes == b.file_bytes &&
           a.segment_bytes == b.segment_bytes && a.segment_count == b.segment_count &&
           a.first_segment_offset == b.first_segment_offset;
  };
  const nvme::Superblock* agreed = nullptr;
  for (const nvme::Superblock& candidate : valid) {
    const auto votes = std::count_if(valid.begin(), valid.end(),
                                     [&](const auto& other) { return same(candidate, other); });
    if (votes >= 2) {
      agreed = &candidate;
      break;
    }
  }
  if (agreed == nullptr) {
    if (valid.empty() && other_version != 0) {
      return Error{ErrorCode::kStale,
                   "the nvme file has format version " + std::to_string(other_version) +
                       "; this skvd knows version " + std::to_string(nvme::kFormatVersion) +
                       ": use the skvd that wrote it, or remove the file to start empty"};
    }
    // A format that was cut short wrote nothing but some first superblocks.
    if (valid.size() == marked && valid.size() == 1 && valid[0].open_count == 0) {
      return false;
    }
    return Error{ErrorCode::kCorrupt,
                 "of the nvme file's 4 superblocks fewer than 2 agree: its data cannot be trusted; "
                 "remove the file to start empty"};
  }
  uuid_ = agreed->prefix.store_uuid;
  geometry_ = {agreed->file_bytes, agreed->segment_bytes, agreed->segment_count,
               agreed->first_segment_offset};
  for (const nvme::Superblock& copy : valid) {
    open_count_ = std::max(open_count_, same(copy, *agreed) ? copy.open_count : 0);
  }
  const uint64_t asked = wanted.file_bytes / kBlockBytes * kBlockBytes;
  if (geometry_.file_bytes != asked) {
    return Error{
        ErrorCode::kStale,
        "the nvme file was made with nvme.bytes = " + std::to_string(geometry_.file_bytes) +
            ", the configuration says " + std::to_string(asked) +
            ": set the old value, or remove the file to start empty with the new one"};
  }
  if (wanted.segment_bytes != 0 && geometry_.segment_bytes != wanted.segment_bytes) {
    return Error{ErrorCode::kStale,
                 "the nvme file was made with nvme.segment_bytes = " +
                     std::to_string(geometry_.segment_bytes) + ", the configuration says " +
                     std::to_string(wanted.segment_bytes) +
                     ": set the old value, or remove the file to start empty with the new one"};
  }
  if (geometry_.first_segment_offset != nvme::kFrontBytes || !plan(geometry_).ok() ||
      plan(geometry_).value().segment_count != geometry_.segment_count ||
      disk.bytes() < geometry_.file_bytes) {
    return Error{ErrorCode::kCorrupt, "the nvme file is " + std::to_string(disk.bytes()) +
                                          " bytes long, its superblock tells of " +
                                          std::to_string(geometry_.file_bytes) +
                                          ": it was cut or replaced; remove it to start empty"};
  }
  return true;
}

Result<void> NvmeMeta::format(Disk& disk, const Geometry& wanted) {
  Result<Geometry> planned = plan(wanted);
  if (!planned.ok()) {
    return planned.error();
  }
  geometry_ = planned.value();
  if (disk.bytes() < geometry_.file_bytes) {
    return Error{ErrorCode::kInvalidArgument,
                 "nvme.bytes is " + std::to_string(geometry_.file_bytes) +
                     ", the file or device has " + std::to_string(disk.bytes())};
  }
  if (Result<void> random = fill_random(uuid_); !random.ok()) {
    return random.error();
  }
  open_count_ = 0;
  for (const uint64_t sequence : {0, 1}) {
    if (Result<void> written = write_tables(disk, sequence); !written.ok()) {
      return written.error();
    }
  }
  return write_superblock(disk);
}

Result<void> NvmeMeta::write_superblock(Disk& disk) const {
  const AlignedBuffer block(kBlockBytes);
  for (uint32_t copy = 0; copy < kCopies; ++copy) {
    const uint64_t offset = nvme::superblock_offset(copy);
    nvme::begin_block(block.span(), {nvme::kSuperblockMagic, uuid_, offset});
    auto superblock = load<nvme::Superblock>(block.span());
    superblock.file_bytes = geometry_.file_bytes;
    superblock.segment_bytes = geometry_.segment_bytes;
    superblock.segment_count = geometry_.segment_count;
    superblock.first_segment_offset = geometry_.first_segment_offset;
    superblock.open_count = open_count_;
    std::memcpy(block.data(), &superblock, sizeof superblock);
    nvme::seal_block(block.span());
    if (Result<void> written = disk.write_now(offset, block.span()); !written.ok()) {
      return written.error();
    }
    // Two at a time: whenever this is cut short, two copies agree.
    if (copy % 2 == 1) {
      if (Result<void> synced = disk.sync_now(); !synced.ok()) {
        return synced.error();
      }
    }
  }
  return {};
}

Result<void> NvmeMeta::load_tables(Disk& disk) {
  const AlignedBuffer slot(nvme::kCopyStride - kBlockBytes);
  bool found = false;
  for (uint32_t index = 0; index < kCopies; ++index) {
    const uint64_t offset = nvme::meta_offset(index);
    if (!disk.read_now(offset, slot.span()).ok()) {
      continue;
    }
    const std::span<const std::byte> block = slot.span().first(kBlockBytes);
    if (!nvme::block_holds(block, {nvme::kMetaMagic, uuid_, offset})) {
      continue;
    }
    const auto header = load<nvme::MetaHeader>(block);
    if (header.payload_bytes > nvme::kMetaPayloadBytesMax ||
        (found && header.sequence <= sequence_)) {
      continue;
    }
    const std::span<const std::byte> payload =
        slot.span().subspan(kBlockBytes, header.payload_bytes);
    if (checksum(payload) == header.payload_sum && take_payload(header, payload)) {
      sequence_ = header.sequence;
      found = true;
    }
  }
  if (!found) {
    return Error{ErrorCode::kCorrupt,
                 "all 4 copies of the nvme file's table of spaces are damaged, and without the "
                 "salts no sentence can be found again: remove the file to start empty"};
  }
  return {};
}

bool NvmeMeta::take_payload(const nvme::MetaHeader& header, std::span<const std::byte> payload) {
  std::map<uint32_t, Digest> salts;
  std::map<Digest, std::vector<uint8_t>> models;
  for (uint32_t i = 0; i < header.space_count; ++i) {
    if (payload.size() < sizeof(nvme::SpaceEntry)) {
      return false;
    }
    const auto entry = load<nvme::SpaceEntry>(payload);
    salts[entry.uid] = entry.salt;
    payload = payload.subspan(sizeof entry);
  }
  for (uint32_t i = 0; i < header.model_count; ++i) {
    if (payload.size() < sizeof(nvme::ModelEntry)) {
      return false;
    }
    const auto entry = load<nvme::ModelEntry>(payload);
    payload = payload.subspan(sizeof entry);
    const uint64_t rounded = (uint64_t{entry.bytes} + 7) / 8 * 8;
    if (payload.size() < rounded) {
      return false;
    }
    const auto* const from = reinterpret_cast<const uint8_t*>(payload.data());
    models[entry.fingerprint].assign(from, from + entry.bytes);
    payload = payload.subspan(rounded);
  }
  std::map<KeyBegin, uint64_t> purges;
  for (uint32_t i = 0; i < header.purge_count; ++i) {
    if (payload.size() < sizeof(nvme::PurgeEntry)) {
      return false;
    }
    const auto entry = load<nvme::PurgeEntry>(payload);
    purges[entry.key_begin] = entry.record_number;
    payload = payload.subspan(sizeof entry);
  }
  if (!payload.empty()) {
    return false;
  }
  salts_ = std::move(salts);
  models_ = std::move(models);
  purges_ = std::move(purges);
  return true;
}

Result<std::array<NvmeMeta::TablesWrite, 2>> NvmeMeta::encode_tables(uint64_t sequence) const {
  std::vector<std::byte> payload;
  for (const auto& [uid, salt] : salts_) {
    append(payload, nvme::SpaceEntry{uid, 0, salt});
  }
  for (const auto& [fingerprint, descriptor] : models_) {
    append(payload, nvme::ModelEntry{fingerprint, static_cast<uint32_t>(descriptor.size()), 0});
    const auto* const from = reinterpret_cast<const std::byte*>(descriptor.data());
    payload.insert(payload.end(), from, from + descriptor.size());
    payload.resize((payload.size() + 7) / 8 * 8);
  }
  for (const auto& [key_begin, record_number] : purges_) {
    append(payload, nvme::PurgeEntry{key_begin, record_number});
  }
  if (payload.size() > nvme::kMetaPayloadBytesMax) {
    return Error{ErrorCode::kNoSpace,
                 "the nvme file's table of spaces, models and purged sentences is full (" +
                     std::to_string(nvme::kMetaPayloadBytesMax) + " bytes)"};
  }
  std::array<TablesWrite, 2> twins;
  for (uint32_t twin = 0; twin < 2; ++twin) {
    const uint64_t offset = nvme::meta_offset(static_cast<uint32_t>(sequence % 2) * 2 + twin);
    twins[twin] = {offset, AlignedBuffer(kBlockBytes + payload.size())};
    const std::span<std::byte> block = twins[twin].block.span().first(kBlockBytes);
    nvme::begin_block(block, {nvme::kMetaMagic, uuid_, offset});
    auto header = load<nvme::MetaHeader>(block);
    header.sequence = sequence;
    header.payload_bytes = static_cast<uint32_t>(payload.size());
    header.space_count = static_cast<uint32_t>(salts_.size());
    header.model_count = static_cast<uint32_t>(models_.size());
    header.purge_count = static_cast<uint32_t>(purges_.size());
    header.payload_sum = checksum(payload);
    std::memcpy(block.data(), &header, sizeof header);
    nvme::seal_block(block);
    if (!payload.empty()) {
      std::memcpy(twins[twin].block.data() + kBlockBytes, payload.data(), payload.size());
    }
  }
  return twins;
}

Result<void> NvmeMeta::write_tables(Disk& disk, uint64_t sequence) const {
  const Result<std::array<TablesWrite, 2>> twins = encode_tables(sequence);
  if (!twins.ok()) {
    return twins.error();
  }
  for (const TablesWrite& twin : twins.value()) {
    if (Result<void> written = disk.write_now(twin.offset, twin.block.span()); !written.ok()) {
      return written.error();
    }
  }
  return disk.sync_now();
}

Result<std::array<NvmeMeta::TablesWrite, 2>> NvmeMeta::next_tables() const {
  return encode_tables(sequence_ + 1);
}

NvmeMeta::KeyBegin NvmeMeta::begin_of(const Digest& key) {
  KeyBegin begin;
  std::memcpy(begin.data(), key.bytes.data(), begin.size());
  return begin;
}

void NvmeMeta::purge(const Digest& key, uint64_t record_number) {
  purges_[begin_of(key)] = record_number;
}

bool NvmeMeta::purged(const Digest& key, uint64_t record_number) const {
  const auto at = purges_.find(begin_of(key));
  return at != purges_.end() && record_number <= at->second;
}

static_assert(NvmeMeta::kPurgesMax * sizeof(nvme::PurgeEntry) < nvme::kMetaPayloadBytesMax / 5 * 4);

void NvmeMeta::prune_purges(const std::unordered_set<Digest, DigestHash>& keys_in_file) {
  std::set<KeyBegin> there;
  for (const Digest& key : keys_in_file) {
    there.insert(begin_of(key));
  }
  std::erase_if(purges_, [&](const auto& purge) { return !there.contains(purge.first); });
}

std::optional<Digest> NvmeMeta::find_salt(uint32_t uid) const {
  const auto at = salts_.find(uid);
  return at == salts_.end() ? std::nullopt : std::optional(at->second);
}

ChunkSum NvmeMeta::salt_id(const Digest& salt) {
  return checksum(std::as_bytes(std::span(salt.bytes)));
}

Result<Digest> NvmeMeta::space_salt(Disk& disk, uint32_t uid) {
  if (const std::optional<Digest> known = find_salt(uid)) {
    return *known;
  }
  Digest salt;
  if (Result<void> random = fill_random(salt.bytes); !random.ok()) {
    return random.error();
  }
  salts_[uid] = salt;
  if (Result<void> written = write_tables(disk, sequence_ + 1); !written.ok()) {
    salts_.erase(uid);
    return written.error();
  }
  ++sequence_;
  return salt;
}

Result<void> NvmeMeta::remember_model(Disk& disk,
                                      const Digest& fingerprint,
                                      const std::vector<uint8_t>& descriptor) {
  if (models_.contains(fingerprint)) {
    return {};
  }
  models_[fingerprint] = descriptor;
  if (Result<void> written = write_tables(disk, sequence_ + 1); !written.ok()) {
    models_.erase(fingerprint);
    return written.error();
  }
  ++sequence_;
  return {};
}

std::vector<std::vector<uint8_t>> NvmeMeta::models() const {
  std::vector<std::vector<uint8_t>> all;
  for (const auto& [fingerprint, descriptor] : models_) {
    all.push_back(descriptor);
  }
  return all;
}

}  // namespace skv
