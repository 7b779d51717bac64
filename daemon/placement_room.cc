// Room: who leaves host memory, what is written to NVMe, who leaves the last tier.
#include <algorithm>
#include <utility>

#include "daemon/placement_state.h"
#include "tiers/checksum.h"

namespace skv {

ChunkQueueNode* Placement::State::queue_node(const ChunkQueue::Entry& entry) {
  Body* body = find_body(entry.uid);
  if (body == nullptr) return nullptr;
  collect_touched(*body, entry.chunk);
  return &body->chunks[entry.chunk].queue;
}

bool Placement::State::over_host_quota(SpaceId space, uint64_t bytes) const {
  const auto found = spaces.find(space);
  if (found == spaces.end() || found->second.quota.host_bytes == 0) return false;
  return parts.host->space_used_bytes(space) + bytes > found->second.quota.host_bytes;
}

std::optional<HostExtent> Placement::State::allocate(const Sentence& sentence,
                                                     uint32_t chunk,
                                                     Want::Urgency urgency) {
  const uint64_t bytes = sentence.shape->chunk_storage_bytes(chunk);
  uint32_t unread = urgency == Want::Urgency::kAhead ? 2 : 0;  // that may go for it
  for (;;) {
    const bool over = over_host_quota(sentence.space, bytes);
    if (!over) {
      if (auto extent = parts.host->reserve(sentence.space, sentence.uid, chunk, bytes)) {
        return extent;
      }
    }
    if (unread > 0 && !over && give_back_unread()) {
      --unread;
      continue;
    }
    if (urgency <= Want::Urgency::kWarm) return std::nullopt;
    const auto only = over ? std::optional<SpaceId>(sentence.space) : std::nullopt;
    if (make_room(bytes, only) != Room::kFreed) return std::nullopt;
  }
}

bool Placement::State::give_back_unread() {
  ChunkQueue::Entry victim;
  const bool found = chunk_queue.next_untouched(
      [this](const ChunkQueue::Entry& entry) { return queue_node(entry); },
      [this](const ChunkQueue::Entry& entry) {
        const Body& body = *find_body(entry.uid);
        const Chunk& place = body.chunks[entry.chunk];
        return body.sentence->on_nvme && body.sentence->feeds == 0 && place.leases == 0 &&
               take_from_readers({entry.uid, entry.chunk}, place);
      },
      victim);
  if (found) give_back(*find_body(victim.uid), victim.chunk);
  return found;
}

uint64_t Placement::State::room_goal(uint64_t bytes) const {
  uint64_t waiting = urgent_reads.size() * bytes;
  if (!puts.empty()) {
    const OpenPut& put = puts.front();
    for (size_t next = put.results.size(); next < put.request.sentences.size(); ++next) {
      waiting += put.request.sentences[next].shape->storage_bytes();
    }
  }
  return std::max(bytes, std::min(waiting, parts.host->stats().budget_bytes / 8));
}

Placement::State::Room Placement::State::make_room(uint64_t bytes, std::optional<SpaceId> only) {
  const auto pending = [this] { return leaving_bytes - overdue_bytes + demoting_bytes; };
  const uint64_t goal = room_goal(bytes);
  if (pending() >= goal) return Room::kPending;

  // What waits for its path is of no use to anyone yet.
  for (const SentenceUid uid : waiting_sentences) {
    const Sentence* sentence = parts.directory->find(uid);
    if (only && sentence->space != *only) continue;
    if (Body* body = find_body(uid); body == nullptr || body->leases > 0) continue;
    remove_sentence(uid);
    return Room::kFreed;
  }

  const auto lookup = [this](const ChunkQueue::Entry& entry) { return queue_node(entry); };
  const auto judge = [&](const ChunkQueue::Entry& entry) {
    Body& body = *find_body(entry.uid);
    Sentence& sentence = *body.sentence;
    if (only && sentence.space != *only) return ChunkQueue::Verdict::kStay;
    if (sentence.on_nvme) {
      const Chunk& place = body.chunks[entry.chunk];
      const bool goes = place.leases == 0 && take_from_readers({entry.uid, entry.chunk}, place);
      return goes ? ChunkQueue::Verdict::kGo : ChunkQueue::Verdict::kStay;
    }
    if (body.leases == 0 && can_write() && !write_refused(body)) request_write(sentence, true);
    return pending() >= goal ? ChunkQueue::Verdict::kStop : ChunkQueue::Verdict::kStay;
  };
  ChunkQueue::Entry victim;
  while (pending() < goal && chunk_queue.next(lookup, judge, victim)) {
    const uint64_t leaving_before = leaving_bytes;
    give_back(*find_body(victim.uid), victim.chunk);
    if (leaving_bytes == leaving_before) return Room::kFreed;
  }
  if (pending() > 0) return Room::kPending;
  // Nothing can go down a tier: for what is not on NVMe the host is the last one. A leaf that holds
  // no host memory goes only where it keeps those before it.
  if (dirty_bytes > 0 && (evict_one({.only = only, .holding_host = true}) ||
                          evict_one({.only = only, .holding_host = false}))) {
    return pending() > 0 ? Room::kPending : Room::kFreed;
  }
  return Room::kNone;
}

bool Placement::State::may_come_free(SessionId asker) const {
  if (leaving_bytes + demoting_bytes > 0 || readers_stay) return true;
  if (writes_in_flight + reads_in_flight + chunk_leases > 0) return true;
  return std::any_of(sessions.begin(), sessions.end(), [asker](const auto& entry) {
    return entry.first != asker && entry.second.charge.open_puts > 0;
  });
}

bool Placement::State::evict_one(const Eviction& wanted) {
  bool spared = false;  // it was read in place since it was last looked at
  const auto may_go = [&](const Sentence& sentence) {
    if (wanted.only && sentence.space != *wanted.only) return false;
    if (&sentence == wanted.sparing) return false;
    if (in_use(sentence)) {
      readers_stay |= is_read(sentence.uid);
      return false;
    }
    Body* body = find_body(sentence.uid);
    if (body == nullptr) return !wanted.holding_host;
    bool touched = false;
    for (uint32_t chunk = 0; chunk < body->chunks.size(); ++chunk) {
      touched |= collect_touched(*body, chunk);
    }
    spared |= touched;
    return !touched;
  };
  Sentence* leaf = leaf_queue.next(may_go);
  if (leaf == nullptr && spared) leaf = leaf_queue.next(may_go);
  if (leaf == nullptr) return false;
  ++(leaf->on_nvme ? counters.evictions_nvme : counters.evictions_host);
  remove_sentence(leaf->uid);
  return true;
}

void Placement::State::evict_ahead(const Sentence& written) {
  // A store that is behind catches up, write by write; no turn evicts without end.
  const uint64_t wanted = parts.nvme->erase_ahead_bytes();
  const uint64_t left = wanted - std::min(wanted, 2 * storage(written));
  while (parts.nvme->erase_ahead_bytes() > left && evict_one({.sparing = &written})) {
  }
}

void Placement::State::request_write(Sentence& sentence, bool demote) {
  Body& body = *find_body(sentence.uid);
  if (demote && !body.demote) {
    body.demote = true;
    demoting_bytes += storage(sentence);
  }
  if (sentence.nvme_write || body.write_queued) return;
  body.write_queued = true;
  write_queue.push_back(sentence.uid);
}

void Placement::State::write_behind() {
  if (!can_write() || dirty_queue.empty()) return;
  const HostStore::Stats host = parts.host->stats();
  // Above three quarters full, a quarter or more of it not on NVMe yet: write the oldest, so that
  // an allocation finds chunks that can be given back at once.
  if (host.used_bytes * 4 < host.budget_bytes * 3 || dirty_bytes * 4 < host.budget_bytes) return;
  while (write_queue.size() + writes_in_flight < options.writes_max && !dirty_queue.empty()) {
    Sentence* sentence = stored(dirty_queue.front());
    dirty_queue.pop_front();
    if (sentence == nullptr || sentence->on_nvme) continue;
    if (!write_refused(*find_body(sentence->uid))) request_write(*sentence, false);
  }
}

bool Placement::State::start_writes() {
  bool started = false;
  while (writes_in_flight < options.writes_max && !write_queue.empty()) {
    const SentenceUid uid = write_queue.front();
    write_queue.pop_front();
    Body* body = find_body(uid);
    if (body == nullptr || body->removed != nullptr) continue;
    body->write_queued = false;
    Sentence& sentence = *body->sentence;
    if (sentence.on_nvme || sentence.nvme_write) continue;
    const WriteStart outcome = start_write(sentence, *body);
    if (outcome == WriteStart::kLater) {
      body->write_queued = true;
      write_queue.push_front(uid);
      store_busy = true;
      break;
    }
    started |= outcome == WriteStart::kStarted;
  }
  return started;
}

BodyRecord Placement::State::record_of(const Sentence& sentence, const Body& body) {
  BodyRecord record;
  record.key = sentence.key;
  record.space_uid = spaces.at(sentence.space).uid;
  record.fingerprint = sentence.shape->fingerprint;
  record.parent_boundary = sentence.start->key;
  record.end_boundary = sentence.end->key;
  record.end_digest = body.end_prefix;
  record.first_position = sentence.first_position;
  record.token_count = sentence.token_count();
  record.index = sentence.index;
  record.vectors_bytes = sentence.vectors == nullptr ? 0 : sentence.vectors_bytes;
  record.chunk_bytes = sentence.shape->chunk_bytes;
  record.chunk_sums = body.sums;
  return record;
}

Placement::State::WriteStart Placement::State::start_write(Sentence& sentence, Body& body) {
  if (!can_write()) {
    write_failed(sentence, body, {ErrorCode::kIo, "the NVMe store takes no more writes"});
    return WriteStart::kFailed;
  }
  const Space& space = spaces.at(sentence.space);
  while (space.quota.nvme_bytes > 0 &&
         space.nvme_bytes + storage(sentence) > space.quota.nvme_bytes) {
    if (evict_one({.sparing = &sentence, .only = sentence.space})) continue;
    write_failed(sentence, body, {ErrorCode::kNoSpace, "the space's NVMe quota is full"});
    return WriteStart::kFailed;
  }

  BodyPut put;
  put.record = record_of(sentence, body);
  put.vectors = sentence.vectors;
  for (uint32_t chunk = 0; chunk < body.chunks.size(); ++chunk) {
    SKV_CHECK(body.chunks[chunk].state == ChunkState::kResident,
              "a chunk left host memory before its sentence was on NVMe");
    const HostExtent extent{body.chunks[chunk].offset, sentence.shape->chunk_storage_bytes(chunk)};
    put.chunks.push_back(parts.host->bytes(sentence.space, extent));
  }
  const bool with_vectors = put.vectors != nullptr;
  put.done = [token = std::weak_ptr<State*>(alive), uid = sentence.uid,
              with_vectors](const Result<void>& result) {
    const auto state = token.lock();
    if (state == nullptr) return;
    if (Body* written = (*state)->find_body(uid); written != nullptr && result.ok()) {
      written->sentence->vectors_on_nvme = with_vectors;
    }
    (*state)->on_written(uid, result);
  };

  for (;;) {
    Result<StoreOutcome> outcome = parts.nvme->put(put);
    if (!outcome.ok()) {
      body.write_failed_at = kNever;
      write_failed(sentence, body, outcome.error());
      return WriteStart::kFailed;
    }
    switch (outcome.value()) {
      case StoreOutcome::kAccepted:
        sentence.nvme_write = true;
        ++body.transfers;
        ++writes_in_flight;
        evict_ahead(sentence);
        return WriteStart::kStarted;
      case StoreOutcome::kFull:
        if (evict_one({.sparing = &sentence})) break;
        write_failed(sentence, body, {ErrorCode::kNoSpace, "the NVMe store is full"});
        return WriteStart::kFailed;
      case StoreOutcome::kExists:
        // Never ours: each sentence is written once, and erased there when it leaves.
        if (parts.nvme->find(sentence.key) == nullptr) return WriteStart::kLater;
        parts.nvme->erase(sentence.key);
        break;
      case StoreOutcome::kBusy:
        return WriteStart::kLater;
      case StoreOutcome::kReadOnly:
        nvme_read_only = true;
        write_failed(sentence, body, {ErrorCode::kIo, "the NVMe store takes no more writes"});
        return WriteStart::kFailed;
    }
  }
}

void Placement::State::on_written(SentenceUid uid, const Result<void>& result) {
  const Turn turn(*this);
  changed();
  Body& body = *find_body(uid);
  Sentence& sentence = *body.sentence;
  --writes_in_flight;
  --body.transfers;
  sentence.nvme_write = false;
  if (body.removed != nullptr) {
    settle_removed(body);
    return;
  }
  if (result.ok()) {
    sentence.on_nvme = true;
    body.sums = {};
    dirty_bytes -= storage(sentence);
    ++nvme_sentences;
    spaces.at(sentence.space).nvme_bytes += storage(sentence);
    ++counters.nvme_writes;
    counters.nvme_write_bytes += storage(sentence) + sentence.vectors_bytes;
    end_of_demotion(body);
    if (vectors_unwritten(sentence)) {  // they came while it was written
      vectors_writes.push_back(uid);
      return;
    }
    flush_progress(uid, {});
    return;
  }
  const Error& error = result.error();
  if (error.code == ErrorCode::kNoSpace && evict_one({.sparing = &sentence})) {
    request_write(sentence, body.demote);
    return;
  }
  if (error.code == ErrorCode::kCorrupt) {  // the bytes in host memory are not those that were put
    ++counters.nvme_write_failures;
    ++counters.evictions_corrupt;
    counters.evictions_unreachable += remove_sentence(uid) - 1;
    return;
  }
  write_failed(sentence, body, error);
}

void Placement::State::write_failed(Sentence& sentence, Body& body, const Error& error) {
  ++counters.nvme_write_failures;
  if (body.write_failed_at != kNever) body.write_failed_at = nvme_epoch;
  end_of_demotion(body);
  flush_progress(sentence.uid, error);
  changed();
}

void Placement::State::end_of_demotion(Body& body) {
  if (!body.demote) return;
  body.demote = false;
  demoting_bytes -= storage(*body.sentence);
  if (!body.sentence->on_nvme) return;
  // Those were next to go when the write was asked for.
  for (uint32_t chunk = 0; chunk < body.chunks.size(); ++chunk) {
    Chunk& place = body.chunks[chunk];
    if (place.state != ChunkState::kResident) continue;
    const auto bytes = static_cast<uint32_t>(body.sentence->shape->chunk_storage_bytes(chunk));
    chunk_queue.push_front({body.sentence->uid, chunk, 0, bytes}, place.queue);
  }
}

}  // namespace skv
