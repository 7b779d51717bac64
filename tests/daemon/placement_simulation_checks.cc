// What must hold after a step, an end of a session, a restart and at the end.
#include <chrono>
#include <thread>

#include "tests/daemon/placement_simulation.h"

namespace skv::test {

void Simulation::restart_world() {
  world_.start();
  graph_ = NaiveGraph{};
  // What recovery stored was announced before anybody listened.
  world_.directory->for_each([this](Sentence& sentence) { graph_.sentence_stored(sentence); });
  world_.directory->add_listener(&graph_);
  if (world_.fake != nullptr) {
    world_.fake->shuffle = true;
    world_.fake->random.seed(random_());
    world_.fake->transfers_max = 12;
  }
  if (world_.disk != nullptr && setup_.faults) {
    SimulatedFaults faults;
    faults.read_error = 4;
    faults.read_flip = 2;
    faults.late = 300;
    world_.disk->set_faults(faults);
  }
  sessions_.clear();
  leases_.clear();
  for (uint32_t index = 0; index < kSessions; ++index) sessions_.push_back(new_session());
}

void Simulation::forget_window(Session& session, bool return_leases) {
  const FedContext window = std::move(session.windows.back());
  session.windows.pop_back();
  for (const SentenceUid uid : window.fed) {
    world_.remove_feed(uid);
    if (return_leases) world_.placement->release_sentence(session.id, uid);
  }
}

void Simulation::end_session(Session& session) {
  while (!session.windows.empty()) forget_window(session, chance(50));
  for (const InPlace& map : session.maps) {
    for (const InPlace::Lease& lease : map.leases) expect_bytes(map, lease);
    world_.words.erase(map.id);
  }
  world_.lease_maps->session_closed(session.id);
  world_.placement->end_session(session.id);
  const SessionCharge charge = world_.placement->charge(session.id);
  EXPECT_EQ(charge.sentence_leases + charge.open_puts + charge.requests, 0U);
  // Its copy tasks end.
  for (size_t at = leases_.size(); at-- > 0;) {
    if (leases_[at].lease.session != session.id) continue;
    const Held held = leases_[at];
    expect_bytes(held);
    leases_.erase(leases_.begin() + static_cast<std::ptrdiff_t>(at));
    world_.placement->release(held.lease);
  }
  EXPECT_TRUE(world_.placement->charge(session.id).zero());
  session = new_session();
}

void Simulation::add_totals() {
  const PlacementCounters& now = world_.placement->counters();
  totals_.promotions += now.promotions;
  totals_.demotions += now.demotions;
  totals_.evictions_host += now.evictions_host;
  totals_.evictions_nvme += now.evictions_nvme;
  totals_.evictions_corrupt += now.evictions_corrupt;
  totals_.host_hits += now.host_hits;
  totals_.nvme_hits += now.nvme_hits;
  totals_.recovered += now.recovered;
  totals_.recovered_unreachable += now.recovered_unreachable;
  totals_.reserve_waits += now.reserve_waits;
  totals_.vectors_dropped += now.vectors_dropped;
}

void Simulation::restart() {
  if (world_.nvme == nullptr || restarts_ * setup_.restart_every > step_) return;
  ++restarts_;
  std::set<Digest> durable;
  if (chance(50)) durable = flush_all();
  add_totals();
  expected_after_restart_ = reachable_records();
  world_.stop();
  if (world_.options.real_nvme) world_.media->power_cut(random_);
  restart_world();
  check_recovered(durable);
}

std::set<Digest> Simulation::flush_all() {
  bool done = false;
  std::set<Digest> durable;
  world_.placement->flush(World::kSpace, [&](Result<uint64_t> count) {
    done = true;
    if (!count.ok()) return;  // a fault
    for (const auto& [key, edge] : graph_.edges) durable.insert(key);
    EXPECT_EQ(count.value(), durable.size());
    ++flushes_;
  });
  // The real store has a thread of its own, which a busy machine may let wait for long.
  for (int turn = 0; turn < 10'000 && !done; ++turn) {
    world_.settle_once();
    if (turn >= 100) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_TRUE(done) << "a flush did not end";
  // What left the directory since (corrupt, found by a read in the same turn) need not come back.
  std::erase_if(durable, [this](const Digest& key) { return !graph_.edges.contains(key); });
  return durable;
}

void Simulation::check_recovered(const std::set<Digest>& durable) {
  for (const Digest& key : durable) {
    EXPECT_TRUE(graph_.edges.contains(key)) << "a durable sentence did not come back";
  }
  EXPECT_EQ(graph_.reachable(), graph_.edges.size());
  EXPECT_EQ(world_.nvme->records().size(), graph_.edges.size());  // the others were erased
  if (world_.fake == nullptr) return;
  // The fake forgets nothing, so what is reachable among its records is exactly what comes back.
  EXPECT_EQ(graph_.edges.size(), expected_after_restart_);
}

size_t Simulation::reachable_records() const {
  NaiveGraph records;
  for (const BodyRecordRef& record : world_.nvme->records()) {
    records.edges[record->key] = {record->parent_boundary, record->end_boundary,
                                  record->first_position, record->token_count};
  }
  return records.reachable();
}

void Simulation::check_some() {
  if (!leases_.empty()) expect_bytes(leases_[pick(static_cast<uint32_t>(leases_.size()))]);
  for (const Session& session : sessions_) {
    for (const InPlace& map : session.maps) {
      if (!map.leases.empty()) expect_bytes(map, map.leases.back());
    }
  }
  auto& readable = world_.data.readable;
  if (readable.empty()) return;
  auto at = readable.begin();
  std::advance(at, pick(static_cast<uint32_t>(readable.size())));
  const Sentence* sentence = world_.directory->find(at->first.first);
  if (sentence == nullptr) return;  // corrupt, and its withdrawal is under way
  const uint32_t chunk = at->first.second;
  EXPECT_TRUE(has_pattern(world_.memory(at->second, sentence->shape->chunk_bytes[chunk]),
                          sentence->key, chunk))
      << "the data thread reads other bytes than were put";
}

void Simulation::check_all() {
  EXPECT_EQ(graph_.reachable(), graph_.edges.size()) << "a stored sentence is not reachable";
  size_t stored = 0;
  world_.directory->for_each([&](const Sentence& sentence) {
    if (sentence.state != SentenceState::kStored) return;
    ++stored;
    EXPECT_TRUE(graph_.edges.contains(sentence.key));
    const auto chunks = world_.placement->host_chunks(sentence.uid);
    const bool whole = std::all_of(chunks.begin(), chunks.end(), [](const HostChunk& chunk) {
      return chunk.offset != kNoExtent;
    });
    EXPECT_TRUE(whole || sentence.on_nvme) << "a stored sentence is in no tier";
    if (sentence.on_nvme) {
      EXPECT_NE(world_.nvme->find(sentence.key), nullptr);
    }
  });
  EXPECT_EQ(stored, graph_.edges.size());
  // Only corruption takes what is leased.
  const bool corrupt = world_.placement->counters().evictions_corrupt > 0;
  uint32_t sentence_leases = 0;
  for (const Session& session : sessions_) {
    for (const SentenceUid uid : session.sentence_leases) {
      EXPECT_TRUE(corrupt || world_.directory->find(uid) != nullptr);
    }
    sentence_leases += static_cast<uint32_t>(session.sentence_leases.size());
    for (const FedContext& window : session.windows) {
      sentence_leases += static_cast<uint32_t>(window.fed.size());
    }
    const SessionCharge charge = world_.placement->charge(session.id);
    EXPECT_EQ(charge.requests, session.requests);
  }
  const PlacementUsage usage = world_.placement->usage();
  EXPECT_EQ(usage.sentence_leases, sentence_leases);
  EXPECT_EQ(usage.chunk_leases, leases_.size());
  EXPECT_LE(world_.host->stats().charged_bytes, world_.options.host_bytes);
  if (setup_.host_quota > 0) {
    EXPECT_LE(usage.host_bytes, setup_.host_quota);
  }
  if (world_.fake != nullptr) {
    EXPECT_LE(world_.fake->used_bytes(), world_.options.nvme_bytes);
  }
}

void Simulation::finish() {
  for (Session& session : sessions_) end_session(session);
  for (int turn = 0; turn < 200; ++turn) {
    world_.settle_once();
    world_.now_ns += 1'000'000'000;
  }
  EXPECT_TRUE(world_.data.open_needs.empty()) << "a need was never answered";
  check_all();
  while (!graph_.edges.empty() && !::testing::Test::HasFailure()) {
    std::vector<std::pair<uint32_t, Digest>> order;
    for (const auto& [key, edge] : graph_.edges) order.emplace_back(edge.first_position, key);
    std::sort(order.begin(), order.end());
    std::vector<Digest> keys;
    for (const auto& [position, key] : order) keys.push_back(key);
    const auto dropped = world_.wait_for<Result<Placement::DropOutcome>>(
        [&](auto done) { world_.placement->drop(keys, std::move(done)); });
    EXPECT_TRUE(!dropped.ok() || dropped.value().dropped > 0U);
    world_.settle();
  }
  const PlacementUsage usage = world_.placement->usage();
  EXPECT_EQ(usage.host_bytes, 0U);
  EXPECT_EQ(usage.nvme_sentences, 0U);
  EXPECT_EQ(usage.vectors_bytes, 0U);
  EXPECT_EQ(usage.chunk_leases + usage.sentence_leases + usage.reads_in_flight +
                usage.writes_in_flight + usage.waiting,
            0U);
  EXPECT_EQ(world_.lease_maps->usage().maps + world_.lease_maps->usage().bytes, 0U);
  EXPECT_EQ(world_.directory->sentence_count(), 0U);
  EXPECT_EQ(world_.directory->boundary_count(), 0U);
  EXPECT_EQ(world_.host->stats().extents, 0U);
  if (world_.nvme != nullptr) {
    EXPECT_EQ(world_.nvme->records().size(), 0U);
  }
  add_totals();
}

}  // namespace skv::test
