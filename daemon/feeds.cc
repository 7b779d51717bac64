#include "daemon/feeds.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

namespace skv {
namespace {

// Vectors of at most this many sentences are on their way to one feed: 64 x some 20 KiB.
constexpr uint32_t kVectorReadsMax = 64;
// Sentences per command, so that one command stays small.
constexpr uint32_t kFeedBatch = 256;

}  // namespace

Feeds::Feeds(Loop& loop, Directory& directory, DataPort& data)
    : loop_(loop), directory_(directory), data_(data) {}

Feeds::Feed* Feeds::find(ContextId context) {
  const auto found = feeds_.find(context);
  return found == feeds_.end() ? nullptr : found->second.get();
}

void Feeds::open_window(WindowRequest request) {
  const uint32_t chunk_count = request.model->layout.chunk_count();
  Feed* feed = find(request.context->id());
  if (feed == nullptr) {
    auto made = std::make_unique<Feed>();
    made->id = FeedId{raw(request.context->id())};
    made->session = request.context->session();
    made->context = request.context;
    feed = made.get();
    feeds_.emplace(request.context->id(), std::move(made));
    data_.post(OpenFeed{feed->id, request.context->space(), std::move(request.model),
                        request.context->index()});
  }
  if (request.window.rank_in != RankIn::kDaemon && feed->map == nullptr) {
    Result<std::shared_ptr<FeedMap>> map = FeedMap::create(request.sentences_max, chunk_count);
    if (map.ok()) {
      feed->map = std::move(map).value();
      feed->map->promise(static_cast<uint32_t>(feed->fed.size()));
      data_.post(ShareFeed{feed->id, feed->map});
    } else {
      spdlog::warn("a feed cannot be shared: {}", map.error().message);
    }
  }
  request.window.feed = feed->id;
  feed->windows.insert(request.window.window);
  feed->opening.push_back(request.window);
  advance(*feed);
}

void Feeds::window_closed(ContextId context, WindowId window) {
  if (Feed* feed = find(context); feed != nullptr) {
    feed->windows.erase(window);
    if (feed->windows.empty()) {
      data_.post(CloseFeed{feed->id});
      close(*feed);
    }
  }
}

void Feeds::session_closed(SessionId session) {
  std::vector<Feed*> closing;
  for (auto& [context, feed] : feeds_) {
    if (feed->session == session) {
      closing.push_back(feed.get());
    }
  }
  for (Feed* feed : closing) {
    data_.post(CloseFeed{feed->id});
    close(*feed);
  }
}

void Feeds::leases_ended(SessionId session) {
  for (auto& [context, feed] : feeds_) {
    if (feed->session == session) {
      feed->leased = false;
      feed->opening.clear();  // nothing of it may reach the data thread after CloseSession
    }
  }
}

void Feeds::close(Feed& feed) {
  awaited_.await(feed.context->id(), feed.awaits, Digest{});
  for (const SentenceUid uid : feed.fed) {
    placement_->remove_feed(uid);
    if (feed.leased) {
      placement_->release_sentence(feed.session, uid);
    }
  }
  feeds_.erase(feed.context->id());
}

void Feeds::queue(Feed& feed) {
  if (feed.queued) {
    return;
  }
  feed.queued = true;
  pending_.push_back(feed.context->id());
  if (!posted_) {
    posted_ = true;
    loop_.post([this] {
      posted_ = false;
      run_pending();
    });
  }
}

void Feeds::run_pending() {
  while (!pending_.empty()) {
    std::vector<ContextId> pending;
    pending.swap(pending_);
    for (const ContextId context : pending) {
      if (Feed* feed = find(context); feed != nullptr) {
        feed->queued = false;
        advance(*feed);
      }
    }
  }
}

void Feeds::context_changed(ContextId context) {
  if (Feed* feed = find(context); feed != nullptr) {
    queue(*feed);
  }
}

void Feeds::vectors_came(const Digest& key) {
  awaited_.each(key, [this](ContextId context) {
    if (Feed* feed = find(context); feed != nullptr) {
      queue(*feed);
    }
  });
}

void Feeds::sentence_stored(const Sentence& sentence) { vectors_came(sentence.key); }

// Fed sentences are leased, so only corruption takes one: its chunks fail and count as misses.
void Feeds::sentence_removed(const Sentence&) {}

void Feeds::chunk_arrived(SentenceUid uid, uint32_t chunk, uint64_t offset, Origin origin) {
  data_.post(ChunkArrived{{uid, chunk}, offset, origin});
}

void Feeds::chunk_failed(SentenceUid uid, uint32_t chunk, ErrorCode) {
  data_.post(ChunkFailed{{uid, chunk}});
}

void Feeds::withdraw(SentenceUid uid, uint32_t chunk) { data_.post(Withdraw{{uid, chunk}}); }

void Feeds::advance(Feed& feed) {
  if (feed.reading > 0 || !feed.leased) {
    return;  // goes on when they came; never, once the session ends
  }
  const Context& context = *feed.context;
  FeedSentences batch{feed.id, static_cast<uint32_t>(feed.fed.size()), {}};
  // The batch says where chunks are. Placement may take one back in any call that ends a turn of
  // its own, so warming waits until the batch is posted: the withdrawal must come after it.
  const auto flush = [&] {
    if (batch.sentences.empty()) {
      return;
    }
    std::vector<SentenceUid> cold;
    for (const FeedSentence& sentence : batch.sentences) {
      cold.push_back(sentence.uid);
    }
    if (feed.map) {
      feed.map->promise(static_cast<uint32_t>(feed.fed.size()));
    }
    data_.post(std::move(batch));
    batch = FeedSentences{feed.id, static_cast<uint32_t>(feed.fed.size()), {}};
    for (const SentenceUid uid : cold) {
      placement_->warm(uid);
    }
  };
  for (;;) {
    const auto next = static_cast<uint32_t>(feed.fed.size());
    if (next >= context.sentence_count()) {
      awaited_.await(context.id(), feed.awaits, Digest{});
      break;
    }
    const Sentence* sentence = context.find(directory_, next);
    if (sentence == nullptr || sentence->state != SentenceState::kStored ||
        sentence->vectors_bytes == 0 || !(sentence->index == context.index())) {
      awaited_.await(context.id(), feed.awaits, context.sentence(next).key);
      break;
    }
    VectorsBlob vectors = sentence->vectors;
    if (const auto read = feed.read.find(sentence->uid); read != feed.read.end()) {
      vectors = std::move(read->second);
      feed.read.erase(read);
    }
    if (vectors == nullptr) {
      flush();
      if (read_vectors(feed, next)) {
        return;  // its callbacks go on
      }
      awaited_.await(context.id(), feed.awaits, context.sentence(next).key);
      break;
    }
    const SentenceUid uid = sentence->uid;
    if (!placement_->lease_sentence(feed.session, uid)) {
      break;
    }
    FeedSentence fed{uid, context.sentence(next).span, std::move(vectors),
                     placement_->host_chunks(uid)};
    placement_->add_feed(uid);
    feed.fed.push_back(uid);
    batch.sentences.push_back(std::move(fed));
    if (batch.sentences.size() >= kFeedBatch) {
      flush();
    }
  }
  flush();
  std::vector<OpenWindow> opening;
  opening.swap(feed.opening);
  for (OpenWindow& window : opening) {
    data_.post(window);
  }
}

// Asks for the vectors of the next sentences that have them on NVMe only; those in memory may go
// there meanwhile, and are asked for in their turn. False: that was tried for the first of them,
// and it has none that can be read.
bool Feeds::read_vectors(Feed& feed, uint32_t first) {
  std::vector<SentenceUid> wanted;
  const Context& context = *feed.context;
  for (uint32_t index = first; index < context.sentence_count() && wanted.size() < kVectorReadsMax;
       ++index) {
    const Sentence* sentence = context.find(directory_, index);
    if (sentence == nullptr || sentence->state != SentenceState::kStored ||
        sentence->vectors_bytes == 0) {
      break;
    }
    if (index == first && feed.unreadable.contains(sentence->uid)) {
      return false;
    }
    if (sentence->vectors == nullptr) {
      wanted.push_back(sentence->uid);
    }
  }
  feed.reading = static_cast<uint32_t>(wanted.size());
  const ContextId id = context.id();
  for (const SentenceUid uid : wanted) {
    placement_->get_vectors(feed.session, uid, [this, id, uid](Result<VectorsBlob> blob) {
      Feed* const waiting = find(id);
      if (waiting == nullptr) {
        return;
      }
      if (blob.ok()) {
        waiting->read[uid] = std::move(blob).value();
      } else {
        spdlog::warn("vectors of sentence {}: {}", raw(uid), blob.error().message);
        waiting->unreadable.insert(uid);
      }
      if (--waiting->reading == 0) {
        queue(*waiting);
      }
    });
  }
  return true;
}

size_t Feeds::count(SessionId session) const {
  return static_cast<size_t>(std::count_if(feeds_.begin(), feeds_.end(), [&](const auto& entry) {
    return entry.second->session == session;
  }));
}

uint32_t Feeds::covered(ContextId context) const {
  const auto found = feeds_.find(context);
  return found == feeds_.end() ? 0 : static_cast<uint32_t>(found->second->fed.size());
}

}  // namespace skv
