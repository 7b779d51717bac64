#include "daemon/data/feed.h"

#include <algorithm>

#include "ipc/types/check.h"

namespace skv {

static_assert(kPageSentences == kFeedPageSentences);

Feed::Feed(OpenFeed options, Residency& residency, std::shared_ptr<VectorArena> arena)
    : id_(options.feed),
      space_(options.space),
      model_(std::move(options.model)),
      residency_(residency),
      arena_(std::move(arena)),
      index_(options.index),
      pages_(
          std::make_shared<const RankPageLayout>(VectorsLayout(model_->descriptor, options.index)),
          arena_),
      ended_(arena_ == nullptr) {}

Feed::~Feed() {
  for (const SentenceUid uid : uids_) {
    if (map_) residency_.hide(uid, map_.get());
    residency_.release(uid);
  }
  for (const FeedSentence& sentence : pending_) residency_.release(sentence.uid);
}

void Feed::queue(std::vector<FeedSentence> sentences) {
  queued_count_ += static_cast<uint32_t>(sentences.size());
  if (ended_) return;
  for (FeedSentence& sentence : sentences) {
    SKV_CHECK(sentence.chunks.size() == layout().chunk_count(),
              "a fed sentence has all its chunks");
    SKV_CHECK(sentence.vectors != nullptr, "a fed sentence has vectors");
    // At once, not when it is ranked in: what arrives for it meanwhile must find it.
    residency_.retain(sentence.uid, sentence.chunks);
    pending_.push_back(std::move(sentence));
  }
}

void Feed::append_next() {
  if (adopt_page()) return;
  const FeedSentence& sentence = pending_.front();
  SKV_CHECK(sentence.span.first_block == pages_.end_block(), "a feed has no holes");
  if (!pages_.append(sentence.span.block_count, *sentence.vectors)) return end();
  appended();
  if (sentence_count() % kPageSentences == 0) {
    VectorArena::PageKey key{index_, {}};
    std::copy(uids_.end() - kPageSentences, uids_.end(), key.sentences.begin());
    arena_->share(key, pages_.full_page(pages_.full_page_count() - 1));
  }
  if (map_) map_->publish(sentence_count());
}

// The next page, if another feed has it and all of its sentences are pending here.
bool Feed::adopt_page() {
  if (sentence_count() % kPageSentences != 0 || pending_.size() < kPageSentences) return false;
  VectorArena::PageKey key{index_, {}};
  for (uint32_t i = 0; i < kPageSentences; ++i) key.sentences[i] = pending_[i].uid;
  std::shared_ptr<const VectorPage> page = arena_->find(key);
  if (page == nullptr) return false;
  pages_.adopt(std::move(page));
  for (uint32_t i = 0; i < kPageSentences; ++i) appended();
  if (map_) map_->publish(sentence_count());
  return true;
}

// The first pending sentence is in the pages now.
void Feed::appended() {
  const FeedSentence& sentence = pending_.front();
  const auto index = static_cast<uint32_t>(uids_.size());
  SKV_CHECK(sentence.span.first_block == pages_.sentence(index).first_block &&
                sentence.span.block_count == pages_.sentence(index).block_count,
            "a shared page has the sentences it is known by");
  uids_.push_back(sentence.uid);
  residents_.push_back(&residency_.sentence(sentence.uid));
  is_touched_.push_back(0);
  pending_.pop_front();
  if (map_) show(index);
}

void Feed::end() {
  ended_ = true;
  for (const FeedSentence& sentence : pending_) residency_.release(sentence.uid);
  pending_.clear();
  if (map_) map_->end();
}

void Feed::share(std::shared_ptr<FeedMap> map) {
  SKV_CHECK(map_ == nullptr, "a feed is shared once");
  map_ = std::move(map);
  map_->set_page_bytes(pages_.layout().page_bytes());
  for (uint32_t i = 0; i < sentence_count(); ++i) show(i);
  if (ended_) map_->end();
  map_->publish(sentence_count());
}

void Feed::show(uint32_t sentence_index) {
  if (sentence_index % kPageSentences == 0) {
    const uint32_t page = sentence_index / kPageSentences;
    map_->set_page(page, arena_->offset_of(pages_.page(page)));
  }
  const RankSentence& ranked = pages_.ranked(sentence_index);
  map_->set_sentence(sentence_index, {ranked.first_block, ranked.block_count, ranked.fine_unit});
  residency_.show(uids_[sentence_index], map_.get(), sentence_index);
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
