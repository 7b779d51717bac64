#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/daemon/placement_world.h"

namespace skv::test {

// What must be true, kept beside the daemon's own tables by what it announced.
class NaiveGraph final : public DirectoryListener {
 public:
  struct Edge {
    Digest start, end;
    uint32_t first_position = 0;
    uint32_t token_count = 0;
  };
  void sentence_stored(const Sentence& sentence) override {
    const bool fresh =
        edges
            .emplace(sentence.key, Edge{sentence.start->key, sentence.end->key,
                                        sentence.first_position, sentence.token_count()})
            .second;
    EXPECT_TRUE(fresh);
  }
  void sentence_removed(const Sentence& sentence) override {
    EXPECT_EQ(edges.erase(sentence.key), 1U);
  }
  // Edges that a walk from the roots arrives at.
  size_t reachable() const {
    std::set<Digest> nodes;
    std::set<Digest> seen;
    for (bool grew = true; grew;) {
      grew = false;
      for (const auto& [key, edge] : edges) {
        if (edge.first_position != 0 && !nodes.contains(edge.start)) continue;
        if (!seen.insert(key).second) continue;
        nodes.insert(edge.end);
        grew = true;
      }
    }
    return seen.size();
  }
  std::map<Digest, Edge> edges;
};

// Several fake sessions over documents that share prefixes, a data thread and a disk that answer
// late and in any order, faults, ends of sessions and restarts; all from one seed.
class Simulation {
 public:
  struct Setup {
    uint64_t seed = 1;
    World::Options world;
    uint64_t host_quota = 0;
    bool faults = false;
    uint32_t restart_every = 300;  // steps, at most so often
  };

  explicit Simulation(const Setup& setup)
      : setup_(setup), random_(setup.seed), world_(setup.world) {
    make_documents();
    world_.stop();
    world_.quota.host_bytes = setup.host_quota;
    restart_world();
  }

  void run(uint32_t steps) {
    for (step_ = 0; step_ < steps && !::testing::Test::HasFailure(); ++step_) {
      one_step();
      check_some();
      if (step_ % 16 == 0) check_all();
    }
    finish();
  }
  const PlacementCounters& counters() const { return totals_; }
  uint64_t matches() const { return matches_; }
  uint64_t restarts() const { return restarts_; }
  uint64_t flushes() const { return flushes_; }

 private:
  static constexpr uint32_t kSessions = 4;
  static constexpr uint32_t kTokens = 640;

  struct OpenPut {
    SentenceUid uid{};
    bool written = false;
  };
  struct FedContext {
    std::vector<SentenceUid> fed;
  };
  struct Session {
    SessionId id{};
    std::vector<Context> contexts;
    std::vector<OpenPut> puts;
    std::vector<SentenceUid> sentence_leases;
    std::vector<FedContext> windows;
    uint32_t requests = 0;  // not answered yet
  };

  uint32_t pick(uint32_t below) { return static_cast<uint32_t>(random_() % below); }
  bool chance(uint32_t percent) { return pick(100) < percent; }

  void make_documents() {
    for (uint32_t document = 0; document < 6; ++document) {
      std::vector<uint32_t> tokens(kTokens);
      const uint32_t shared = document == 0 ? 0 : 32 * pick(kTokens / 32);
      for (uint32_t at = 0; at < kTokens; ++at) {
        tokens[at] = at < shared ? documents_[pick_parent(document)][at] : document * 100'000 + at;
      }
      documents_.push_back(std::move(tokens));
    }
  }
  static uint32_t pick_parent(uint32_t document) { return (document - 1) / 2; }

  void restart_world() {
    world_.start();
    graph_ = NaiveGraph{};
    // What recovery stored was announced before anybody listened.
    world_.directory->for_each([this](Sentence& sentence) { graph_.sentence_stored(sentence); });
    world_.directory->set_listener(&graph_);
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
  Session new_session() {
    Session session;
    session.id = SessionId{next_session_++};
    return session;
  }

  void one_step() {
    Session& session = sessions_[pick(kSessions)];
    const uint32_t dice = pick(1000);
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
    return restart();
  }

  void open_context(Session& session) {
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

  const Context* some_context(const Session& session) {
    if (session.contexts.empty()) return nullptr;
    return &session.contexts[pick(static_cast<uint32_t>(session.contexts.size()))];
  }

  void reserve(Session& session) {
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

  void write_or_commit(Session& session) {
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

  void cancel(Session& session) {
    if (session.puts.empty()) return;
    const uint32_t at = pick(static_cast<uint32_t>(session.puts.size()));
    EXPECT_EQ(world_.placement->put_cancel(session.id, session.puts[at].uid),
              PutOutcome::kCancelled);
    session.puts.erase(session.puts.begin() + at);
  }

  // Against a search by keys alone, which knows nothing of boundaries.
  void match(Session& session) {
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

  SentenceUid some_stored() {
    if (graph_.edges.empty()) return {};
    auto at = graph_.edges.begin();
    std::advance(at, pick(static_cast<uint32_t>(graph_.edges.size())));
    return world_.directory->find(at->first)->uid;
  }

  void acquire(Session& session) {
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
                                 ASSERT_NE(owner, nullptr)
                                     << "an answer to a session that has ended";
                                 --owner->requests;
                                 if (lease.ok()) leases_.push_back({lease.value(), key});
                               }});
  }

  void get_vectors(Session& session) {
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

  void release_chunk() {
    if (leases_.empty()) return;
    const uint32_t at = pick(static_cast<uint32_t>(leases_.size()));
    const Held held = leases_[at];
    expect_bytes(held);
    leases_.erase(leases_.begin() + at);
    world_.placement->release(held.lease);
  }

  void lease_sentence(Session& session) {
    const SentenceUid uid = some_stored();
    if (uid == SentenceUid{} || session.sentence_leases.size() > 3) return;
    ASSERT_TRUE(world_.placement->lease_sentence(session.id, uid));
    session.sentence_leases.push_back(uid);
  }
  void release_sentence(Session& session) {
    if (session.sentence_leases.empty()) return;
    world_.placement->release_sentence(session.id, session.sentence_leases.back());
    session.sentence_leases.pop_back();
  }

  void open_window(Session& session) {
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
  void forget_window(Session& session, bool return_leases) {
    const FedContext window = std::move(session.windows.back());
    session.windows.pop_back();
    for (const SentenceUid uid : window.fed) {
      world_.remove_feed(uid);
      if (return_leases) world_.placement->release_sentence(session.id, uid);
    }
  }
  void close_window(Session& session) {
    if (!session.windows.empty()) forget_window(session, true);
  }

  void need_chunks() {
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

  void work_disk() {
    if (world_.fake != nullptr) {
      world_.fake->drain_some(1 + pick(8));
    } else if (world_.nvme != nullptr) {
      world_.nvme->drain();
    }
  }
  void pass_time() {
    world_.now_ns += pick(8'000'000);
    world_.placement->poll(world_.now_ns);
  }

  void drop(Session& session) {
    const Context* context = some_context(session);
    if (context == nullptr || context->sentence_count() == 0) return;
    std::vector<Digest> keys;
    uint32_t stored = 0;
    for (uint32_t index = pick(context->sentence_count()); index < context->sentence_count();
         ++index) {
      keys.push_back(context->sentence(index).key);
      stored += graph_.edges.contains(keys.back()) ? 1 : 0;
    }
    const Placement::DropOutcome outcome = world_.placement->drop(keys);
    EXPECT_EQ(outcome.dropped + outcome.kept, stored);
  }

  void flush() {
    if (world_.nvme == nullptr) return;
    world_.placement->flush(World::kSpace, [this](Result<uint64_t> count) {
      if (!count.ok()) return;
      ++flushes_;
      EXPECT_LE(count.value(), graph_.edges.size());
    });
  }

  void fault() {
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

  Session* find_session(SessionId id) {
    for (Session& session : sessions_) {
      if (session.id == id) return &session;
    }
    return nullptr;
  }

  void end_session(Session& session) {
    while (!session.windows.empty()) forget_window(session, chance(50));
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

  void add_totals() {
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

  // With or without a flush before it: what was flushed is there again, and nothing that no root
  // reaches.
  void restart() {
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
  std::set<Digest> flush_all() {
    bool done = false;
    std::set<Digest> durable;
    world_.placement->flush(World::kSpace, [&](Result<uint64_t> count) {
      done = true;
      if (!count.ok()) return;  // a fault
      for (const auto& [key, edge] : graph_.edges) durable.insert(key);
      EXPECT_EQ(count.value(), durable.size());
      ++flushes_;
    });
    for (int turn = 0; turn < 400 && !done; ++turn) world_.settle_once();
    EXPECT_TRUE(done) << "a flush did not end";
    // What left the directory since (corrupt, found by a read in the same turn) need not come back.
    std::erase_if(durable, [this](const Digest& key) { return !graph_.edges.contains(key); });
    return durable;
  }
  void check_recovered(const std::set<Digest>& durable) {
    for (const Digest& key : durable) {
      EXPECT_TRUE(graph_.edges.contains(key)) << "a durable sentence did not come back";
    }
    EXPECT_EQ(graph_.reachable(), graph_.edges.size());
    EXPECT_EQ(world_.nvme->records().size(), graph_.edges.size());  // the others were erased
    if (world_.fake == nullptr) return;
    // The fake forgets nothing, so what is reachable among its records is exactly what comes back.
    EXPECT_EQ(graph_.edges.size(), expected_after_restart_);
  }
  size_t reachable_records() const {
    NaiveGraph records;
    for (const BodyRecordRef& record : world_.nvme->records()) {
      records.edges[record->key] = {record->parent_boundary, record->end_boundary,
                                    record->first_position, record->token_count};
    }
    return records.reachable();
  }

  struct Held {
    ChunkLease lease;
    Digest key;
  };
  void expect_bytes(const Held& held) {
    EXPECT_TRUE(has_pattern(world_.memory(held.lease.host_offset, held.lease.bytes), held.key,
                            held.lease.chunk))
        << "a leased chunk has other bytes than were put";
  }

  void check_some() {
    if (!leases_.empty()) expect_bytes(leases_[pick(static_cast<uint32_t>(leases_.size()))]);
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

  void check_all() {
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

  // Everybody leaves, everything is dropped: nothing may be left anywhere.
  void finish() {
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
      EXPECT_GT(world_.placement->drop(keys).dropped, 0U);
      world_.settle();
    }
    const PlacementUsage usage = world_.placement->usage();
    EXPECT_EQ(usage.host_bytes, 0U);
    EXPECT_EQ(usage.nvme_sentences, 0U);
    EXPECT_EQ(usage.vectors_bytes, 0U);
    EXPECT_EQ(usage.chunk_leases + usage.sentence_leases + usage.reads_in_flight +
                  usage.writes_in_flight + usage.waiting,
              0U);
    EXPECT_EQ(world_.directory->sentence_count(), 0U);
    EXPECT_EQ(world_.directory->boundary_count(), 0U);
    EXPECT_EQ(world_.host->stats().extents, 0U);
    if (world_.nvme != nullptr) {
      EXPECT_EQ(world_.nvme->records().size(), 0U);
    }
    add_totals();
  }

  Setup setup_;
  std::mt19937_64 random_;
  World world_;
  NaiveGraph graph_;
  std::vector<std::vector<uint32_t>> documents_;
  std::vector<Session> sessions_;
  std::vector<Held> leases_;
  PlacementCounters totals_;
  uint32_t next_session_ = 1;
  uint32_t step_ = 0;
  uint64_t matches_ = 0;
  uint64_t restarts_ = 0;
  uint64_t flushes_ = 0;
  size_t expected_after_restart_ = 0;
};

}  // namespace skv::test
