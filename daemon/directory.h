#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "daemon/keyed_hash.h"
#include "daemon/model.h"
#include "ipc/types/ids.h"
#include "tiers/body_store.h"

namespace skv {

enum class SentenceState : uint8_t {
  kReserved = 0,  // a put by `owner` is under way: nobody may read it
  kWaiting = 1,   // complete, but no stored path leads to its start yet: not found by match
  kStored = 2,    // reachable from a root by stored sentences
  kRemoved = 3,   // left the directory; kept by placement until the last lease is gone
};

struct Boundary;

// An edge of the directory: one sentence of one space, with what placement keeps about it.
// Owned by the Directory until removed, then by Placement. Pointers stay valid until remove();
// keep the uid across callbacks.
struct Sentence {
  SentenceUid uid{};
  SpaceId space{};
  SessionId owner{};  // of kReserved and kWaiting: who is putting it
  SentenceState state = SentenceState::kReserved;
  IndexDescriptor index;  // of `vectors`
  uint8_t frequency = 0;  // S3-FIFO: touches since it was last passed over, 0..3
  bool main_queue = false;
  bool on_nvme = false;          // the whole body is in the NVMe store
  bool nvme_write = false;       // a write of it to NVMe is in flight
  bool vectors_on_nvme = false;  // and its vectors with it
  uint32_t leases = 0;           // windows, loads in place, pins: not evicted from the last tier
  uint32_t feeds = 0;            // the data thread knows it: residency changes are told
  uint32_t first_position = 0;
  uint32_t vectors_bytes = 0;  // 0: it has none
  Digest key;
  Boundary* start = nullptr;
  Boundary* end = nullptr;
  std::shared_ptr<const BodyShape> shape;
  VectorsBlob vectors;               // may be null while on_nvme; read back when needed
  std::vector<ChunkSum> chunk_sums;  // by chunk; empty once on_nvme (the record keeps them)
  uint64_t order = 0;                // place in its queue; lower goes first
  // Intrusive edges of the graph.
  Sentence* next_in = nullptr;
  Sentence* next_out = nullptr;
  Sentence* previous_out = nullptr;

  uint32_t token_count() const { return shape->token_count; }
  uint32_t end_position() const { return first_position + shape->token_count; }
};

// A node of the directory: a prefix of tokens, at a block edge, of one space and fingerprint.
struct Boundary {
  Digest key;     // boundary_key
  Digest prefix;  // P(e); all zero while no sentence ends here
  uint32_t position = 0;
  uint32_t stored_in = 0;   // stored sentences that end here
  uint32_t stored_out = 0;  // stored sentences that start here
  uint32_t open_out = 0;    // reserved and waiting sentences that start here
  Sentence* first_in = nullptr;
  Sentence* first_out = nullptr;

  bool is_root() const { return position == 0; }
  bool reachable() const { return is_root() || stored_in > 0; }
};

// Who wants to know what became visible or went away (windows are fed by it). Called at the end of
// the call that caused it, of stored sentences only. A removed one has no place in the graph any
// more (start and end are null). Do not change the directory from here.
class DirectoryListener {
 public:
  virtual ~DirectoryListener() = default;
  virtual void sentence_stored(const Sentence& sentence) = 0;
  virtual void sentence_removed(const Sentence& sentence) = 0;
};

// The graph of all sentences: nodes are boundaries, edges are sentences.
//
// Sharing does not depend on where an engine puts sentence ends: a sentence is found by the prefix
// that it ends and the position where it starts, and any chain of stored edges that spells the
// tokens of a context covers it. Every stored sentence is reachable from a root by stored
// sentences; what is committed before its path is there waits (kWaiting) and becomes stored with
// it.
//
// Shape   a node has at most 64 / block_tokens edges in; edges out are unlimited.
// Units   positions and counts in tokens; spans in blocks.
// Thread  loop.
// Owns    its sentences and nodes. remove() hands the sentence to the caller.
// Errors  none: unknown keys are outcomes.
class Directory {
 public:
  explicit Directory(uint64_t hash_seed);
  ~Directory();
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;

  void set_listener(DirectoryListener* listener) { listener_ = listener; }

  // One object per distinct shape. `chunk_bytes` as in BodyShape.
  std::shared_ptr<const BodyShape> shape(const BodyShape& shape);
  std::shared_ptr<const BodyShape> shape(const Model& model, uint32_t block_count);

  struct NewSentence {
    SpaceId space{};
    SessionId owner{};
    IndexDescriptor index;
    uint32_t first_position = 0;
    Digest key;
    Digest start_key;  // boundary keys
    Digest end_key;
    Digest end_prefix;  // P(end)
    std::shared_ptr<const BodyShape> shape;
  };
  // A new sentence in state kReserved, or null if the key is taken (find() tells by whom).
  Sentence* reserve(const NewSentence& sentence);

  // kReserved -> kStored, or kWaiting if its start is not reachable. Waiting sentences behind it
  // become stored with it; the listener hears of each, nearest first.
  void commit(Sentence& sentence);

  // Takes the sentence out, in any state. Stored sentences that lose their last path to a root
  // come out with it (only after corruption; eviction takes leaves). First is the one asked for.
  std::vector<std::unique_ptr<Sentence>> remove(SentenceUid uid);

  // Null if there is none. Of any state.
  Sentence* find(const Digest& key) const;
  Sentence* find(SentenceUid uid) const;

  // True if its going leaves every other stored sentence reachable and strands no open put.
  static bool removable(const Sentence& sentence);

  // A context's prefix as match() wants it. boundary_keys[i] is that of the edge after i blocks.
  struct Prefix {
    SessionId session{};
    uint32_t block_tokens = 0;
    std::span<const Digest> boundary_keys;  // [0] is the root
  };
  struct Cover {
    std::vector<SentenceUid> path;  // stored sentences from the root on
    uint32_t hit_tokens = 0;
    uint32_t pending_tokens = 0;  // the cover if what other sessions reserved gets committed
  };
  // Longest cover by stored sentences; ties by the longest first edge, then the second, and so on.
  Cover match(const Prefix& prefix) const;

  size_t sentence_count() const { return by_uid_.size(); }
  size_t boundary_count() const { return boundaries_.size(); }
  // Every sentence, in no order; `visit` must not add or remove.
  template <typename Visitor>
  void for_each(Visitor&& visit) const {
    for (const auto& [uid, sentence] : by_uid_) visit(*sentence);
  }

  // Sentences that placement must look at again because a neighbour came or went: they may have
  // become removable or ceased to be.
  class LeafWatcher {
   public:
    virtual ~LeafWatcher() = default;
    virtual void removable_changed(Sentence& sentence) = 0;
  };
  void set_leaf_watcher(LeafWatcher* watcher) { leaf_watcher_ = watcher; }

 private:
  Boundary& boundary(const Digest& key, uint32_t position);
  Boundary* find_boundary(const Digest& key) const;
  void link(Sentence& sentence);
  void unlink(Sentence& sentence);
  void become_stored(Sentence& sentence);
  std::unique_ptr<Sentence> take_out(Sentence& sentence);
  void tell_edges_into(const Boundary& boundary);
  void drop_if_unused(Boundary* boundary);

  KeyedDigestHash hash_;
  uint64_t next_uid_ = 1;
  DirectoryListener* listener_ = nullptr;
  LeafWatcher* leaf_watcher_ = nullptr;
  std::unordered_map<SentenceUid, std::unique_ptr<Sentence>> by_uid_;
  std::unordered_map<Digest, Sentence*, KeyedDigestHash> by_key_;
  std::unordered_map<Digest, std::unique_ptr<Boundary>, KeyedDigestHash> boundaries_;
  std::unordered_map<Digest, std::vector<std::shared_ptr<const BodyShape>>, KeyedDigestHash>
      shapes_;  // by fingerprint
};

}  // namespace skv
