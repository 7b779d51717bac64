#include "tiers/nvme_recovery.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <unordered_map>
#include <utility>

#include "tiers/aligned_buffer.h"

namespace skv {
namespace {

using nvme::kBlockBytes;

constexpr uint64_t kReadAheadBytes = 1u << 20;

// Reads a disk forward through one buffer.
class Reader {
 public:
  explicit Reader(Disk& disk) : disk_(disk), buffer_(kReadAheadBytes) {}

  // `bytes` (at most 1 MiB, whole blocks) at `offset`; reads on to `end` where that helps. Empty:
  // the disk gives an error there.
  std::span<const std::byte> get(uint64_t offset, uint64_t bytes, uint64_t end) {
    if (offset < start_ || offset + bytes > start_ + held_) {
      const uint64_t ahead = std::clamp(end - offset, bytes, kReadAheadBytes);
      start_ = offset;
      held_ = ahead;
      if (!disk_.read_now(offset, buffer_.span().first(ahead)).ok()) {
        held_ = bytes;
        if (!disk_.read_now(offset, buffer_.span().first(bytes)).ok()) {
          held_ = 0;
          return {};
        }
      }
    }
    return buffer_.span().subspan(offset - start_, bytes);
  }

 private:
  Disk& disk_;
  AlignedBuffer buffer_;
  uint64_t start_ = 0;
  uint64_t held_ = 0;
};

class Scan {
 public:
  Scan(Disk& disk, const NvmeMeta& meta, NvmeRecovery& out)
      : meta_(meta), reader_(disk), out_(out) {}

  void segment(uint64_t index) {
    const uint64_t start = meta_.segment_offset(index);
    const uint64_t seal_at = start + meta_.geometry().segment_bytes - kBlockBytes;
    NvmeRecovery::Segment& segment = out_.segments[index];
    std::span<const std::byte> block = reader_.get(start, kBlockBytes, start + kBlockBytes);
    segment.unreadable = block.empty();
    if (nvme::block_holds(block, {nvme::kSegmentMagic, meta_.uuid(), start})) {
      nvme::SegmentHeader header;
      std::memcpy(&header, block.data(), sizeof header);
      segment.generation = header.segment_index == index ? header.generation : 0;
    }
    uint64_t end = seal_at;
    block = reader_.get(seal_at, kBlockBytes, seal_at + kBlockBytes);
    if (nvme::block_holds(block, {nvme::kSealMagic, meta_.uuid(), seal_at})) {
      nvme::SegmentSeal seal;
      std::memcpy(&seal, block.data(), sizeof seal);
      // Without its header a segment still has the generation that its seal tells.
      if (seal.segment_index == index && seal.end_offset <= seal_at - start &&
          (segment.generation == 0 || segment.generation == seal.generation)) {
        segment.generation = seal.generation;
        segment.sealed = true;
        end = start + seal.end_offset;
      }
    }
    if (segment.generation != 0) {
      walk(start + kBlockBytes, end, segment);
    }
  }

  void finish() {
    for (auto& [key, record] : newest_) {
      out_.records.push_back(std::move(record));
    }
    std::sort(out_.records.begin(), out_.records.end(),
              [](const auto& a, const auto& b) { return a.place.offset < b.place.offset; });
  }

 private:
  void walk(uint64_t offset, uint64_t end, const NvmeRecovery::Segment& segment) {
    // Sealed: only headers are wanted, so nothing is read ahead.
    const uint64_t ahead_to = segment.sealed ? 0 : end;
    while (offset < end) {
      std::optional<nvme::DecodedRecord> found = header_at(offset, end, ahead_to);
      if (!found || found->generation != segment.generation) {
        offset += kBlockBytes;
        continue;
      }
      const uint64_t bytes = found->record_bytes;
      const std::optional<Digest> salt = meta_.find_salt(found->record.space_uid);
      if (!salt || NvmeMeta::salt_id(*salt) != found->salt_id ||
          (!segment.sealed && !verify(*found, offset))) {
        ++out_.skipped;
      } else {
        keep(std::move(*found), offset);
      }
      offset += bytes;
    }
  }

  std::optional<nvme::DecodedRecord> header_at(uint64_t offset, uint64_t end, uint64_t ahead_to) {
    std::span<const std::byte> block =
        reader_.get(offset, kBlockBytes, std::max(ahead_to, offset + kBlockBytes));
    if (block.empty()) {
      return std::nullopt;
    }
    const std::optional<uint64_t> claimed = nvme::claimed_header_bytes(block);
    if (!claimed || *claimed > end - offset) {
      return std::nullopt;
    }
    if (*claimed > kBlockBytes) {
      block = reader_.get(offset, *claimed, std::max(ahead_to, offset + *claimed));
      if (block.empty()) {
        return std::nullopt;
      }
    }
    return nvme::decode_record(block, {nvme::kRecordMagic, meta_.uuid(), offset}, end);
  }

  bool verify(const nvme::DecodedRecord& found, uint64_t offset) {
    const BodyRecord& record = found.record;
    const uint64_t end = offset + found.record_bytes;
    if (!sum_holds(offset + nvme::vectors_offset(record), record.vectors_bytes, end,
                   record.vectors_sum)) {
      return false;
    }
    uint64_t at = offset + nvme::chunk_offset(record, 0);
    for (size_t i = 0; i < record.chunk_bytes.size(); ++i) {
      if (!sum_holds(at, record.chunk_bytes[i], end, record.chunk_sums[i])) {
        return false;
      }
      at += storage_bytes(record.chunk_bytes[i]);
    }
    return true;
  }

  bool sum_holds(uint64_t offset, uint64_t bytes, uint64_t end, const ChunkSum& sum) {
    ChecksumStream stream;
    for (uint64_t at = 0; at < bytes;) {
      const uint64_t take = std::min(bytes - at, kReadAheadBytes);
      const std::span<const std::byte> piece = reader_.get(offset + at, storage_bytes(take), end);
      if (piece.empty()) {
        return false;
      }
      stream.update(piece.first(take));
      at += take;
    }
    return stream.sum() == sum;
  }

  void keep(nvme::DecodedRecord found, uint64_t offset) {
    NvmeRecovery::Record record{std::move(found.record),
                                {offset, found.generation, found.record_number},
                                found.record_bytes};
    const Digest key = record.record.key;
    const auto [at, is_new] = newest_.try_emplace(key, record);
    if (!is_new && at->second.place.record_number < record.place.record_number) {
      at->second = std::move(record);
    }
  }

  const NvmeMeta& meta_;
  Reader reader_;
  NvmeRecovery& out_;
  std::unordered_map<Digest, NvmeRecovery::Record, DigestHash> newest_;
};

}  // namespace

NvmeRecovery NvmeRecovery::run(Disk& disk,
                               const NvmeMeta& meta,
                               const std::function<void(uint32_t percent)>& progress) {
  NvmeRecovery out;
  const uint64_t count = meta.geometry().segment_count;
  out.segments.resize(count);
  Scan scan(disk, meta, out);
  uint32_t told = 0;
  for (uint64_t index = 0; index < count; ++index) {
    scan.segment(index);
    const auto percent = static_cast<uint32_t>((index + 1) * 100 / count);
    if (progress && percent > told) {
      told = percent;
      progress(percent);
    }
  }
  scan.finish();
  return out;
}

}  // namespace skv
