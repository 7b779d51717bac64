#pragma once

#include <atomic>
#include <cstdint>

namespace skv {

// The rings of one client thread: a submission ring (client writes) and a completion ring (daemon
// writes) in one sealed memfd that the daemon creates. ipc/ring.h works them.
//
//   [ChannelHeader 4 KiB][kChannelEntries x SubmissionEntry][kChannelEntries x
//   CompletionEntry][argument area]
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
  uint64_t argument_area_offset;
  uint64_t argument_area_bytes;
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

// kPrefetch ranks, moves what is missing and publishes tables. kGuess does the same up to the moves
// and publishes nothing; the confirming kPrefetch then finds its blocks in their slots. kRequest
// carries a message of the control socket.
enum class ChannelVerb : uint32_t { kPrefetch = 1, kRequest = 2, kGuess = 3 };

// What a submission refers to lies in the argument area at [argument_offset, + argument_bytes), at
// a multiple of 8:
//
// kPrefetch, kGuess   PrefetchRow[row_count], then the queries, fp32 [row][layer of the
//                     range][query head][k_dim]. The daemon writes what became of each row over the
//                     rows before it completes.
// kRequest            one frame of the control socket (ipc/messages.h) without descriptors. The
//                     daemon writes the reply's frame over it.
struct SubmissionEntry {
  uint64_t ticket;
  uint32_t verb;  // ChannelVerb
  uint32_t argument_offset;
  uint32_t argument_bytes;
  uint32_t reply_bytes_max;  // kRequest: room from argument_offset on
  uint32_t row_count;        // the others: 1 to kPrefetchRowsMax; these fields are zero in requests
  uint32_t first_layer;
  uint32_t layer_count;
  uint32_t cold;         // ColdMode
  uint32_t deadline_us;  // for cold = wait; 0: the daemon's default
  uint32_t reserved[5];  // zero
};
static_assert(sizeof(SubmissionEntry) == 64);
inline constexpr uint32_t kPrefetchRowsMax = 64;

// One window of a prefetch: the client writes `window`, the daemon the rest, when it completes.
struct PrefetchRow {
  uint32_t window;
  int32_t status;        // ErrorCode
  uint64_t version;      // of the tables that were published; kGuess: 0
  uint64_t bytes_moved;  // into slots
  uint32_t covered_to;   // tokens
  uint32_t hits_device;  // blocks: already resident
  uint32_t hits_host;
  uint32_t hits_nvme;
  uint32_t misses;       // wanted, not there in time: unread
  uint32_t read_blocks;  // table entries, all (layer, head)s
  float unread_mass;  // estimated attention mass of what no table entry covers, mean over (layer,
                      // head)
  uint32_t ranked_heads;  // (layer, head)s that were ranked, all but what on-change mode kept
  uint32_t reserved[2];
};
static_assert(sizeof(PrefetchRow) == 64);

// Times are of this submission alone, sums over its rows, in ns, at most 2^32 - 1.
struct CompletionEntry {
  uint64_t ticket;
  int32_t status;        // ErrorCode; of rows: the first that is not 0
  uint32_t reply_bytes;  // kRequest
  uint64_t taken_ns;     // CLOCK_MONOTONIC when the daemon took the entry
  uint32_t daemon_ns;    // from there to this completion; of it:
  uint32_t rank_ns;      // ranking
  uint32_t cut_ns;       // choosing
  uint32_t write_ns;     // writing tables
  uint32_t reserved[6];
};
static_assert(sizeof(CompletionEntry) == 64);

inline constexpr uint64_t kSubmissionsOffset = kChannelHeaderBytes;
inline constexpr uint64_t kCompletionsOffset =
    kSubmissionsOffset + kChannelEntries * sizeof(SubmissionEntry);
inline constexpr uint64_t kArgumentAreaOffset =
    kCompletionsOffset + kChannelEntries * sizeof(CompletionEntry);
static_assert(kArgumentAreaOffset == 12288);

enum class ColdMode : uint32_t { kPartial = 0, kWait = 1 };

}  // namespace skv
