#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "daemon/data/data_messages.h"
#include "daemon/data/feed_map.h"
#include "daemon/data/residency.h"
#include "daemon/data/vector_arena.h"
#include "kernels/rank_pages.h"

namespace skv {

// The stored sentences of one context, as windows rank and read them. Grows at its end; what is
// there never moves. Full pages of vectors are shared with the feeds of other contexts that go over
// the same sentences. Where the arena has no room for a page it ends: it covers what it has.
//
// Thread  data thread.
// Owns    its vector pages, a hold on each sentence in the residency, and what it shows of both to
//         clients that rank for themselves.
class Feed {
 public:
  // `arena` null: there is no memory for vectors, and the feed covers nothing.
  Feed(OpenFeed options, Residency& residency, std::shared_ptr<VectorArena> arena);
  ~Feed();
  Feed(const Feed&) = delete;
  Feed& operator=(const Feed&) = delete;

  FeedId id() const { return id_; }
  SpaceId space() const { return space_; }
  const DataModelPtr& model() const { return model_; }
  const BodyLayout& layout() const { return model_->layout; }

  // Queues sentences; a step ranks them in, one at a time (or a page that is there already), since
  // laying out one sentence of a large model takes a good part of a slice.
  // Requires: spans continue what was queued before.
  void queue(std::vector<FeedSentence> sentences);
  bool pending() const { return !pending_.empty(); }
  void append_next();

  // Shows the feed to clients, as it is and as it grows. Once.
  void share(std::shared_ptr<FeedMap> map);
  const std::shared_ptr<FeedMap>& map() const { return map_; }  // null: not shared
  const std::shared_ptr<VectorArena>& arena() const { return arena_; }

  uint32_t queued_count() const { return queued_count_; }  // sentences ever
  uint32_t sentence_count() const { return pages_.sentence_count(); }
  uint32_t end_block() const { return pages_.end_block(); }
  SentenceUid uid(uint32_t sentence_index) const { return uids_[sentence_index]; }
  ResidentSentence& resident(uint32_t sentence_index) const { return *residents_[sentence_index]; }
  SentenceSpan span(uint32_t sentence_index) const { return pages_.sentence(sentence_index); }
  // As it was when it had `sentence_count` sentences, whatever was appended since.
  RankView view(uint32_t layer, uint32_t head, uint32_t sentence_count) const;

  // Marks a sentence as read; the marks are taken all at once.
  void touch(uint32_t sentence_index);
  std::vector<SentenceUid> take_touched();
  bool has_touched() const { return !touched_.empty(); }

 private:
  bool adopt_page();
  void appended();
  void show(uint32_t sentence_index);
  void end();

  FeedId id_;
  SpaceId space_;
  DataModelPtr model_;
  Residency& residency_;
  std::shared_ptr<VectorArena> arena_;
  IndexDescriptor index_;
  VectorPages pages_;
  std::shared_ptr<FeedMap> map_;
  bool ended_ = false;
  uint32_t queued_count_ = 0;
  std::vector<SentenceUid> uids_;
  std::vector<ResidentSentence*> residents_;
  std::deque<FeedSentence> pending_;
  std::vector<uint32_t> touched_;    // indices
  std::vector<uint8_t> is_touched_;  // per sentence
};

}  // namespace skv
