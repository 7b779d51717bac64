#include "daemon/lease_maps.h"

#include <algorithm>
#include <utility>

#include "daemon/verbs.h"

namespace skv {
// --- maps ----------------------------------------------------------------------------------------

LeaseMaps::Map* LeaseMaps::find(LeaseMapId id) {
  const auto found = maps_.find(id);
  return found == maps_.end() ? nullptr : found->second.get();
}

Result<LeaseMaps::Opened> LeaseMaps::open(LeaseMapId id,
                                          const std::shared_ptr<Context>& context,
                                          uint32_t sentence_capacity) {
  if (const auto charge = charges_.find(context->session());
      charge != charges_.end() && charge->second.maps.size() >= limits_.maps) {
    return limit_error("lease maps (sessions.contexts)", charge->second.maps.size(), limits_.maps);
  }
  Result<std::unique_ptr<LeaseMapWriter>> writer =
      LeaseMapWriter::create(sentence_capacity, context->model()->layout().chunk_count());
  if (!writer.ok()) return writer.error();
  auto made = std::make_unique<Map>();
  made->id = id;
  made->context = context;
  made->writer = std::move(writer).value();
  Map& map = *made;
  maps_.emplace(id, std::move(made));
  charges_[map.session()].maps.insert(&map);
  by_context_.emplace(context->id(), &map);
  advance(map);
  return Opened{map.writer->take_places(), map.writer->take_words(), map.writer->bytes()};
}

bool LeaseMaps::close(SessionId session, LeaseMapId id) {
  Map* const map = find(id);
  if (map == nullptr || map->session() != session) return false;
  close(*map);
  return true;
}

void LeaseMaps::close(Map& map) {
  awaited_.await(map.id, map.awaits, Digest{});
  for (const SentenceUid uid : map.uids) {
    if (uid != SentenceUid{}) remove(map, uid);
  }
  for (const SentenceUid uid : map.gone) remove(map, uid);
  const auto [first, last] = by_context_.equal_range(map.context->id());
  by_context_.erase(
      std::find_if(first, last, [&](const auto& entry) { return entry.second == &map; }));
  const auto charge = charges_.find(map.session());
  charge->second.maps.erase(&map);
  maps_.erase(map.id);
  if (charge->second.maps.empty()) {
    charges_.erase(charge);
  } else {
    bytes_came_free(charge->second);
  }
}

void LeaseMaps::bytes_came_free(const Charge& charge) {
  for (Map* map : charge.maps) {
    if (map->full) queue(*map);
  }
}

void LeaseMaps::session_closed(SessionId session) {
  const auto charge = charges_.find(session);
  if (charge == charges_.end()) return;
  for (Map* map : std::set<Map*>(charge->second.maps)) close(*map);
}

LeaseMaps::Usage LeaseMaps::usage() const {
  Usage usage;
  for (const auto& [id, map] : maps_) usage.leases += map->writer->leases();
  for (const auto& [session, charge] : charges_) {
    usage.maps += static_cast<uint32_t>(charge.maps.size());
    usage.bytes += charge.bytes;
  }
  return usage;
}

LeaseMaps::Usage LeaseMaps::usage(SessionId session) const {
  Usage usage;
  if (const auto charge = charges_.find(session); charge != charges_.end()) {
    for (const Map* map : charge->second.maps) usage.leases += map->writer->leases();
    usage.maps = static_cast<uint32_t>(charge->second.maps.size());
    usage.bytes = charge->second.bytes;
  }
  return usage;
}

// --- following contexts --------------------------------------------------------------------------

void LeaseMaps::queue(Map& map) {
  if (map.queued) return;
  map.queued = true;
  pending_.push_back(map.id);
  if (posted_) return;
  posted_ = true;
  loop_.post([this] {
    posted_ = false;
    run_pending();
  });
}

void LeaseMaps::run_pending() {
  std::vector<LeaseMapId> pending;
  pending.swap(pending_);
  for (const LeaseMapId id : pending) {
    if (Map* const map = find(id); map != nullptr) {
      map->queued = false;
      advance(*map);
    }
  }
}

void LeaseMaps::context_changed(ContextId context) {
  const auto [first, last] = by_context_.equal_range(context);
  for (auto it = first; it != last; ++it) queue(*it->second);
}

void LeaseMaps::sentence_stored(const Sentence& sentence) {
  awaited_.each(sentence.key, [this](LeaseMapId id) { queue(*find(id)); });
}

// What is read stays shown as read until host memory has nothing of it (forget()).
void LeaseMaps::sentence_removed(const Sentence& sentence) {
  const auto found = shown_.find(sentence.uid);
  if (found == shown_.end()) return;
  for (const Place& place : found->second.places) {
    Map& map = *place.map;
    if (map.uids[place.index] != sentence.uid) continue;
    map.uids[place.index] = SentenceUid{};
    map.gone.push_back(sentence.uid);
    for (uint32_t chunk = 0; chunk < found->second.chunk_count; ++chunk) {
      map.writer->hide(place.index, chunk);
    }
    map.next = std::min(map.next, place.index);
    queue(map);
  }
}

void LeaseMaps::advance(Map& map) {
  map.full = false;
  const Context& context = *map.context;
  const uint32_t per_sentence = map.writer->chunk_count();
  for (uint32_t chunks = 0;; chunks += per_sentence) {
    if (map.next >= std::min(context.sentence_count(), map.writer->sentence_capacity())) {
      return awaited_.await(map.id, map.awaits, Digest{});
    }
    const Sentence* sentence = context.find(directory_, map.next);
    if (sentence == nullptr || sentence->state != SentenceState::kStored) {
      return awaited_.await(map.id, map.awaits, context.sentence(map.next).key);
    }
    if (chunks >= limits_.chunks_per_turn) return queue(map);
    if (!add(map, map.next, *sentence)) {
      map.full = true;
      return awaited_.await(map.id, map.awaits, Digest{});
    }
    ++map.next;
  }
}

bool LeaseMaps::add(Map& map, uint32_t index, const Sentence& sentence) {
  if (map.uids.size() <= index) map.uids.resize(index + 1);
  if (map.uids[index] == sentence.uid) return true;
  Charge& charge = charges_[map.session()];
  const uint64_t bytes = sentence.shape->storage_bytes();
  if (bytes > limits_.bytes - std::min(charge.bytes, limits_.bytes)) return false;
  charge.bytes += bytes;
  Shown& shown = shown_[sentence.uid];
  shown.bytes = bytes;
  shown.chunk_count = sentence.shape->chunk_count();
  shown.places.push_back({&map, index});
  map.uids[index] = sentence.uid;
  const std::vector<HostChunk> chunks = placement_->host_chunks(sentence.uid);
  for (uint32_t chunk = 0; chunk < chunks.size(); ++chunk) {
    if (chunks[chunk].offset != kNoExtent) map.writer->show(index, chunk, chunks[chunk].offset);
  }
  return true;
}

void LeaseMaps::remove(Map& map, SentenceUid uid) {
  const auto found = shown_.find(uid);
  std::erase_if(found->second.places, [&](const Place& place) { return place.map == &map; });
  charges_.at(map.session()).bytes -= found->second.bytes;
  if (found->second.places.empty()) shown_.erase(found);
}

// --- readers -------------------------------------------------------------------------------------

void LeaseMaps::show(SentenceUid uid, uint32_t chunk, uint64_t host_offset) {
  const auto found = shown_.find(uid);
  if (found == shown_.end()) return;
  for (const Place& place : found->second.places) {
    if (place.map->uids[place.index] == uid) {
      place.map->writer->show(place.index, chunk, host_offset);
    }
  }
}

bool LeaseMaps::hide(SentenceUid uid, uint32_t chunk) {
  const auto found = shown_.find(uid);
  if (found == shown_.end()) return true;
  for (const Place& place : found->second.places) {
    if (place.map->uids[place.index] == uid) place.map->writer->hide(place.index, chunk);
  }
  return !reads(uid, chunk);
}

bool LeaseMaps::reads(SentenceUid uid, uint32_t chunk) const {
  const auto found = shown_.find(uid);
  return found != shown_.end() &&
         std::any_of(
             found->second.places.begin(), found->second.places.end(),
             [chunk](const Place& place) { return place.map->writer->held(place.index, chunk); });
}

bool LeaseMaps::reads(SentenceUid uid) const {
  const auto found = shown_.find(uid);
  if (found == shown_.end()) return false;
  for (const Place& place : found->second.places) {
    for (uint32_t chunk = 0; chunk < found->second.chunk_count; ++chunk) {
      if (place.map->writer->held(place.index, chunk)) return true;
    }
  }
  return false;
}

bool LeaseMaps::take_touched(SentenceUid uid, uint32_t chunk) {
  const auto found = shown_.find(uid);
  if (found == shown_.end()) return false;
  bool touched = false;
  for (const Place& place : found->second.places) {
    touched |= place.map->writer->take_touched(place.index, chunk);
  }
  return touched;
}

void LeaseMaps::forget(SentenceUid uid) {
  const auto found = shown_.find(uid);
  if (found == shown_.end()) return;
  for (const Place& place : found->second.places) {
    Map& map = *place.map;
    std::erase(map.gone, uid);
    Charge& charge = charges_.at(map.session());
    charge.bytes -= found->second.bytes;
    bytes_came_free(charge);
  }
  shown_.erase(found);
}

}  // namespace skv
