#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <unordered_map>
#include <vector>

#include "daemon/awaited_keys.h"
#include "daemon/context.h"
#include "daemon/directory.h"
#include "daemon/limits.h"
#include "daemon/loop.h"
#include "daemon/placement.h"
#include "ipc/lease_map.h"

namespace skv {

// Shows clients where the chunks of their contexts lie, and tells placement which of them they
// read: leases that cost no message (docs/architecture.md "Leases without a message").
//
// One map per context that asked for one. It shows the stored sentences from the first on, whoever
// stored them, and follows the context as it grows and as sentences leave the last tier and come
// back. It outlives its context, since leases do; it ends with lease_map_close or the session.
//
// Thread  loop.
// Owns    the maps' memories.
// Limits  Limits; a map that is at one shows no more sentences, which are leased by messages then.
//         A client that never gives back, or writes rubbish, keeps at most what is shown to it.
class LeaseMaps final : public DirectoryListener, public HostReaders {
 public:
  // Of one session.
  struct Limits {
    uint32_t maps = 0;
    uint64_t bytes = 0;                                 // of bodies that its maps show
    uint32_t chunks_per_turn = kLeaseMapChunksPerTurn;  // of one map
  };
  LeaseMaps(Loop& loop, Directory& directory, const Limits& limits)
      : loop_(loop), directory_(directory), limits_(limits) {}
  void set_placement(Placement* placement) { placement_ = placement; }

  struct Opened {
    UniqueFd places;  // read-only
    UniqueFd words;
    uint64_t bytes = 0;
  };
  // Shows what is stored already, as far as one turn goes. kTooLarge: Limits::maps.
  Result<Opened> open(LeaseMapId id,
                      const std::shared_ptr<Context>& context,
                      uint32_t sentence_capacity);
  // False: it is not one of this session.
  bool close(SessionId session, LeaseMapId id);
  void session_closed(SessionId session);

  // It closed sentences.
  void context_changed(ContextId context);
  // Shows what became known. Before a reply that promises it; else it happens on the next turn of
  // the loop.
  void run_pending();

  struct Usage {
    uint32_t maps = 0;
    uint64_t bytes = 0;   // of bodies that are shown
    uint64_t leases = 0;  // ever taken in the maps that are open: the clients' word
  };
  Usage usage() const;
  Usage usage(SessionId session) const;

  // DirectoryListener
  void sentence_stored(const Sentence& sentence) override;
  void sentence_removed(const Sentence& sentence) override;
  // HostReaders
  void show(SentenceUid uid, uint32_t chunk, uint64_t host_offset) override;
  bool hide(SentenceUid uid, uint32_t chunk) override;
  bool reads(SentenceUid uid, uint32_t chunk) const override;
  bool reads(SentenceUid uid) const override;
  bool take_touched(SentenceUid uid, uint32_t chunk) override;
  void forget(SentenceUid uid) override;

 private:
  struct Map {
    LeaseMapId id{};
    std::shared_ptr<Context> context;
    std::unique_ptr<LeaseMapWriter> writer;
    std::vector<SentenceUid> uids;  // shown now, by index in the context; 0: none
    std::vector<SentenceUid> gone;  // removed ones that host memory still has
    uint32_t next = 0;              // sentences before it are shown
    Digest awaits;                  // key of the next sentence; zero: none closed yet
    bool queued = false;
    bool full = false;  // Limits::bytes keeps the next one out

    SessionId session() const { return context->session(); }
  };
  struct Place {
    Map* map = nullptr;
    uint32_t index = 0;
  };
  // A sentence in the maps.
  struct Shown {
    uint64_t bytes = 0;
    uint32_t chunk_count = 0;
    std::vector<Place> places;
  };
  // Of one session.
  struct Charge {
    std::set<Map*> maps;
    uint64_t bytes = 0;
  };

  Map* find(LeaseMapId id);
  void close(Map& map);
  void bytes_came_free(const Charge& charge);
  void queue(Map& map);
  void advance(Map& map);
  bool add(Map& map, uint32_t index, const Sentence& sentence);
  void remove(Map& map, SentenceUid uid);  // of this map

  Loop& loop_;
  Directory& directory_;
  const Limits limits_;
  Placement* placement_ = nullptr;
  std::map<LeaseMapId, std::unique_ptr<Map>> maps_;
  std::map<SessionId, Charge> charges_;
  std::unordered_multimap<ContextId, Map*> by_context_;
  std::unordered_map<SentenceUid, Shown> shown_;
  AwaitedKeys<LeaseMapId> awaited_;
  std::vector<LeaseMapId> pending_;
  bool posted_ = false;
};

}  // namespace skv
