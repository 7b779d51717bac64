// What one step does.
#include "tests/daemon/placement_simulation.h"

namespace skv::test {

Simulation::Simulation(const Setup& setup)
    : setup_(setup), random_(setup.seed), world_(setup.world) {
  make_documents();
  world_.stop();
  world_.quota.host_bytes = setup.host_quota;
  restart_world();
}

void Simulation::run(uint32_t steps) {
  for (step_ = 0; step_ < steps && !::testing::Test::HasFailure(); ++step_) {
    one_step();
    check_some();
    if (step_ % 16 == 0) check_all();
  }
  finish();
}

void Simulation::make_documents() {
  for (uint32_t document = 0; document < 6; ++document) {
    std::vector<uint32_t> tokens(kTokens);
    const uint32_t shared = document == 0 ? 0 : 32 * pick(kTokens / 32);
    for (uint32_t at = 0; at < kTokens; ++at) {
      tokens[at] = at < shared ? documents_[pick_parent(document)][at] : document * 100'000 + at;
    }
    documents_.push_back(std::move(tokens));
  }
}

void Simulation::one_step() {
  Session& session = sessions_[pick(kSessions)];
  if (chance(50)) world_.lease_maps->run_pending();  // a turn of the loop
  const uint32_t dice = pick(1150);
  if (dice < 100) return open_context(session);
  if (dice < 260) return reserve(session);
  if (dice < 430) return write_or_commit(session);
  if (dice < 450) return cancel(session);
  if (dice < 510) return match(session);
  if (dice < 610) return acquire(session);
  if (dice < 720) return release_chunk();
  if (dice < 740) return lease_sentence(session);
  if (dice < 760) return release_sentence(session);
  if (dice < 785) return open_window(session);
  if (dice < 805) return close_window(session);
  if (dice < 835) return need_chunks();
  if (dice < 855) return get_vectors(session);
  if (dice < 885) return world_.answer_withdrawals(1 + pick(4));
  if (dice < 960) return work_disk();
  if (dice < 975) return pass_time();
  if (dice < 979) return drop(session);
  if (dice < 983) return flush();
  if (dice < 991) return fault();
  if (dice < 998) return end_session(session);
  if (dice < 1000) return restart();
  if (dice < 1020) return open_map(session);
  if (dice < 1090) return lease_in_place(session);
  if (dice < 1145) return give_back_in_place(session);
  return close_map(session);
}

void Simulation::open_context(Session& session) {
  Context context = world_.context(session.id);
  const std::vector<uint32_t>& tokens = documents_[pick(6)];
  const uint32_t length = 64 + pick(kTokens - 64);
  // Three habits of cutting, so that engines agree sometimes.
  const uint32_t habit = 24 + 7 * pick(3);
  for (uint32_t at = 0; at < length;) {
    ContextAppend append;
    append.first_position = at;
    const uint32_t count = std::min(length - at, 1 + pick(300));
    append.tokens.assign(tokens.begin() + at, tokens.begin() + at + count);
    at += count;
    append.ends_final_to = at;
    for (uint32_t end = append.first_position + 1; end <= at; ++end) {
      if (end % habit == 0) append.ends.push_back(end);
    }
    ASSERT_TRUE(context.append(append).ok());
  }
  if (chance(40)) {
    ASSERT_TRUE(context.adopt(*world_.directory, context.match(*world_.directory)).ok());
  }
  if (session.contexts.size() < 4) {
    session.contexts.push_back(std::move(context));
  } else {
    session.contexts[pick(4)] = std::move(context);
  }
}

void Simulation::reserve(Session& session) {
  const Context* context = some_context(session);
  if (context == nullptr || context->sentence_count() == 0) return;
  // Mostly where the stored part ends, as an engine would.
  uint32_t first = context->stored_prefix(*world_.directory, false);
  if (chance(20)) first = pick(context->sentence_count());
  if (first >= context->sentence_count()) return;
  const uint32_t count = std::min(context->sentence_count() - first, 1 + pick(4));
  Placement::PutRequest request;
  request.session = session.id;
  request.deadline_ns = world_.now_ns + 1 + pick(5'000'000);
  for (uint32_t index = first; index < first + count; ++index) {
    request.sentences.push_back(context->describe(*world_.directory, index));
  }
  ++session.requests;
  request.done = [this, id = session.id, count](World::Reservations results) {
    Session* owner = find_session(id);
    ASSERT_NE(owner, nullptr) << "an answer to a session that has ended";
    --owner->requests;
    ASSERT_EQ(results.size(), count);
    for (const auto& result : results) {
      if (result.outcome != PutOutcome::kReserved) continue;
      // Reserved by an earlier message, and committed or cancelled since.
      const Sentence* sentence = world_.directory->find(result.uid);
      if (sentence == nullptr || sentence->state != SentenceState::kReserved) continue;
      const bool known = std::any_of(owner->puts.begin(), owner->puts.end(),
                                     [&](const OpenPut& put) { return put.uid == result.uid; });
      if (!known) owner->puts.push_back({result.uid, false});
    }
  };
  world_.placement->put_reserve(std::move(request));
}

void Simulation::write_or_commit(Session& session) {
  if (session.puts.empty()) return;
  // Mostly the oldest first, so that paths grow.
  const uint32_t at = chance(80) ? 0 : pick(static_cast<uint32_t>(session.puts.size()));
  OpenPut& put = session.puts[at];
  if (!put.written) {
    world_.write_body(put.uid);
    put.written = true;
    if (chance(50)) return;
  }
  EXPECT_EQ(world_.commit(session.id, put.uid), PutOutcome::kCommitted);
  session.puts.erase(session.puts.begin() + at);
}

void Simulation::cancel(Session& session) {
  if (session.puts.empty()) return;
  const uint32_t at = pick(static_cast<uint32_t>(session.puts.size()));
  EXPECT_EQ(world_.placement->put_cancel(session.id, session.puts[at].uid), PutOutcome::kCancelled);
  session.puts.erase(session.puts.begin() + at);
}

void Simulation::match(Session& session) {
  const Context* context = some_context(session);
  if (context == nullptr) return;
  ++matches_;
  const Directory::Cover cover = context->match(*world_.directory);
  const uint32_t blocks = context->closed_blocks();
  const auto stored = [&](uint32_t start, uint32_t end) -> const Sentence* {
    const Sentence* sentence = world_.directory->find(sentence_key(
        {world_.salt, world_.model->fingerprint, context->prefix_digest(end), start * 8}));
    const bool is = sentence != nullptr && sentence->state == SentenceState::kStored;
    return is ? sentence : nullptr;
  };
  std::vector<uint32_t> furthest(blocks + 1);
  for (uint32_t start = blocks + 1; start-- > 0;) {
    furthest[start] = start;
    for (uint32_t end = start + 4; end <= std::min(blocks, start + 8); ++end) {
      if (stored(start, end) != nullptr) {
        furthest[start] = std::max(furthest[start], furthest[end]);
      }
    }
  }
  EXPECT_EQ(cover.hit_tokens, furthest[0] * 8);
  EXPECT_GE(cover.pending_tokens, cover.hit_tokens);
  std::vector<SentenceUid> path;
  for (uint32_t at = 0; at != furthest[0];) {
    uint32_t end = at + 8;
    while (end > blocks || stored(at, end) == nullptr || furthest[end] != furthest[0]) --end;
    path.push_back(stored(at, end)->uid);
    at = end;
  }
  EXPECT_EQ(cover.path, path);
  world_.placement->touch(cover.path);
  const auto tiers = world_.placement->tier_tokens(cover.path);
  EXPECT_EQ(tiers.host + tiers.nvme, cover.hit_tokens);
}

SentenceUid Simulation::some_stored() {
  if (graph_.edges.empty()) return {};
  auto at = graph_.edges.begin();
  std::advance(at, pick(static_cast<uint32_t>(graph_.edges.size())));
  return world_.directory->find(at->first)->uid;
}

void Simulation::acquire(Session& session) {
  const SentenceUid uid = some_stored();
  if (uid == SentenceUid{}) return;
  const Digest key = world_.directory->find(uid)->key;
  ++session.requests;
  world_.placement->acquire({.session = session.id,
                             .uid = uid,
                             .chunk = pick(2),
                             .urgent = chance(70),
                             .deadline_ns = world_.now_ns + pick(10'000'000),
                             .done = [this, id = session.id, key](Result<ChunkLease> lease) {
                               Session* owner = find_session(id);
                               ASSERT_NE(owner, nullptr) << "an answer to a session that has ended";
                               --owner->requests;
                               if (lease.ok()) leases_.push_back({lease.value(), key});
                             }});
}

void Simulation::get_vectors(Session& session) {
  const SentenceUid uid = some_stored();
  if (uid == SentenceUid{}) return;
  const Digest key = world_.directory->find(uid)->key;
  ++session.requests;
  world_.placement->get_vectors(
      session.id, uid, [this, id = session.id, key](Result<VectorsBlob> blob) {
        Session* owner = find_session(id);
        ASSERT_NE(owner, nullptr) << "an answer to a session that has ended";
        --owner->requests;
        if (blob.ok()) {
          EXPECT_EQ(*blob.value(), *World::vectors_of(key));
        }
      });
}

void Simulation::release_chunk() {
  if (leases_.empty()) return;
  const uint32_t at = pick(static_cast<uint32_t>(leases_.size()));
  const Held held = leases_[at];
  expect_bytes(held);
  leases_.erase(leases_.begin() + at);
  world_.placement->release(held.lease);
}

void Simulation::lease_sentence(Session& session) {
  const SentenceUid uid = some_stored();
  if (uid == SentenceUid{} || session.sentence_leases.size() > 3) return;
  ASSERT_TRUE(world_.placement->lease_sentence(session.id, uid));
  session.sentence_leases.push_back(uid);
}

void Simulation::open_window(Session& session) {
  const Context* context = some_context(session);
  if (context == nullptr || session.windows.size() >= 2) return;
  FedContext window;
  for (const SentenceUid uid : context->match(*world_.directory).path) {
    // Warming the one before may have found a corrupt record, and the path ends here.
    if (!world_.placement->lease_sentence(session.id, uid)) break;
    window.fed.push_back(uid);
    world_.add_feed(uid);
    world_.placement->warm(uid);
  }
  session.windows.push_back(std::move(window));
}

void Simulation::open_map(Session& session) {
  const Context* context = some_context(session);
  if (context == nullptr || session.maps.size() >= World::kLeaseMapsMax) return;
  const LeaseMapId id{next_map_++};
  Result<LeaseMapReader> reader = world_.lease_map(id, *context);
  ASSERT_TRUE(reader.ok()) << reader.error().message;
  session.maps.push_back({id, *context, std::move(reader).value(), {}});
}

// Mostly what it has just read, as an engine that decodes: then pressure meets what is held.
void Simulation::lease_in_place(Session& session) {
  if (session.maps.empty()) return;
  InPlace& map = session.maps[pick(static_cast<uint32_t>(session.maps.size()))];
  const uint32_t count = map.context.sentence_count();
  if (count == 0 || map.leases.size() >= 3) return;
  InPlace::Lease lease;
  lease.range.first_sentence = pick(count);
  lease.range.sentence_count = 1 + pick(std::min(count - lease.range.first_sentence, 2U));
  lease.range.first_chunk = pick(2);
  lease.range.chunk_count = 1 + pick(2 - lease.range.first_chunk);
  if (!map.reader.take(lease.range, lease.offsets)) {
    ++refused_in_place_;
    return;
  }
  ++leases_in_place_;
  expect_bytes(map, lease);
  map.leases.push_back(std::move(lease));
}

void Simulation::give_back_in_place(Session& session) {
  if (session.maps.empty()) return;
  InPlace& map = session.maps[pick(static_cast<uint32_t>(session.maps.size()))];
  if (map.leases.empty()) return;
  expect_bytes(map, map.leases.front());
  map.reader.give_back(map.leases.front().range);
  map.leases.erase(map.leases.begin());
}

// Its leases end with it, whether they were given back or not.
void Simulation::close_map(Session& session) {
  if (session.maps.empty()) return;
  const InPlace& map = session.maps.back();
  for (const InPlace::Lease& lease : map.leases) expect_bytes(map, lease);
  EXPECT_TRUE(world_.lease_maps->close(session.id, map.id));
  world_.words.erase(map.id);
  session.maps.pop_back();
}

void Simulation::expect_bytes(const InPlace& map, const InPlace::Lease& lease) {
  const BodyLayout& layout = map.context.model()->layout();
  for (size_t i = 0; i < lease.offsets.size(); ++i) {
    const auto sentence =
        lease.range.first_sentence + static_cast<uint32_t>(i) / lease.range.chunk_count;
    const auto chunk = lease.range.first_chunk + static_cast<uint32_t>(i) % lease.range.chunk_count;
    const Context::ClosedSentence& closed = map.context.sentence(sentence);
    const uint64_t bytes = layout.chunk_bytes(chunk, closed.span.block_count);
    EXPECT_TRUE(has_pattern(world_.memory(lease.offsets[i], bytes), closed.key, chunk))
        << "a chunk that is leased in place has other bytes than were put";
  }
}

void Simulation::need_chunks() {
  std::vector<SentenceUid> fed;
  for (const Session& session : sessions_) {
    for (const FedContext& window : session.windows) {
      fed.insert(fed.end(), window.fed.begin(), window.fed.end());
    }
  }
  if (fed.empty()) return;
  const SentenceUid uid = fed[pick(static_cast<uint32_t>(fed.size()))];
  std::vector<uint32_t> chunks;
  for (uint32_t chunk = 0; chunk < 2; ++chunk) {
    if (world_.data.readable.contains({uid, chunk})) continue;
    chunks.push_back(chunk);
    world_.data.open_needs[{uid, chunk}] = 1;
  }
  world_.placement->need_chunks(uid, chunks, chance(60));
}

void Simulation::work_disk() {
  if (world_.fake != nullptr) {
    world_.fake->drain_some(1 + pick(8));
  } else if (world_.nvme != nullptr) {
    world_.nvme->drain();
  }
}

void Simulation::drop(Session& session) {
  const Context* context = some_context(session);
  if (context == nullptr || context->sentence_count() == 0) return;
  std::vector<Digest> keys;
  uint32_t stored = 0;
  for (uint32_t index = pick(context->sentence_count()); index < context->sentence_count();
       ++index) {
    keys.push_back(context->sentence(index).key);
    stored += graph_.edges.contains(keys.back()) ? 1 : 0;
  }
  world_.placement->drop(keys, [stored](const Result<Placement::DropOutcome>& outcome) {
    if (!outcome.ok()) return;
    EXPECT_EQ(outcome.value().dropped + outcome.value().kept, stored);
  });
}

void Simulation::flush() {
  if (world_.nvme == nullptr) return;
  world_.placement->flush(World::kSpace, [this](Result<uint64_t> count) {
    if (!count.ok()) return;
    ++flushes_;
    EXPECT_LE(count.value(), graph_.edges.size());
  });
}

void Simulation::fault() {
  if (world_.fake == nullptr || !setup_.faults) return;
  switch (pick(4)) {
    case 0:
      world_.fake->failing_writes += 1 + pick(3);
      break;
    case 1:
      world_.fake->refused_writes += 1 + pick(3);
      break;
    case 2:
      world_.fake->failing_reads += 1 + pick(3);
      break;
    default:
      for (int records = 0; records < 4; ++records) {
        const SentenceUid uid = some_stored();
        if (uid != SentenceUid{}) {
          world_.fake->corrupt.insert(world_.directory->find(uid)->key);
        }
      }
  }
}

Simulation::Session* Simulation::find_session(SessionId id) {
  for (Session& session : sessions_) {
    if (session.id == id) return &session;
  }
  return nullptr;
}

}  // namespace skv::test
