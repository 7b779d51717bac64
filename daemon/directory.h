#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "daemon/index_table.h"
#include "daemon/keyed_hash.h"
#include "daemon/model.h"
#include "daemon/stable_pool.h"
#include "ipc/layout/shared_directory.h"
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

// An edge of the directory: one sentence of one space, with what placement keeps about it while it
// is on NVMe alone (128 bytes; what host memory holds of it is placement's Body).
// Owned by the Directory until removed, then by Placement. Pointers stay valid until then; keep the
// uid across callbacks. Links are indices of the Directory's pool, 0 is none.
struct Sentence {
  SentenceUid uid{};
  uint64_t order = 0;  // place in its queue; lower goes first
  Digest key;
  Boundary* start = nullptr;
  Boundary* end = nullptr;
  const BodyShape* shape = nullptr;  // the Directory keeps it
  VectorsBlob vectors;               // may be null while on_nvme; read back when needed
  SpaceId space{};
  SessionId owner{};  // of kReserved and kWaiting: who is putting it
  uint32_t first_position = 0;
  uint32_t vectors_bytes = 0;  // 0: it has none
  uint32_t leases = 0;         // windows, loads in place, pins: not evicted from the last tier
  uint32_t feeds = 0;          // the data thread knows it: residency changes are told
  uint32_t next_in = 0;
  uint32_t next_out = 0;
  uint32_t previous_out = 0;
  IndexDescriptor index;  // of `vectors`
  SentenceState state = SentenceState::kReserved;
  uint8_t frequency : 2 = 0;  // S3-FIFO: touches since it was last passed over, 0..3
  bool main_queue : 1 = false;
  bool on_nvme : 1 = false;          // the whole body is in the NVMe store
  bool nvme_write : 1 = false;       // a write of it to NVMe is in flight
  bool vectors_on_nvme : 1 = false;  // and its vectors with it
  bool in_host : 1 = false;          // the whole body is in host memory

  uint32_t token_count() const { return shape->token_count; }
  uint32_t end_position() const { return first_position + shape->token_count; }
};

// A node of the directory: a prefix of tokens, at a block edge, of one space and fingerprint.
struct Boundary {
  Digest key;  // boundary_key
  uint32_t position = 0;
  uint32_t stored_in = 0;   // stored sentences that end here
  uint32_t stored_out = 0;  // stored sentences that start here
  uint32_t open_out = 0;    // reserved and waiting sentences that start here
  uint32_t first_in = 0;
  uint32_t first_out = 0;
  uint32_t self = 0;  // its own index

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
// Shape   a node has at most 64 / block_tokens edges in; edges out are unlimited. Sentences and
//         nodes lie in pools and name each other by index; a digest is stored once, with what it
//         names. Some 210 bytes per sentence with its boundary (tests/bench/bench_directory.cc).
// Units   positions and counts in tokens; spans in blocks.
// Thread  loop.
// Owns    its sentences and nodes. remove() hands the sentence to the caller, who lets go of it
//         before the Directory dies.
// Errors  none: unknown keys are outcomes.
class Directory {
 public:
  explicit Directory(uint64_t hash_seed);
  ~Directory();
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;

  // All of them hear of everything, in the order they were added.
  void add_listener(DirectoryListener* listener) { listeners_.push_back(listener); }

  // One object per distinct shape, kept as long as the Directory. `chunk_bytes` as in BodyShape.
  const BodyShape* shape(const BodyShape& shape);
  const BodyShape* shape(const Model& model, uint32_t block_count);

  struct NewSentence {
    SpaceId space{};
    SessionId owner{};
    IndexDescriptor index;
    uint32_t first_position = 0;
    Digest key;
    Digest start_key;  // boundary keys
    Digest end_key;
    Digest end_prefix;  // P(end): for the record, the graph does not need it
    const BodyShape* shape = nullptr;
  };
  // A new sentence in state kReserved, or null if the key is taken (find() tells by whom).
  Sentence* reserve(const NewSentence& sentence);

  // kReserved -> kStored, or kWaiting if its start is not reachable. Waiting sentences behind it
  // become stored with it; the listener hears of each, nearest first.
  void commit(Sentence& sentence);

  // Takes the sentence out, in any state. Stored sentences that lose their last path to a root
  // come out with it (only after corruption; eviction takes leaves). First is the one asked for.
  struct GiveBack {
    Directory* directory = nullptr;
    void operator()(Sentence* sentence) const { directory->give_back(*sentence); }
  };
  using Removed = std::unique_ptr<Sentence, GiveBack>;
  std::vector<Removed> remove(SentenceUid uid);

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

  size_t sentence_count() const { return by_key_.size(); }
  size_t boundary_count() const { return by_boundary_key_.size(); }
  // Every sentence, in no order; `visit` must not add or remove.
  template <typename Visitor>
  void for_each(Visitor&& visit) const {
    for (uint32_t index = 1; index < sentences_.end(); ++index) {
      if (is_in(sentences_[index])) visit(sentences_[index]);
    }
  }

  // Sentences that placement must look at again because a neighbour came or went: they may have
  // become removable or ceased to be.
  class LeafWatcher {
   public:
    virtual ~LeafWatcher() = default;
    virtual void removable_changed(Sentence& sentence) = 0;
  };
  void set_leaf_watcher(LeafWatcher* watcher) { leaf_watcher_ = watcher; }

  // Keeps a picture of the edges for readers elsewhere. Called whenever the edges into a boundary
  // changed, or where their bodies are. Do not change the directory from here.
  class EdgeMirror {
   public:
    virtual ~EdgeMirror() = default;
    virtual void edges_changed(SpaceId space,
                               const Digest& boundary_key,
                               const BoundaryEdges& edges) = 0;
  };
  void set_edge_mirror(EdgeMirror* mirror) { edge_mirror_ = mirror; }
  // sentence.in_host was changed.
  void residency_changed(const Sentence& sentence) { mirror_edges(sentence); }

 private:
  template <typename T>
  struct KeyTraits {
    const StablePool<T>* pool;
    KeyedDigestHash hash_key;
    size_t hash(uint32_t index) const { return hash_key((*pool)[index].key); }
    bool is(uint32_t index, const Digest& key) const { return (*pool)[index].key == key; }
  };

  // A uid is generation << 32 | index; the generation counts the sentences that had this place.
  static uint32_t index_of(const Sentence& sentence) {
    return static_cast<uint32_t>(raw(sentence.uid));
  }
  static bool is_in(const Sentence& sentence) { return sentence.start != nullptr; }
  Sentence* at(uint32_t index) const { return index == 0 ? nullptr : &sentences_[index]; }

  Boundary& boundary(const Digest& key, uint32_t position);
  Boundary* find_boundary(const Digest& key) const;
  void link(Sentence& sentence);
  void unlink(Sentence& sentence);
  void become_stored(Sentence& sentence);
  Removed take_out(Sentence& sentence);
  void give_back(Sentence& sentence);
  void tell_edges_into(const Boundary& boundary);
  void mirror_edges(const Sentence& sentence) const;
  void drop_if_unused(Boundary* boundary);

  KeyedDigestHash hash_;
  std::vector<DirectoryListener*> listeners_;
  LeafWatcher* leaf_watcher_ = nullptr;
  EdgeMirror* edge_mirror_ = nullptr;
  StablePool<Sentence> sentences_;
  StablePool<Boundary> boundaries_;
  IndexTable<KeyTraits<Sentence>> by_key_;
  IndexTable<KeyTraits<Boundary>> by_boundary_key_;
  std::unordered_map<Digest, std::vector<std::unique_ptr<const BodyShape>>, KeyedDigestHash>
      shapes_;  // by fingerprint
};

}  // namespace skv
