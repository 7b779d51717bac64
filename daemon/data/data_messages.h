#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "daemon/data/feed_map.h"
#include "ipc/channel.h"
#include "ipc/identity/model.h"
#include "ipc/layout/body_layout.h"
#include "ipc/layout/window.h"
#include "ipc/messages.h"
#include "ipc/types/ids.h"
#include "ipc/types/result.h"
#include "ipc/unique_fd.h"
#include "kernels/window_tables.h"
#include "tiers/checksum.h"

namespace skv {

// What the loop asks of the data thread and what it hears back (daemon/data/README.md).
//
// Ids     all are given by the loop and unique in the daemon instance, over all sessions.
// Order   commands are handled in the order they were posted; each event follows from them in
// order. Owns    commands and events own all they hold, except host memory: a base pointer stays
// valid until
//         the event that ends its use.
// Thread  built on one thread, moved to the other.

enum class FeedId : uint64_t {};  // a context that windows read; by convention the context's id
enum class TaskId : uint64_t {};

using VectorsBlob = std::shared_ptr<const std::vector<std::byte>>;  // ipc/layout/vectors.h

// What the data thread has to know of a model, shared by all that use it.
struct DataModel {
  explicit DataModel(ModelDescriptor descriptor_in)
      : descriptor(std::move(descriptor_in)), layout(descriptor) {}
  ModelDescriptor descriptor;  // Requires: validate(descriptor).ok()
  BodyLayout layout;
};
using DataModelPtr = std::shared_ptr<const DataModel>;

struct ChunkRef {
  SentenceUid uid{};
  uint32_t chunk = 0;
  friend bool operator==(const ChunkRef&, const ChunkRef&) = default;
};

inline constexpr uint64_t kNoExtent = ~uint64_t{0};

// ---- commands -----------------------------------------------------------------------------------

// The host tier of a space. `base` is the loop's own mapping of it, written by copy tasks. Its
// pages of vectors are a memory of their own, of up to `vectors_bytes`.
struct MapArena {
  SpaceId space{};
  UniqueFd arena;
  std::byte* base = nullptr;
  uint64_t bytes = 0;
  uint64_t vectors_bytes = 256ULL << 20;
};
// Requires: every session of the space is closed. Answer: ArenaUnmapped.
struct UnmapArena {
  SpaceId space{};
};

// Answer: ChannelOpened. `argument_area_bytes` is rounded up to whole pages.
struct OpenChannel {
  SessionId session{};
  ChannelId channel{};
  uint64_t argument_area_bytes = 0;
};
// The answer to a ChannelRequest: a frame, at most kMessageBytesMax. Ignored where the channel is
// gone.
struct ChannelReply {
  ChannelId channel{};
  uint64_t request = 0;
  std::vector<uint8_t> frame;
};
struct CloseChannel {  // what was in flight on it gets no completion
  SessionId session{};
  ChannelId channel{};
};

// Everything of a session: channels, windows, tasks. Requires: its process is gone or has hung up.
// Answer: SessionClosed, once no move and no copy of it runs. Nothing of it may be posted after.
struct CloseSession {
  SessionId session{};
};

// A context that can be ranked. Feeds are shared by the windows opened on them.
struct OpenFeed {
  FeedId feed{};
  SpaceId space{};
  DataModelPtr model;
  IndexDescriptor index;
};
// Shows a feed to clients that rank for themselves. Once per feed, before the window that needs it.
struct ShareFeed {
  FeedId feed{};
  std::shared_ptr<FeedMap> map;
};
struct CloseFeed {  // Requires: its windows were closed before, in posting order
  FeedId feed{};
};

struct HostChunk {
  uint64_t offset = kNoExtent;  // in the space's arena; kNoExtent: not in host memory
  Origin origin = Origin::kHost;
};
struct FeedSentence {
  SentenceUid uid{};
  SentenceSpan span;
  VectorsBlob vectors;            // of the feed's index
  std::vector<HostChunk> chunks;  // BodyLayout::chunk_count() of them
};
// Stored sentences of the context, in order and without holes: `first_index` is the count so far.
struct FeedSentences {
  FeedId feed{};
  uint32_t first_index = 0;
  std::vector<FeedSentence> sentences;
};

// A chunk came into host memory (promoted, or put again). `origin` says from where, for the hit
// counts of the first prefetch that uses it. Unknown uids are ignored.
struct ChunkArrived {
  ChunkRef chunk;
  uint64_t offset = 0;
  Origin origin = Origin::kNvme;
};
// It was asked for and will not come (corrupt, no room, gone): a miss for who waits.
struct ChunkFailed {
  ChunkRef chunk;
};
// Take it back. Answer: WithdrawDone, once no move and no readable table uses it. No new use begins
// after this command; a later ChunkArrived may bring the chunk again, at another offset.
struct Withdraw {
  ChunkRef chunk;
};

// Answer: WindowOpened. Options were validated by the loop against the descriptor and its limits.
struct OpenWindow {
  SessionId session{};
  WindowId window{};
  FeedId feed{};
  WindowShape shape;
  RankIn rank_in = RankIn::kDaemon;  // a client that ranks needs a shared feed
};
// Chunks that the client of a window, which ranks for itself, does not find in host memory.
// Answer: TaskDone. `chunks` are the client's word.
struct FillTask {
  struct Chunk {
    uint32_t sentence = 0;
    uint32_t chunk = 0;
  };
  TaskId task{};
  SessionId session{};
  WindowId window{};
  bool waits = false;  // until all came or the deadline; leased for `version`
  uint64_t version = 0;
  uint32_t deadline_us = 0;  // 0: the default
  std::vector<Chunk> chunks;
};
struct CloseWindow {  // Answer: WindowClosed
  SessionId session{};
  WindowId window{};
};

// One sentence of a copy. `extents[i]` is the offset of chunk `chunk_of(layers.first) + i`.
struct SentenceExtents {
  SentenceSpan span;
  std::vector<uint64_t> extents;
  std::vector<uint32_t> checksum_chunks;  // put: chunks that are whole after this copy
  SentenceUid uid{};  // put: lets a sum go on from one task to the next; 0: none does
};
enum class CopyDirection : uint8_t { kPut = 0, kLoad = 1 };  // into, out of the host tier

// Between a registered memory and host extents. The loop leases the extents until TaskDone (or
// SessionClosed, which then stands for it). `memory` is hostile: it is read once, checksums are of
// the extents. `view` was not validated: TaskDone says kInvalidArgument when it leaves `memory`.
struct CopyTask {
  TaskId task{};
  SessionId session{};
  SpaceId space{};
  CopyDirection direction = CopyDirection::kPut;
  DataModelPtr model;
  std::shared_ptr<void> hold;  // keeps `memory` mapped
  std::byte* memory = nullptr;
  uint64_t memory_bytes = 0;
  StridedKv view;
  LayerRange layers;
  std::vector<SentenceExtents> sentences;
};

// ---- puts: what a session may write without asking, and the end of that (daemon/data/put_table.h)

// Tasks that the data thread makes itself are numbered from here on.
inline constexpr uint64_t kOwnTasks = uint64_t{1} << 63;

// A memory that the session registered. `data` stays mapped while `hold` is held.
struct GrantMemory {
  SessionId session{};
  MemoryId memory{};
  std::shared_ptr<void> hold;
  std::byte* data = nullptr;
  uint64_t bytes = 0;
};
struct RevokeMemory {  // copies that run hold the mapping
  SessionId session{};
  MemoryId memory{};
};
// Sentences that the session has reserved, by their place in a context; all their extents are
// leased until PutRevoked.
struct GrantPuts {
  struct Sentence {
    uint32_t index = 0;  // in the context
    SentenceUid uid{};
    SentenceExtents place;  // every chunk
  };
  SessionId session{};
  ContextId context{};
  SpaceId space{};
  DataModelPtr model;
  std::vector<Sentence> sentences;
};
// Answer: one PutRevoked each, once no copy into it runs.
struct RevokePuts {
  SessionId session{};
  std::vector<SentenceUid> uids;
};
// A put_write that did not come by a channel, or named what was not granted there yet. Answer:
// TaskDone.
struct WritePuts {
  TaskId task{};
  SessionId session{};
  PutWrite message;
};
// What is whole once the copies that were begun have ended takes no more writes; the rest stays
// open. Answer: TaskDone with `puts`, and with vectors of those that are whole and to be derived,
// in order.
struct SealPuts {
  struct Put {
    SentenceUid uid{};
    bool derive = false;
  };
  TaskId task{};
  SessionId session{};
  IndexDescriptor index;  // of what is derived
  std::vector<Put> puts;
};

// Vectors of whole sentences from their extents (all chunks).
struct DeriveTask {
  TaskId task{};
  SessionId session{};
  SpaceId space{};
  DataModelPtr model;
  IndexDescriptor index;
  std::vector<SentenceExtents> sentences;
};

// Vectors that the engine made: blobs back to back at `offset`, copied once, sizes checked.
struct CopyVectorsTask {
  TaskId task{};
  SessionId session{};
  DataModelPtr model;
  IndexDescriptor index;
  std::shared_ptr<void> hold;
  std::byte* memory = nullptr;
  uint64_t memory_bytes = 0;
  uint64_t offset = 0;
  uint64_t bytes = 0;
  std::vector<SentenceSpan> spans;
};

// Answer: Pong. What the watchdog asks: an answer is a turn of the thread since.
struct Ping {};

using DataCommand = std::variant<Ping,
                                 MapArena,
                                 UnmapArena,
                                 OpenChannel,
                                 CloseChannel,
                                 ChannelReply,
                                 CloseSession,
                                 OpenFeed,
                                 ShareFeed,
                                 CloseFeed,
                                 FeedSentences,
                                 ChunkArrived,
                                 ChunkFailed,
                                 Withdraw,
                                 OpenWindow,
                                 FillTask,
                                 CloseWindow,
                                 GrantMemory,
                                 RevokeMemory,
                                 GrantPuts,
                                 RevokePuts,
                                 WritePuts,
                                 SealPuts,
                                 CopyTask,
                                 DeriveTask,
                                 CopyVectorsTask>;

// ---- events -------------------------------------------------------------------------------------

struct Pong {};

struct ArenaUnmapped {
  SpaceId space{};
};

struct ChannelOpened {
  using Parts = ChannelParts;
  SessionId session{};
  ChannelId channel{};
  Result<Parts> parts;  // descriptors in the order of the reply
};

// A frame of the control socket that came by a channel, copied once, nothing of it validated but
// its length. Answer: one ChannelReply, whatever it was.
struct ChannelRequest {
  SessionId session{};
  ChannelId channel{};
  uint64_t request = 0;  // the data thread's number for it
  std::vector<uint8_t> frame;
};

struct WindowOpened {
  struct Parts {
    UniqueFd tables;
    UniqueFd slots;  // empty when slots_in_host
    uint64_t tables_bytes = 0;
    uint64_t slots_bytes = 0;  // slots_in_host: of the arena
    uint32_t slot_unit_bytes = 0;
    uint32_t width = 0;
    bool slots_in_host = false;
    RankIn rank_in = RankIn::kDaemon;
    UniqueFd feed;  // the client ranks: read-only descriptors
    UniqueFd vectors;
    uint64_t feed_bytes = 0;
    uint64_t vectors_bytes = 0;
  };
  SessionId session{};
  WindowId window{};
  Result<Parts> parts;
};
struct WindowClosed {
  SessionId session{};
  WindowId window{};
};
struct SessionClosed {
  SessionId session{};
};
// The session broke a rule of the ring: its channels are stopped; the loop closes it.
struct ProtocolError {
  SessionId session{};
  std::string message;
};

// Wanted on the host. Each chunk is asked once (twice when it becomes urgent) until ChunkArrived or
// ChunkFailed answers it; every one must be answered.
struct NeedChunks {
  SpaceId space{};
  bool urgent = false;  // a prefetch waits
  std::vector<ChunkRef> chunks;
};
// Likely to be wanted next, best first: towards the host where there is room, behind all that
// somebody waits for. No answer but, perhaps, ChunkArrived.
struct ReadAheadChunks {
  std::vector<ChunkRef> chunks;
};
struct WithdrawDone {
  ChunkRef chunk;
};
// Sentences that were read since the last one of these; at most every touch_interval_ns.
struct Touched {
  std::vector<SentenceUid> sentences;
};

struct PutRevoked {
  SessionId session{};
  SentenceUid uid{};
};

struct TaskDone {
  struct Sum {
    uint32_t sentence = 0;  // index in the task
    uint32_t chunk = 0;
    ChunkSum sum;
  };
  struct Filled {
    uint32_t host_page = 0;  // as in ipc/layout/feed.h; 0: not there
    Origin origin = Origin::kHost;
  };
  TaskId task{};
  SessionId session{};
  Result<void> status;
  uint64_t bytes = 0;          // copied
  std::vector<Filled> filled;  // FillTask: one per chunk
  std::vector<Sum> sums;       // CopyTask, put
  struct Put {
    bool whole = false;
    std::vector<Sum> sums;  // of every chunk, if whole
  };
  std::vector<Put> puts;             // SealPuts: as they were asked for
  std::vector<VectorsBlob> vectors;  // DeriveTask, CopyVectorsTask: one per sentence
};

// The device died; these windows answer kStale from now on (close them). The next OpenWindow starts
// it again.
struct DeviceLost {
  struct Window {
    SessionId session{};
    WindowId window{};
  };
  std::string reason;
  std::vector<Window> windows;
};

using DataEvent = std::variant<Pong,
                               ArenaUnmapped,
                               ChannelOpened,
                               ChannelRequest,
                               WindowOpened,
                               WindowClosed,
                               SessionClosed,
                               ProtocolError,
                               NeedChunks,
                               ReadAheadChunks,
                               WithdrawDone,
                               Touched,
                               PutRevoked,
                               TaskDone,
                               DeviceLost>;

}  // namespace skv
