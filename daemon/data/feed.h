#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "daemon/data/data_messages.h"
#include "daemon/data/residency.h"
#include "kernels/rank_pages.h"

namespace skv {

// The stored sentences of one context, as windows rank and read them. Grows at its end; what is
// there never moves.
//
// Thread  data thread.
// Owns    its vector pages, and a hold on each sentence in the residency.
class Feed {
 public:
  Feed(OpenFeed options, Residency& residency);
  ~Feed();
  Feed(const Feed&) = delete;
  Feed& operator=(const Feed&) = delete;

  FeedId id() const { return id_; }
  SpaceId space() const { return space_; }
  const DataModelPtr& model() const { return model_; }
  const BodyLayout& layout() const { return model_->layout; }

  // Queues sentences; a step ranks them in, one at a time, since laying out one sentence of a large
  // model takes a good part of a slice. Requires: spans continue what was queued before.
  void queue(std::vector<FeedSentence> sentences);
  bool pending() const { return !pending_.empty(); }
  void append_one();

  uint32_t queued_count() const {  // sentences, pending ones included
    return sentence_count() + static_cast<uint32_t>(pending_.size());
  }
  uint32_t sentence_count() const { return pages_.sentence_count(); }
  uint32_t end_block() const { return pages_.end_block(); }
  SentenceUid uid(uint32_t sentence_index) const { return uids_[sentence_index]; }
  SentenceSpan span(uint32_t sentence_index) const { return pages_.sentence(sentence_index); }
  // As it was when it had `sentence_count` sentences, whatever was appended since.
  RankView view(uint32_t layer, uint32_t head, uint32_t sentence_count) const;

  // Marks a sentence as read; the marks are taken all at once.
  void touch(uint32_t sentence_index);
  std::vector<SentenceUid> take_touched();
  bool has_touched() const { return !touched_.empty(); }

 private:
  FeedId id_;
  SpaceId space_;
  DataModelPtr model_;
  Residency& residency_;
  VectorPages pages_;
  std::vector<SentenceUid> uids_;
  std::deque<FeedSentence> pending_;
  std::vector<uint32_t> touched_;    // indices
  std::vector<uint8_t> is_touched_;  // per sentence
};

}  // namespace skv
