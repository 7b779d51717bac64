#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <unordered_set>
#include <vector>

#include "tiers/aligned_buffer.h"
#include "tiers/disk.h"
#include "tiers/nvme_format.h"

namespace skv {

// The front of a store's file: superblock copies and the tables of spaces, models and purges.
//
// Thread  loop; every call that takes a disk blocks on it.
// Errors  messages say what the operator can do.
class NvmeMeta {
 public:
  struct Geometry {
    uint64_t file_bytes = 0;
    uint64_t segment_bytes = 0;  // 0 on the way in: as large as fits at least 16, at most 64 MiB
    uint64_t segment_count = 0;
    uint64_t first_segment_offset = nvme::kFrontBytes;
  };

  // Reads the front, or writes one where the disk has none, and counts this open. `wanted`:
  // file_bytes and segment_bytes.
  static Result<NvmeMeta> open(Disk& disk, const Geometry& wanted);

  // What `file_bytes` gives. kInvalidArgument: too small, or segment_bytes out of range.
  static Result<Geometry> plan(const Geometry& wanted);

  const Geometry& geometry() const { return geometry_; }
  const nvme::Uuid& uuid() const { return uuid_; }
  uint64_t open_count() const { return open_count_; }
  uint64_t segment_offset(uint64_t segment) const {
    return geometry_.first_segment_offset + segment * geometry_.segment_bytes;
  }

  std::optional<Digest> find_salt(uint32_t uid) const;
  static ChunkSum salt_id(const Digest& salt);
  Result<Digest> space_salt(Disk& disk, uint32_t uid);

  Result<void> remember_model(Disk& disk,
                              const Digest& fingerprint,
                              const std::vector<uint8_t>& descriptor);
  std::vector<std::vector<uint8_t>> models() const;

  // What was purged: no record of `key` counts up to this number. In memory; durable once the
  // tables were written after it.
  void purge(const Digest& key, uint64_t record_number);
  bool purged(const Digest& key, uint64_t record_number) const;
  size_t purge_count() const { return purges_.size(); }
  // The rest of the tables, a fifth at least, is for spaces and models.
  static constexpr size_t kPurgesMax = 32'768;
  // Forgets those for which there is no record left in the file.
  void prune_purges(const std::unordered_set<Digest, DigestHash>& keys_in_file);

  // The next version of the tables as two writes, for a caller that must not block: both blocks
  // written and a sync, then tables_written(). Nothing else may write the tables meanwhile.
  struct TablesWrite {
    uint64_t offset = 0;
    AlignedBuffer block;
  };
  Result<std::array<TablesWrite, 2>> next_tables() const;
  void tables_written() { ++sequence_; }

 private:
  using KeyBegin = std::array<uint8_t, 16>;
  static KeyBegin begin_of(const Digest& key);
  Result<void> format(Disk& disk, const Geometry& wanted);
  Result<bool> load_superblock(Disk& disk, const Geometry& wanted);  // false: there is none yet
  Result<void> write_superblock(Disk& disk) const;
  Result<void> load_tables(Disk& disk);
  Result<std::array<TablesWrite, 2>> encode_tables(uint64_t sequence) const;
  Result<void> write_tables(Disk& disk, uint64_t sequence) const;
  bool take_payload(const nvme::MetaHeader& header, std::span<const std::byte> payload);

  nvme::Uuid uuid_{};
  Geometry geometry_;
  uint64_t open_count_ = 0;
  uint64_t sequence_ = 0;  // of the tables on disk
  std::map<uint32_t, Digest> salts_;
  std::map<Digest, std::vector<uint8_t>> models_;
  std::map<KeyBegin, uint64_t> purges_;
};

}  // namespace skv
