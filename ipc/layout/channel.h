#pragma once

#include <atomic>
#include <cstdint>

namespace skv {

// The rings of one client thread: a submission ring (client writes) and a completion ring (daemon
// writes) in one sealed memfd that the daemon creates. ipc/ring.h works them.
//
//   [ChannelHeader 4 KiB][kChannelEntries x SubmissionEntry][kChannelEntries x
//   CompletionEntry][query area]
//
// Geometry is fixed at creation and never read back from the memory by the daemon. A client has at
// most kChannelEntries submissions whose completions it has not taken, so the completion ring never
// overflows; the daemon takes no entry without room for its completion.
inline constexpr uint32_t kChannelEntries = 64;
inline constexpr uint32_t kChannelVersion = 1;
inline constexpr uint32_t kChannelMagic = 0x4B435653;  // "SVCK"

// Each index and flag has a cache line of its own, by its writer. NOLINTNEXTLINE(*.Padding)
struct ChannelHeader {
  uint32_t magic;
  uint32_t version;
  uint64_t query_area_offset;
  uint64_t query_area_bytes;
  alignas(64) std::atomic<uint32_t> submission_tail;  // client writes
  alignas(64) std::atomic<uint32_t> submission_head;  // daemon writes
  alignas(64) std::atomic<uint32_t> completion_tail;  // daemon writes
  alignas(64) std::atomic<uint32_t> completion_head;  // client writes
  alignas(64)
      std::atomic<uint32_t> daemon_sleeps;  // daemon writes 1 before it sleeps: ring the doorbell
  alignas(64) std::atomic<uint32_t> client_sleeps;  // client writes 1 before it sleeps
};
static_assert(sizeof(ChannelHeader) == 448);
inline constexpr uint64_t kChannelHeaderBytes = 4096;

enum class ChannelVerb : uint32_t { kPrefetch = 1 };

// Query: fp32 [layer of the range][query head][k_dim], at query_offset in the query area.
struct SubmissionEntry {
  uint64_t ticket;
  uint32_t verb;
  uint32_t window;
  uint32_t first_layer;
  uint32_t layer_count;
  uint32_t query_offset;
  uint32_t query_bytes;
  uint32_t cold;         // ColdMode
  uint32_t deadline_us;  // for cold = wait; 0: the daemon's default
  uint8_t reserved[24];  // zero
};
static_assert(sizeof(SubmissionEntry) == 64);

struct CompletionEntry {
  uint64_t ticket;
  int32_t status;        // ErrorCode
  uint32_t covered_to;   // tokens
  uint64_t version;      // of the tables that were published
  uint64_t bytes_moved;  // into slots
  uint32_t hits_device;  // blocks: already resident
  uint32_t hits_host;
  uint32_t hits_nvme;
  uint32_t misses;     // wanted, not there in time: unread
  float unread_mass;   // estimated attention mass of what no table entry covers, mean over (layer,
                       // head)
  uint32_t daemon_us;  // from taking the entry to publishing the completion
  uint32_t read_blocks;  // table entries, all (layer, head)s
  uint32_t reserved;
};
static_assert(sizeof(CompletionEntry) == 64);

inline constexpr uint64_t kSubmissionsOffset = kChannelHeaderBytes;
inline constexpr uint64_t kCompletionsOffset =
    kSubmissionsOffset + kChannelEntries * sizeof(SubmissionEntry);
inline constexpr uint64_t kQueryAreaOffset =
    kCompletionsOffset + kChannelEntries * sizeof(CompletionEntry);
static_assert(kQueryAreaOffset == 12288);

enum class ColdMode : uint32_t { kPartial = 0, kWait = 1 };

}  // namespace skv
