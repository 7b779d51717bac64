#include "tiers/nvme_recovery.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <unordered_map>
#include <utility>

#include "tiers/aligned_buffer.h"
#include "tiers/nvme_index.h"

namespace skv {
namespace {

using nvme::kBlockBytes;

constexpr uint64_t kReadAheadBytes = 1u << 20;
constexpr uint64_t kSegmentsAtOnce = 64;

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
  Scan(JobRunner& runner, const NvmeMeta& meta, NvmeRecovery& out)
      : runner_(runner), meta_(meta), reader_(runner.disk()), out_(out) {}

  void run(const std::function<void(uint32_t percent)>& progress) {
    const uint64_t count = out_.segments.size();
    uint64_t told = 0;
    for (uint64_t next = 0; ended_ < count;) {
      while (next < count && next - ended_ < kSegmentsAtOnce) {
        begin(next++);
      }
      std::vector<std::unique_ptr<DiskJob>> finished;
      if (jobs_ > 0) {
        runner_.collect_wait(finished);
      }
      for (const std::unique_ptr<DiskJob>& job : finished) {
        --jobs_;
        job->finished(*job);
      }
      while (!walks_.empty()) {
        const Look& look = *walks_.back();
        walk(look);
        walks_.pop_back();
        ++ended_;
      }
      const uint64_t percent = ended_ * 100 / count;
      if (progress && percent > told) {
        told = percent;
        progress(static_cast<uint32_t>(percent));
      }
    }
    std::sort(out_.records.begin(), out_.records.end(),
              [](const auto& a, const auto& b) { return a.place.offset < b.place.offset; });
  }

 private:
  // What is known of a segment while it is looked at.
  struct Look {
    uint64_t index = 0;
    uint64_t start = 0;  // in the file
    uint64_t end = 0;    // behind the last record, or the seal's place
    uint64_t header_generation = 0;
    nvme::SegmentSeal seal{};  // generation 0: none that holds
    uint32_t reads_left = 0;
  };
  using LookRef = std::shared_ptr<Look>;

  void read(uint64_t offset, uint64_t bytes, std::function<void(DiskJob&)> then) {
    auto job = std::make_unique<DiskJob>();
    job->kind = DiskJob::Kind::kRead;
    job->urgent = true;
    job->offset = offset;
    job->own = AlignedBuffer(bytes);
    job->pieces.push_back(job->own.span());
    job->finished = std::move(then);
    ++jobs_;
    runner_.submit(std::move(job));
  }

  void begin(uint64_t index) {
    const auto look = std::make_shared<Look>();
    look->index = index;
    look->start = meta_.segment_offset(index);
    look->end = look->start + meta_.geometry().segment_bytes - kBlockBytes;
    look->reads_left = 2;
    read(look->start, kBlockBytes, [this, look](DiskJob& job) {
      out_.segments[look->index].unreadable = !job.result.ok();
      const std::span<const std::byte> block = job.own.span();
      if (nvme::block_holds(block, {nvme::kSegmentMagic, meta_.uuid(), look->start})) {
        nvme::SegmentHeader header;
        std::memcpy(&header, block.data(), sizeof header);
        look->header_generation = header.segment_index == look->index ? header.generation : 0;
      }
      if (--look->reads_left == 0) {
        decide(look);
      }
    });
    read(look->end, kBlockBytes, [this, look](DiskJob& job) {
      const std::span<const std::byte> block = job.own.span();
      if (nvme::block_holds(block, {nvme::kSealMagic, meta_.uuid(), look->end})) {
        std::memcpy(&look->seal, block.data(), sizeof look->seal);
      }
      if (--look->reads_left == 0) {
        decide(look);
      }
    });
  }

  void decide(const LookRef& look) {
    NvmeRecovery::Segment& segment = out_.segments[look->index];
    segment.generation = look->header_generation;
    const nvme::SegmentSeal& seal = look->seal;
    const uint64_t room = look->end - look->start;  // of records and index
    // Without its header a segment still has the generation that its seal tells.
    if (seal.generation != 0 && seal.segment_index == look->index && seal.end_offset <= room &&
        seal.end_offset % kBlockBytes == 0 &&
        (segment.generation == 0 || segment.generation == seal.generation)) {
      segment.generation = seal.generation;
      segment.sealed = true;
      look->end = look->start + seal.end_offset;
    }
    if (segment.generation == 0) {
      ++ended_;
      return;
    }
    const bool indexed = segment.sealed && seal.index_bytes > 0 &&
                         seal.index_bytes % kBlockBytes == 0 &&
                         seal.index_bytes <= room - seal.end_offset;
    if (!indexed) {
      walks_.push_back(look);
      return;
    }
    read(look->end, seal.index_bytes, [this, look](DiskJob& job) {
      auto found = nvme::decode_index(job.own.span(), {{nvme::kIndexMagic, meta_.uuid(), look->end},
                                                       out_.segments[look->index].generation,
                                                       look->start});
      if (!found) {
        walks_.push_back(look);
        return;
      }
      for (nvme::IndexFound& each : *found) {
        take(std::move(each.record), each.offset);
      }
      ++out_.indexed_segments;
      ++ended_;
    });
  }

  void walk(const Look& look) {
    const NvmeRecovery::Segment& segment = out_.segments[look.index];
    uint64_t offset = look.start + kBlockBytes;
    // Sealed: only headers are wanted, so nothing is read ahead, but where records are small.
    uint64_t ahead = segment.sealed ? 0 : kReadAheadBytes;
    while (offset < look.end) {
      std::optional<nvme::DecodedRecord> found =
          header_at(offset, look.end, std::min(look.end, offset + ahead));
      if (!found || found->generation != segment.generation) {
        offset += kBlockBytes;
        continue;
      }
      const uint64_t bytes = found->record_bytes;
      if (segment.sealed) {
        ahead = bytes < kReadAheadBytes / 8 ? kReadAheadBytes : 0;
      }
      if (!segment.sealed && !verify(*found, offset)) {
        ++out_.skipped;
      } else {
        take(std::move(*found), offset);
      }
      offset += bytes;
    }
  }

  void take(nvme::DecodedRecord found, uint64_t offset) {
    const std::optional<Digest> salt = meta_.find_salt(found.record.space_uid);
    if (!salt || NvmeMeta::salt_id(*salt) != found.salt_id) {
      ++out_.skipped;
      return;
    }
    const Digest key = found.record.key;
    const uint64_t number = found.record_number;
    out_.records.push_back({std::move(found.record),
                            {offset, found.generation, number},
                            found.record_bytes,
                            !meta_.purged(key, number)});
    const auto [at, fresh] = newest_.try_emplace(key, out_.records.size() - 1);
    if (!fresh) {
      const bool newer = out_.records[at->second].place.record_number < number;
      (newer ? out_.records[at->second] : out_.records.back()).live = false;
      at->second = newer ? out_.records.size() - 1 : at->second;
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

  JobRunner& runner_;
  const NvmeMeta& meta_;
  Reader reader_;
  NvmeRecovery& out_;
  std::unordered_map<Digest, size_t, DigestHash> newest_;  // of each key, in out_.records
  std::vector<LookRef> walks_;
  uint64_t jobs_ = 0;
  uint64_t ended_ = 0;  // segments
};

}  // namespace

NvmeRecovery NvmeRecovery::run(JobRunner& runner,
                               const NvmeMeta& meta,
                               const std::function<void(uint32_t percent)>& progress) {
  NvmeRecovery out;
  out.segments.resize(meta.geometry().segment_count);
  Scan(runner, meta, out).run(progress);
  return out;
}

}  // namespace skv
