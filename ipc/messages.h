#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "ipc/identity/model.h"
#include "ipc/types/ids.h"
#include "ipc/types/wire.h"

namespace skv {

// The messages of the control socket (docs/protocol.md). Each is one SOCK_SEQPACKET datagram:
// FrameHeader, then the body. Every message lists its fields once, in `fields`; the encoder and the
// bounds-checked decoder of ipc/types/wire.h walk that list. Little-endian, no padding; a vector or
// string is a u32 count, then its items; counts are limited by the frame and by kItemsMax.

inline constexpr uint32_t kFrameMagic = 0x31564B53;  // "SKV1"
inline constexpr uint16_t kProtocolVersion = 1;
inline constexpr uint32_t kMessageBytesMax = 64 * 1024;  // header included
inline constexpr uint32_t kFdsMax = 4;
inline constexpr uint32_t kAppendTokensMax = 8 * 1024;  // per message; a client splits longer ones
inline constexpr uint32_t kReserveSentencesMax = 512;   // per message
inline constexpr uint32_t kFillChunksMax = 4096;        // per message

enum class Verb : uint16_t {
  kHello = 1,
  kModelOpen = 2,
  kContextOpen = 3,
  kContextAppend = 4,
  kContextClose = 5,
  kMatch = 6,
  kMemoryRegister = 7,  // + 1 descriptor
  kMemoryUnregister = 8,
  kPutReserve = 9,
  kPutWrite = 10,
  kPutCommit = 11,
  kPutCancel = 12,
  kVectorsDerive = 13,
  kVectorsPut = 14,
  kWindowOpen = 15,
  kWindowClose = 16,
  kChannelOpen = 17,
  kChannelClose = 18,
  kLoad = 19,
  kRelease = 20,
  kFlush = 21,
  kDrop = 22,
  kStat = 23,
  kDirectoryMap = 24,
  kWindowFill = 25,
  kLeaseMapOpen = 26,
  kLeaseMapClose = 27,
  // Events, daemon to client, ticket 0.
  kGoAway = 64,      // the daemon drains: finish, reconnect later
  kWindowLost = 65,  // the device of this window is gone: its handle is stale
};

struct FrameHeader {
  uint32_t magic = kFrameMagic;
  uint16_t version = kProtocolVersion;
  uint16_t verb = 0;
  uint64_t ticket = 0;
  uint32_t body_bytes = 0;
  int32_t status = 0;  // replies: ErrorCode; an error's body is one string
  uint16_t is_reply = 0;
  uint16_t fd_count = 0;
  uint32_t reserved = 0;
};
static_assert(sizeof(FrameHeader) == 32);

// The names travel with the fields, so that a decoding error can say which one it is.
#define SKV_FIELDS(...)                 \
  template <typename Archive>           \
  void fields(Archive& archive) {       \
    archive(#__VA_ARGS__, __VA_ARGS__); \
  }
#define SKV_NO_FIELDS         \
  template <typename Archive> \
  void fields(Archive&) {}

struct Empty {
  SKV_NO_FIELDS
};

struct Hello {
  uint16_t version_min = kProtocolVersion;
  uint16_t version_max = kProtocolVersion;
  uint64_t features = 0;
  std::string client_name;  // 0..64 bytes, for logs and skvctl
  std::array<uint8_t, 16> client_instance{};
  SKV_FIELDS(version_min, version_max, features, client_name, client_instance)
};
// Descriptors: [0] staging memfd (read-write), [1] the space's host slabs (read-only).
struct HelloReply {
  uint16_t version = 0;
  uint64_t features = 0;
  std::string daemon_version;
  std::array<uint8_t, 16> instance{};  // of this daemon process: leases and handles die with it
  std::array<uint8_t, 16> boot_id{};
  uint32_t session = 0;
  uint32_t space = 0;
  Digest space_salt;
  std::string device_kind;  // "emulated", "cuda", "none"
  std::array<uint8_t, 16> device_uuid{};
  uint64_t staging_bytes = 0;
  uint64_t host_bytes = 0;         // length of the read-only mapping
  uint32_t reply_deadline_ms = 0;  // after this a client may call the daemon lost
  SKV_FIELDS(version,
             features,
             daemon_version,
             instance,
             boot_id,
             session,
             space,
             space_salt,
             device_kind,
             device_uuid,
             staging_bytes,
             host_bytes,
             reply_deadline_ms)
};

struct ModelOpen {
  std::vector<uint8_t> descriptor;  // encode(ModelDescriptor)
  SKV_FIELDS(descriptor)
};
struct ModelOpenReply {
  uint32_t model = 0;
  Digest fingerprint;
  uint32_t chunk_count = 0;
  SKV_FIELDS(model, fingerprint, chunk_count)
};

struct ContextOpen {
  uint32_t model = 0;
  uint8_t index_kind = 0;  // IndexKind
  uint8_t run_tokens = 2;
  SKV_FIELDS(model, index_kind, run_tokens)
};
struct ContextOpenReply {
  uint32_t context = 0;
  SKV_FIELDS(context)
};

// `extra` applies to every block that holds a token of this call, and by the chain to all later
// ones.
struct ContextAppend {
  uint32_t context = 0;
  uint32_t first_position = 0;  // tokens; must equal the context's length: makes a retry safe
  uint32_t ends_final_to = 0;
  Digest extra;
  std::vector<uint32_t> tokens;
  std::vector<uint32_t> ends;  // absolute offsets, ascending
  SKV_FIELDS(context, first_position, ends_final_to, extra, tokens, ends)
};
struct ContextAppendReply {
  uint32_t token_count = 0;
  uint32_t first_sentence = 0;         // index of the first of `closed`
  std::vector<uint8_t> closed_blocks;  // block counts of the sentences that closed by this call
  SKV_FIELDS(token_count, first_sentence, closed_blocks)
};
struct ContextClose {
  uint32_t context = 0;
  SKV_FIELDS(context)
};

// Longest cover of the context's tokens by stored sentences. `adopt`: the context takes the stored
// boundaries up to hit_tokens and cuts again after them (kBusy once a put, load or window used it).
struct Match {
  uint32_t context = 0;
  uint8_t adopt = 0;
  SKV_FIELDS(context, adopt)
};
enum class MatchOutcome : uint8_t { kMiss = 0, kPending = 1, kHit = 2 };
struct MatchReply {
  uint8_t outcome = 0;  // MatchOutcome
  uint32_t hit_tokens = 0;
  uint32_t pending_tokens = 0;       // cover if what other sessions have reserved gets committed
  uint32_t host_tokens = 0;          // of hit_tokens: whole body in host memory
  uint32_t nvme_tokens = 0;          // of hit_tokens: some chunk only on NVMe
  std::vector<uint8_t> path_blocks;  // adopt: block counts of all closed sentences of the context
  SKV_FIELDS(outcome, hit_tokens, pending_tokens, host_tokens, nvme_tokens, path_blocks)
};

struct MemoryRegister {
  uint64_t bytes = 0;
  SKV_FIELDS(bytes)
};
struct MemoryRegisterReply {
  uint32_t memory = 0;
  SKV_FIELDS(memory)
};
struct MemoryUnregister {
  uint32_t memory = 0;
  SKV_FIELDS(memory)
};

// A strided view of K and V in a registered memory (bytes). Element (layer, head, token) of K is at
// k_offset + (layer - first_layer) * layer_stride + head * head_stride + (token - first_token) *
// token_stride, its dims contiguous; V likewise from v_offset.
struct StridedKv {
  uint32_t memory = 0;
  uint64_t k_offset = 0;
  uint64_t v_offset = 0;
  uint64_t layer_stride = 0;
  uint64_t head_stride = 0;
  uint64_t token_stride = 0;
  uint32_t first_token = 0;  // absolute position of what is at the offsets
  SKV_FIELDS(memory, k_offset, v_offset, layer_stride, head_stride, token_stride, first_token)
};

struct PutReserve {
  uint32_t context = 0;
  uint32_t first_sentence = 0;
  uint32_t sentence_count = 0;
  SKV_FIELDS(context, first_sentence, sentence_count)
};
enum class PutOutcome : uint8_t {
  kReserved = 0,
  kExists = 1,
  kPending = 2,
  kFull = 3,
  kCommitted = 4,
  kIncomplete = 5,
  kCancelled = 6,
  kNotReserved = 7
};
struct PutOutcomes {              // reply of reserve, commit, cancel, vectors_*: one per sentence
  std::vector<uint8_t> outcomes;  // PutOutcome
  SKV_FIELDS(outcomes)
};
// Sentences of the range that are not reserved by this session are skipped. Reply: Empty; the
// source may be reused when it arrives.
struct PutWrite {
  uint32_t context = 0;
  uint32_t first_sentence = 0;
  uint32_t sentence_count = 0;
  uint32_t first_layer = 0;
  uint32_t layer_count = 0;
  StridedKv source;
  SKV_FIELDS(context, first_sentence, sentence_count, first_layer, layer_count, source)
};
struct PutCommit {
  uint32_t context = 0;
  uint32_t first_sentence = 0;
  uint32_t sentence_count = 0;
  uint8_t derive_vectors = 1;  // with the context's index, before the sentences become visible
  SKV_FIELDS(context, first_sentence, sentence_count, derive_vectors)
};
struct PutCancel {
  uint32_t context = 0;
  uint32_t first_sentence = 0;
  uint32_t sentence_count = 0;
  SKV_FIELDS(context, first_sentence, sentence_count)
};
struct VectorsDerive {
  uint32_t context = 0;
  uint32_t first_sentence = 0;
  uint32_t sentence_count = 0;
  SKV_FIELDS(context, first_sentence, sentence_count)
};
// One blob per sentence, back to back, of the context's index (ipc/layout/vectors.h).
struct VectorsPut {
  uint32_t context = 0;
  uint32_t first_sentence = 0;
  uint32_t sentence_count = 0;
  uint32_t memory = 0;
  uint64_t offset = 0;
  uint64_t bytes = 0;
  SKV_FIELDS(context, first_sentence, sentence_count, memory, offset, bytes)
};

enum class CutKind : uint8_t { kBlock = 0, kSentence = 1 };
// What the scores of a window are of.
enum class ScoresKind : uint8_t {
  kShares = 0,    // of the attention on all closed blocks
  kRelative = 1,  // of what was ranked, where that finds the same blocks with less reading
};
// Blocks per (layer, kv head).
struct WindowOpen {
  uint32_t context = 0;
  uint32_t budget_blocks = 0;    // ranked
  uint32_t sink_blocks = 0;      // first blocks of the context, always read
  uint32_t recent_blocks = 0;    // last closed blocks, always read
  uint32_t resident_blocks = 0;  // >= the sum of the three
  uint8_t cut = 0;               // CutKind
  uint32_t coarse_blocks = 0;    // fine stage reads at least this many; 0: the daemon's default
  uint8_t rank_in = 0;           // RankIn: who ranks, and owns resident sets and tables
  // Of attention on closed blocks, 0 to 1: no more ranked blocks than bring the read set's
  // estimated share to this; 0: budget_blocks of them.
  float mass = 0.0F;
  // Ranked blocks of each (layer, kv head), layer by layer, none above budget_blocks; empty: all
  // have budget_blocks.
  std::vector<uint32_t> head_budgets = {};
  // 0 to 1; above 0, on-change mode: a (layer, kv head) reads what it read before, and is not
  // ranked, while no block was added and the cosine of each of its queries with the one that it was
  // ranked by is at least this.
  float query_cosine = 0.0F;
  uint8_t scores = 0;  // ScoresKind; kRelative: blocks alone are cut, and not by mass
  SKV_FIELDS(context,
             budget_blocks,
             sink_blocks,
             recent_blocks,
             resident_blocks,
             cut,
             coarse_blocks,
             rank_in,
             mass,
             head_budgets,
             query_cosine,
             scores)
};
// Descriptors: tables memfd (read-write); the window's slots (device tier), unless slots_in_host:
// then slots are read in the host mapping of hello; where rank_in says that the client ranks, the
// context's feed (ipc/layout/feed.h) and the pages of vectors of the space, both to be read only.
struct WindowOpenReply {
  uint32_t window = 0;
  uint64_t tables_bytes = 0;
  uint64_t slots_bytes = 0;
  uint32_t slot_unit_bytes = 0;
  uint32_t width = 0;
  uint8_t slots_in_host = 0;
  uint8_t rank_in = 0;  // RankIn, never kEither
  uint64_t feed_bytes = 0;
  uint64_t vectors_bytes = 0;
  SKV_FIELDS(window,
             tables_bytes,
             slots_bytes,
             slot_unit_bytes,
             width,
             slots_in_host,
             rank_in,
             feed_bytes,
             vectors_bytes)
};
struct WindowClose {
  uint32_t window = 0;
  SKV_FIELDS(window)
};

// Chunks of sentences that a client which ranks wants in host memory: chunks[i] of sentences[i].
// wait: answered when all came or the deadline has passed, and leased until readers_done reaches
// `version`; else they are asked for, and the answer says what is there now.
struct WindowFill {
  uint32_t window = 0;
  uint64_t version = 0;
  uint8_t wait = 0;
  uint32_t deadline_us = 0;  // 0: the daemon's default
  std::vector<uint32_t> sentences;
  std::vector<uint32_t> chunks;
  SKV_FIELDS(window, version, wait, deadline_us, sentences, chunks)
};
struct WindowFillReply {             // one per chunk
  std::vector<uint32_t> host_pages;  // as in the feed; 0: not there
  std::vector<uint8_t> origins;      // Origin
  SKV_FIELDS(host_pages, origins)
};

// Descriptors of the reply: [0] channel memfd, [1] doorbell of the daemon (an eventfd, the client
// writes), [2] doorbell of the client (the read end of a pipe, the daemon writes): ipc/doorbell.h.
struct ChannelOpen {
  uint64_t argument_area_bytes = 0;
  SKV_FIELDS(argument_area_bytes)
};
struct ChannelOpenReply {
  uint32_t channel = 0;
  uint64_t bytes = 0;
  uint64_t argument_area_offset = 0;
  SKV_FIELDS(channel, bytes, argument_area_offset)
};
struct ChannelClose {
  uint32_t channel = 0;
  SKV_FIELDS(channel)
};

// Whole sentences back. in_place = 0: copied to `destination`, nothing leased. in_place = 1:
// `extents` holds, per sentence and chunk of the layer range, an offset into the host mapping,
// leased until release.
struct Load {
  uint32_t context = 0;
  uint32_t first_sentence = 0;
  uint32_t sentence_count = 0;
  uint32_t first_layer = 0;
  uint32_t layer_count = 0;
  uint8_t in_place = 0;
  uint32_t deadline_ms = 0;  // 0: the daemon's default
  StridedKv destination;
  SKV_FIELDS(context,
             first_sentence,
             sentence_count,
             first_layer,
             layer_count,
             in_place,
             deadline_ms,
             destination)
};
struct LoadReply {
  uint64_t lease = 0;  // 0: none
  uint32_t host_chunks = 0;
  uint32_t nvme_chunks = 0;
  uint64_t bytes = 0;
  std::vector<uint64_t> extents;
  SKV_FIELDS(lease, host_chunks, nvme_chunks, bytes, extents)
};
struct Release {
  uint64_t lease = 0;
  SKV_FIELDS(lease)
};

// Where the context's chunks lie in host memory, and words in which the client says which it reads:
// leases without a message (ipc/layout/lease_map.h). Boundaries of the context stay from now on. It
// is the session's, and goes on when the context is closed.
struct LeaseMapOpen {
  uint32_t context = 0;
  SKV_FIELDS(context)
};
// Descriptors: [0] places (read-only), [1] words (read-write); both of `bytes`.
struct LeaseMapOpenReply {
  uint32_t map = 0;
  uint64_t bytes = 0;
  SKV_FIELDS(map, bytes)
};
// All leases by its words end with it.
struct LeaseMapClose {
  uint32_t map = 0;
  SKV_FIELDS(map)
};

enum class FlushLevel : uint8_t { kHost = 1, kDurable = 2 };
struct Flush {
  uint8_t level = 0;  // FlushLevel
  SKV_FIELDS(level)
};
struct FlushReply {
  uint64_t sentences = 0;  // of the space, durable now
  SKV_FIELDS(sentences)
};

// Drops the context's stored sentences from first_sentence on, from the leaf towards the root,
// where nothing leases them and no other stored path needs them.
struct Drop {
  uint32_t context = 0;
  uint32_t first_sentence = 0;
  SKV_FIELDS(context, first_sentence)
};
struct DropReply {
  uint32_t dropped = 0;
  uint32_t kept = 0;
  SKV_FIELDS(dropped, kept)
};

enum class StatKind : uint8_t { kStatus = 0, kContexts = 1, kSession = 2 };
struct Stat {
  uint8_t kind = 0;    // StatKind
  uint32_t first = 0;  // kContexts: index to go on from
  SKV_FIELDS(kind, first)
};
struct StatReply {
  std::string json;   // docs/protocol.md lists the keys
  uint32_t next = 0;  // 0: that was all
  SKV_FIELDS(json, next)
};

// Descriptor of the reply: the space's shared directory, read-only (ipc/layout/shared_directory.h).
struct DirectoryMapReply {
  uint64_t bytes = 0;
  uint64_t generation = 0;
  SKV_FIELDS(bytes, generation)
};

struct WindowLost {
  uint32_t window = 0;
  std::string reason;
  SKV_FIELDS(window, reason)
};

}  // namespace skv
