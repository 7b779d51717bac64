#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "daemon/data/data_messages.h"
#include "daemon/data/feed_map.h"

namespace skv {

class Residency;
struct ResidentSentence;

// A place of one chunk in the host tier, for as long as somebody here may read it.
struct Extent {
  ChunkRef chunk;
  ResidentSentence* sentence = nullptr;  // until it is withdrawn
  uint64_t offset = 0;
  Origin origin = Origin::kHost;
  uint32_t uses = 0;         // leases
  uint32_t answers_due = 0;  // WithdrawDone owed when uses is 0; > 0: withdrawn, no new lease
  bool ahead = false;        // came by read-ahead, and nobody has read it yet
};

// The right to read an extent; while one lives, WithdrawDone is not sent.
class ExtentLease {
 public:
  ExtentLease() = default;
  ExtentLease(ExtentLease&& other) noexcept
      : owner_(std::exchange(other.owner_, nullptr)),
        extent_(std::exchange(other.extent_, nullptr)) {}
  ExtentLease& operator=(ExtentLease&& other) noexcept {
    if (this != &other) {
      release();
      owner_ = std::exchange(other.owner_, nullptr);
      extent_ = std::exchange(other.extent_, nullptr);
    }
    return *this;
  }
  ExtentLease(const ExtentLease&) = delete;
  ExtentLease& operator=(const ExtentLease&) = delete;
  ~ExtentLease() { release(); }

  explicit operator bool() const { return extent_ != nullptr; }
  const Extent& operator*() const { return *extent_; }
  const Extent* operator->() const { return extent_; }
  void release();
  // All of them; faster than one by one where the caches have lost sight of them.
  static void release(std::vector<ExtentLease>& leases);

 private:
  friend class Residency;
  ExtentLease(Residency* owner, Extent* extent) : owner_(owner), extent_(extent) {}
  Residency* owner_ = nullptr;
  Extent* extent_ = nullptr;
};

// Where the chunks of one fed sentence are. The residency's own; others hold it, while they hold
// the sentence, so that they need not look it up for every lease.
struct ResidentSentence {
  enum class Asked : uint8_t { kNo, kYes, kUrgent };
  struct Chunk {
    std::unique_ptr<Extent> extent;
    Asked asked = Asked::kNo;
    uint64_t ahead_ns = 0;  // when read-ahead last told the loop; 0: not since it was here
  };
  struct Shown {
    FeedMap* map = nullptr;
    uint32_t sentence_index = 0;
  };
  uint32_t feeds = 0;
  uint32_t uses = 0;  // leases on current extents
  std::vector<Chunk> chunks;
  std::vector<Shown> shown;  // one per context of a client that ranks
};

// What the data thread knows of the host tier: where the chunks of fed sentences are. A mirror of
// the loop's truth, kept by messages; the handshake of Withdraw keeps the two from disagreeing
// about bytes that somebody reads.
//
// Thread  data thread. Must outlive its leases.
class Residency {
 public:
  Residency() = default;
  ~Residency();
  Residency(const Residency&) = delete;
  Residency& operator=(const Residency&) = delete;

  // A feed holds the sentence. Chunks it brings are taken where none is known.
  void retain(SentenceUid uid, const std::vector<HostChunk>& chunks);
  void release(SentenceUid uid);
  // Requires: retained. Valid until release().
  ResidentSentence& sentence(SentenceUid uid) { return sentences_.at(uid); }

  // From now on the map says where the chunks of the sentence are; until hide().
  // Requires: retained, and not released before hide().
  void show(SentenceUid uid, FeedMap* map, uint32_t sentence_index);
  void hide(SentenceUid uid, const FeedMap* map);
  // As what this map shows the sentence; nullopt: it does not.
  std::optional<uint32_t> shown_as(SentenceUid uid, const FeedMap* map) const;

  // False: the sentence is not fed here.
  bool arrived(const ChunkRef& chunk, uint64_t offset, Origin origin);
  void failed(const ChunkRef& chunk);
  void withdraw(const ChunkRef& chunk);
  // Answers that are due since the last call, in the order they became due.
  std::vector<ChunkRef> take_withdrawn() { return std::exchange(withdrawn_, {}); }
  // Withdrawn, and still read by somebody.
  bool withdrawals_wait() const { return !detached_.empty(); }

  // Empty: not in host memory.
  ExtentLease lease(ResidentSentence& sentence, uint32_t chunk);
  ExtentLease lease(const ChunkRef& chunk);
  // Before many leases: asks the memory for one step of the way to each of these chunks, call after
  // call; a lease follows pointers that ranking has driven out of the caches.
  enum class Way : uint8_t { kSentence, kChunk, kExtent };
  static void warm(const ResidentSentence& sentence, uint32_t chunk, Way way);
  // One more on what `held` holds, also while it is being withdrawn. Only for who holds it anyway:
  // its memory is not given back before that one lets go, so waiting for the chunk would be for
  // ever.
  ExtentLease lease_again(const ExtentLease& held);
  // What came from NVMe was read once: from now on it counts as a host hit.
  void settle(const ChunkRef& chunk);

  // True if the loop has to be told: not asked before, or not as urgently.
  bool ask(const ChunkRef& chunk, bool urgent);

  // Before it is asked for: true if the loop is to be told, that is not within `again_ns`. There is
  // no answer but, perhaps, the chunk.
  bool read_ahead(const ChunkRef& chunk, uint64_t now_ns, uint64_t again_ns);
  bool present(const ChunkRef& chunk) const;
  uint64_t absent_chunks() const { return absent_; }  // of fed sentences
  // What became of chunks that were read ahead.
  struct AheadCounts {
    uint64_t used = 0;    // there when they were wanted
    uint64_t late = 0;    // wanted while they were on their way
    uint64_t wasted = 0;  // withdrawn or forgotten, unread
  };
  const AheadCounts& ahead_counts() const { return ahead_counts_; }

  size_t sentence_count() const { return sentences_.size(); }

 private:
  friend class ExtentLease;
  using Asked = ResidentSentence::Asked;
  using Chunk = ResidentSentence::Chunk;
  using Shown = ResidentSentence::Shown;

  Chunk* find(const ChunkRef& chunk);
  void gone(Chunk& place);  // its extent is about to be let go
  void let_go(Extent* extent);
  void forget_if_unused(SentenceUid uid);

  std::unordered_map<SentenceUid, ResidentSentence> sentences_;
  std::vector<std::unique_ptr<Extent>> detached_;  // withdrawn and in use; few
  std::vector<ChunkRef> withdrawn_;
  uint64_t absent_ = 0;
  AheadCounts ahead_counts_;
};

}  // namespace skv
