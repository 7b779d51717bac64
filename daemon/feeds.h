#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "daemon/awaited_keys.h"
#include "daemon/context.h"
#include "daemon/data/data_thread.h"
#include "daemon/directory.h"
#include "daemon/loop.h"
#include "daemon/placement.h"

namespace skv {

// Keeps the data thread's picture of every context that has a window: its sentences in order, as
// far as they are stored with vectors, whoever stored them.
//
// A feed exists while its context has windows (opening, open or closing). It waits for one sentence
// key, the next of its context; when any session commits that sentence, or the context grows, it
// goes on. Vectors that are only on NVMe are read first, and the sentence follows when they came.
// Fed sentences are leased against leaving the last tier.
//
// Also carries what placement says of chunks to the data thread.
//
// Thread  loop.
// Errors  a sentence whose vectors cannot be read ends the cover of its feed; the windows say so by
//         covered_to.
class Feeds final : public DirectoryListener, public ResidencyListener {
 public:
  Feeds(Loop& loop, Directory& directory, DataPort& data);
  void set_placement(Placement* placement) { placement_ = placement; }

  struct WindowRequest {
    std::shared_ptr<Context> context;
    DataModelPtr model;
    OpenWindow window;
    uint32_t sentences_max = 0;  // that the context can come to have
  };
  // Feeds what is stored already, then posts window.
  void open_window(WindowRequest request);
  // WindowClosed, or OpenWindow failed: the context's feed goes with its last window.
  void window_closed(ContextId context, WindowId window);
  // SessionClosed: the data thread forgot all of them.
  void session_closed(SessionId session);
  // Sentence leases of the session were all returned (Placement::end_session): none is returned
  // again.
  void leases_ended(SessionId session);

  // It closed sentences, or adopted some.
  void context_changed(ContextId context);
  // Vectors were put or derived for a stored sentence.
  void vectors_came(const Digest& key);
  // Tells the data thread of all that became known. Before a reply that promises it; else it
  // happens on the next turn of the loop.
  void run_pending();

  // DirectoryListener
  void sentence_stored(const Sentence& sentence) override;
  void sentence_removed(const Sentence& sentence) override;
  // ResidencyListener
  void chunk_arrived(SentenceUid uid, uint32_t chunk, uint64_t offset, Origin origin) override;
  void chunk_failed(SentenceUid uid, uint32_t chunk, ErrorCode code) override;
  void withdraw(SentenceUid uid, uint32_t chunk) override;

  size_t count() const { return feeds_.size(); }
  size_t count(SessionId session) const;
  // Sentences that a context's windows cover.
  uint32_t covered(ContextId context) const;

 private:
  struct Feed {
    FeedId id{};
    SessionId session{};
    std::shared_ptr<Context> context;
    std::vector<SentenceUid> fed;
    std::set<WindowId> windows;
    std::shared_ptr<FeedMap> map;     // null: no client has asked to rank it
    std::vector<OpenWindow> opening;  // posted once all that is stored was fed
    Digest awaits;                    // key of the next sentence; zero: none closed yet
    std::unordered_map<SentenceUid, VectorsBlob> read;  // vectors that came and were not fed yet
    bool queued = false;
    bool leased = true;                          // its sentence leases are this session's still
    uint32_t reading = 0;                        // vectors on their way
    std::unordered_set<SentenceUid> unreadable;  // vectors that were asked for and did not come
  };

  void queue(Feed& feed);
  void advance(Feed& feed);
  bool read_vectors(Feed& feed, uint32_t first);
  void close(Feed& feed);
  Feed* find(ContextId context);

  Loop& loop_;
  Directory& directory_;
  DataPort& data_;
  Placement* placement_ = nullptr;
  std::map<ContextId, std::unique_ptr<Feed>> feeds_;
  AwaitedKeys<ContextId> awaited_;
  std::vector<ContextId> pending_;
  bool posted_ = false;
};

}  // namespace skv
