#include "daemon/data/feed.h"

#include "ipc/types/check.h"

namespace skv {

Feed::Feed(OpenFeed options, Residency& residency)
    : id_(options.feed),
      space_(options.space),
      model_(std::move(options.model)),
      residency_(residency),
      pages_(std::make_shared<const RankPageLayout>(
          VectorsLayout(model_->descriptor, options.index))) {}

Feed::~Feed() {
  for (const SentenceUid uid : uids_) residency_.release(uid);
  for (const FeedSentence& sentence : pending_) residency_.release(sentence.uid);
}

void Feed::queue(std::vector<FeedSentence> sentences) {
  for (FeedSentence& sentence : sentences) {
    SKV_CHECK(sentence.chunks.size() == layout().chunk_count(),
              "a fed sentence has all its chunks");
    SKV_CHECK(sentence.vectors != nullptr, "a fed sentence has vectors");
    // At once, not when it is ranked in: what arrives for it meanwhile must find it.
    residency_.retain(sentence.uid, sentence.chunks);
    pending_.push_back(std::move(sentence));
  }
}

void Feed::append_one() {
  const FeedSentence& sentence = pending_.front();
  SKV_CHECK(sentence.span.first_block == pages_.end_block(), "a feed has no holes");
  pages_.append(sentence.span.block_count, *sentence.vectors);
  uids_.push_back(sentence.uid);
  is_touched_.push_back(0);
  pending_.pop_front();
}

RankView Feed::view(uint32_t layer, uint32_t head, uint32_t sentence_count) const {
  RankView view = pages_.view(layer, head);
  if (sentence_count < view.sentence_count) {
    view.sentence_count = sentence_count;
    view.end_block = sentence_count == 0 ? 0 : span(sentence_count - 1).end_block();
  }
  return view;
}

void Feed::touch(uint32_t sentence_index) {
  if (is_touched_[sentence_index] != 0) return;
  is_touched_[sentence_index] = 1;
  touched_.push_back(sentence_index);
}

std::vector<SentenceUid> Feed::take_touched() {
  std::vector<SentenceUid> uids;
  uids.reserve(touched_.size());
  for (const uint32_t index : touched_) {
    uids.push_back(uids_[index]);
    is_touched_[index] = 0;
  }
  touched_.clear();
  return uids;
}

}  // namespace skv
