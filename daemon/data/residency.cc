#include "daemon/data/residency.h"

#include <algorithm>

#include "ipc/types/check.h"

namespace skv {

void ExtentLease::release() {
  if (extent_ == nullptr) return;
  owner_->let_go(extent_);
  owner_ = nullptr;
  extent_ = nullptr;
}

void ExtentLease::release(std::vector<ExtentLease>& leases) {
  for (const ExtentLease& lease : leases) __builtin_prefetch(lease.extent_, 1);
  for (const ExtentLease& lease : leases) {
    if (lease) __builtin_prefetch(lease->sentence, 1);
  }
  leases.clear();
}

Residency::~Residency() { SKV_CHECK(detached_.empty(), "a lease outlives the residency"); }

void Residency::retain(SentenceUid uid, const std::vector<HostChunk>& chunks) {
  ResidentSentence& sentence = sentences_[uid];
  ++sentence.feeds;
  if (sentence.chunks.size() < chunks.size()) {
    absent_ += chunks.size() - sentence.chunks.size();
    sentence.chunks.resize(chunks.size());
  }
  for (uint32_t i = 0; i < chunks.size(); ++i) {
    if (chunks[i].offset == kNoExtent || sentence.chunks[i].extent) continue;
    arrived(ChunkRef{uid, i}, chunks[i].offset, chunks[i].origin);
  }
}

void Residency::release(SentenceUid uid) {
  const auto found = sentences_.find(uid);
  SKV_CHECK(found != sentences_.end() && found->second.feeds > 0, "release of an unfed sentence");
  --found->second.feeds;
  forget_if_unused(uid);
}

void Residency::forget_if_unused(SentenceUid uid) {
  const auto found = sentences_.find(uid);
  if (found == sentences_.end()) return;
  if (found->second.feeds > 0 || found->second.uses > 0) return;
  for (Chunk& place : found->second.chunks) {
    if (place.extent) gone(place);
    --absent_;
  }
  sentences_.erase(found);
}

void Residency::gone(Chunk& place) {
  ++absent_;
  if (place.extent->ahead) ++ahead_counts_.wasted;
}

void Residency::show(SentenceUid uid, FeedMap* map, uint32_t sentence_index) {
  ResidentSentence& sentence = sentences_.at(uid);
  sentence.shown.push_back({map, sentence_index});
  for (uint32_t chunk = 0; chunk < sentence.chunks.size(); ++chunk) {
    const Extent* extent = sentence.chunks[chunk].extent.get();
    if (extent != nullptr) map->show_chunk(sentence_index, chunk, extent->offset);
  }
}

void Residency::hide(SentenceUid uid, const FeedMap* map) {
  std::erase_if(sentences_.at(uid).shown, [&](const Shown& shown) { return shown.map == map; });
}

std::optional<uint32_t> Residency::shown_as(SentenceUid uid, const FeedMap* map) const {
  const auto found = sentences_.find(uid);
  if (found == sentences_.end()) return std::nullopt;
  for (const Shown& shown : found->second.shown) {
    if (shown.map == map) return shown.sentence_index;
  }
  return std::nullopt;
}

Residency::Chunk* Residency::find(const ChunkRef& chunk) {
  const auto found = sentences_.find(chunk.uid);
  if (found == sentences_.end() || chunk.chunk >= found->second.chunks.size()) return nullptr;
  return &found->second.chunks[chunk.chunk];
}

bool Residency::arrived(const ChunkRef& chunk, uint64_t offset, Origin origin) {
  Chunk* place = find(chunk);
  if (place == nullptr) return false;
  ResidentSentence& sentence = sentences_.at(chunk.uid);
  const bool ahead = place->ahead_ns != 0 && place->asked == Asked::kNo;
  place->asked = Asked::kNo;
  place->ahead_ns = 0;
  if (place->extent && place->extent->offset == offset) return true;
  SKV_CHECK(!place->extent, "a chunk arrived at a second place without a withdrawal");
  place->extent = std::make_unique<Extent>(Extent{chunk, &sentence, offset, origin, 0, 0, ahead});
  --absent_;
  for (const Shown& shown : sentence.shown) {
    shown.map->show_chunk(shown.sentence_index, chunk.chunk, offset);
  }
  return true;
}

void Residency::failed(const ChunkRef& chunk) {
  if (Chunk* place = find(chunk); place != nullptr) place->asked = Asked::kNo;
}

void Residency::withdraw(const ChunkRef& chunk) {
  Chunk* place = find(chunk);
  if (place != nullptr && place->extent) {
    Extent& extent = *place->extent;
    for (const Shown& shown : extent.sentence->shown) {
      shown.map->hide_chunk(shown.sentence_index, chunk.chunk);
    }
    gone(*place);
    if (extent.uses == 0) {
      place->extent.reset();
      withdrawn_.push_back(chunk);
      return;
    }
    extent.answers_due = 1;
    std::exchange(extent.sentence, nullptr)->uses -= extent.uses;
    detached_.push_back(std::move(place->extent));
    forget_if_unused(chunk.uid);
    return;
  }
  for (const std::unique_ptr<Extent>& extent : detached_) {
    if (extent->chunk == chunk) {
      ++extent->answers_due;
      return;
    }
  }
  withdrawn_.push_back(chunk);
}

ExtentLease Residency::lease(const ChunkRef& chunk) {
  const auto found = sentences_.find(chunk.uid);
  return found == sentences_.end() ? ExtentLease{} : lease(found->second, chunk.chunk);
}

void Residency::warm(const ResidentSentence& sentence, uint32_t chunk, Way way) {
  switch (way) {
    case Way::kSentence:
      __builtin_prefetch(&sentence, 1);
      break;
    case Way::kChunk:
      __builtin_prefetch(sentence.chunks.data() + chunk);
      break;
    case Way::kExtent:
      if (chunk < sentence.chunks.size())
        __builtin_prefetch(sentence.chunks[chunk].extent.get(), 1);
      break;
  }
}

ExtentLease Residency::lease(ResidentSentence& sentence, uint32_t chunk) {
  Extent* const extent =
      chunk < sentence.chunks.size() ? sentence.chunks[chunk].extent.get() : nullptr;
  if (extent == nullptr) return {};
  ++extent->uses;
  ++sentence.uses;
  if (extent->ahead) {
    extent->ahead = false;
    ++ahead_counts_.used;
  }
  return ExtentLease(this, extent);
}

ExtentLease Residency::lease_again(const ExtentLease& held) {
  Extent* const extent = held.extent_;
  ++extent->uses;
  if (extent->sentence != nullptr) ++extent->sentence->uses;
  return ExtentLease(this, extent);
}

void Residency::let_go(Extent* extent) {
  SKV_CHECK(extent->uses > 0, "a lease was given back twice");
  --extent->uses;
  if (ResidentSentence* const sentence = extent->sentence; sentence != nullptr) {
    if (--sentence->uses == 0 && sentence->feeds == 0) forget_if_unused(extent->chunk.uid);
    return;
  }
  if (extent->uses > 0) return;
  withdrawn_.insert(withdrawn_.end(), extent->answers_due, extent->chunk);
  std::erase_if(detached_, [&](const auto& each) { return each.get() == extent; });
}

void Residency::settle(const ChunkRef& chunk) {
  if (Chunk* place = find(chunk); place != nullptr && place->extent) {
    place->extent->origin = Origin::kHost;
  }
}

bool Residency::ask(const ChunkRef& chunk, bool urgent) {
  Chunk* place = find(chunk);
  if (place == nullptr) return false;
  const Asked wanted = urgent ? Asked::kUrgent : Asked::kYes;
  if (place->asked >= wanted) return false;
  if (place->asked == Asked::kNo && place->ahead_ns != 0 && !place->extent) ++ahead_counts_.late;
  place->asked = wanted;
  return true;
}

bool Residency::read_ahead(const ChunkRef& chunk, uint64_t now_ns, uint64_t again_ns) {
  Chunk* place = find(chunk);
  if (place == nullptr || place->extent || place->asked != Asked::kNo) return false;
  if (place->ahead_ns != 0 && place->ahead_ns + again_ns > now_ns) return false;
  place->ahead_ns = std::max<uint64_t>(now_ns, 1);
  return true;
}

bool Residency::present(const ChunkRef& chunk) const {
  const auto found = sentences_.find(chunk.uid);
  return found != sentences_.end() && chunk.chunk < found->second.chunks.size() &&
         found->second.chunks[chunk.chunk].extent != nullptr;
}

}  // namespace skv
