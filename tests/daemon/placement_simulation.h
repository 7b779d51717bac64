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

  explicit Simulation(const Setup& setup);

  void run(uint32_t steps);
  const PlacementCounters& counters() const { return totals_; }
  uint64_t matches() const { return matches_; }
  uint64_t restarts() const { return restarts_; }
  uint64_t flushes() const { return flushes_; }
  uint64_t leases_in_place() const { return leases_in_place_; }
  uint64_t refused_in_place() const { return refused_in_place_; }

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
  // A lease map as its client has it, and what it has leased by it.
  struct InPlace {
    struct Lease {
      LeaseMapReader::Range range;
      std::vector<uint64_t> offsets;
    };
    LeaseMapId id{};
    Context context;
    LeaseMapReader reader;
    std::vector<Lease> leases;
  };
  struct Session {
    SessionId id{};
    std::vector<Context> contexts;
    std::vector<OpenPut> puts;
    std::vector<SentenceUid> sentence_leases;
    std::vector<FedContext> windows;
    std::vector<InPlace> maps;
    uint32_t requests = 0;  // not answered yet
  };

  uint32_t pick(uint32_t below) { return static_cast<uint32_t>(random_() % below); }
  bool chance(uint32_t percent) { return pick(100) < percent; }

  void make_documents();
  static uint32_t pick_parent(uint32_t document) { return (document - 1) / 2; }

  void restart_world();
  Session new_session() {
    Session session;
    session.id = SessionId{next_session_++};
    return session;
  }

  void one_step();
  void open_context(Session& session);

  const Context* some_context(const Session& session) {
    if (session.contexts.empty()) return nullptr;
    return &session.contexts[pick(static_cast<uint32_t>(session.contexts.size()))];
  }

  void reserve(Session& session);
  void write_or_commit(Session& session);
  void cancel(Session& session);

  // Against a search by keys alone, which knows nothing of boundaries.
  void match(Session& session);
  SentenceUid some_stored();
  void acquire(Session& session);
  void get_vectors(Session& session);
  void release_chunk();
  void lease_sentence(Session& session);
  void release_sentence(Session& session) {
    if (session.sentence_leases.empty()) return;
    world_.placement->release_sentence(session.id, session.sentence_leases.back());
    session.sentence_leases.pop_back();
  }

  void open_window(Session& session);
  void forget_window(Session& session, bool return_leases);
  void close_window(Session& session) {
    if (!session.windows.empty()) forget_window(session, true);
  }

  void open_map(Session& session);
  void lease_in_place(Session& session);
  void give_back_in_place(Session& session);
  void close_map(Session& session);
  void expect_bytes(const InPlace& map, const InPlace::Lease& lease);

  void need_chunks();
  void work_disk();
  void pass_time() {
    world_.now_ns += pick(8'000'000);
    world_.placement->poll(world_.now_ns);
  }

  void drop(Session& session);
  void flush();
  void fault();

  Session* find_session(SessionId id);
  void end_session(Session& session);
  void add_totals();

  // With or without a flush before it: what was flushed is there again, and nothing that no root
  // reaches.
  void restart();
  std::set<Digest> flush_all();
  void check_recovered(const std::set<Digest>& durable);
  size_t reachable_records() const;

  struct Held {
    ChunkLease lease;
    Digest key;
  };
  void expect_bytes(const Held& held) {
    EXPECT_TRUE(has_pattern(world_.memory(held.lease.host_offset, held.lease.bytes), held.key,
                            held.lease.chunk))
        << "a leased chunk has other bytes than were put";
  }

  void check_some();
  void check_all();

  // Everybody leaves, everything is dropped: nothing may be left anywhere.
  void finish();

  Setup setup_;
  std::mt19937_64 random_;
  World world_;
  NaiveGraph graph_;
  std::vector<std::vector<uint32_t>> documents_;
  std::vector<Session> sessions_;
  std::vector<Held> leases_;
  PlacementCounters totals_;
  uint32_t next_session_ = 1;
  uint32_t next_map_ = 1;
  uint64_t leases_in_place_ = 0;
  uint64_t refused_in_place_ = 0;
  uint32_t step_ = 0;
  uint64_t matches_ = 0;
  uint64_t restarts_ = 0;
  uint64_t flushes_ = 0;
  size_t expected_after_restart_ = 0;
};

}  // namespace skv::test
