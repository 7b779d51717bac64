#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "daemon/context.h"
#include "daemon/directory.h"
#include "daemon/lease_maps.h"
#include "daemon/loop.h"
#include "daemon/placement.h"
#include "tests/daemon/fake_nvme.h"
#include "tests/tiers/simulated_disk.h"
#include "tiers/checksum.h"
#include "tiers/host_store.h"

namespace skv::test {

// Two layers of 64 KiB per 32 tokens: two chunks per sentence, 128 to 256 KiB in all.
inline ModelDescriptor small_model(uint32_t layers = 2, uint16_t block_tokens = 8) {
  ModelDescriptor model;
  model.weights_id = "placement-test";
  model.dtype = BodyDtype::kFp32;
  model.block_tokens = block_tokens;
  LayerDescriptor layer;
  layer.kv_heads = 2;
  layer.queries_per_kv_head = 1;
  layer.k_dim = 128;
  layer.v_dim = 128;
  layer.softmax_scale = 0.1F;
  model.layers.assign(layers, layer);
  return model;
}

// What the bytes of a chunk must be, by the key of its sentence.
inline uint64_t pattern_word(const Digest& key, uint32_t chunk, uint64_t index) {
  uint64_t seed = 0;
  std::memcpy(&seed, key.bytes.data() + 8, sizeof seed);
  return (seed ^ (uint64_t{chunk} << 56)) + index * 0x9E3779B97F4A7C15ULL;
}
inline void fill_pattern(std::span<std::byte> bytes, const Digest& key, uint32_t chunk) {
  for (uint64_t at = 0; at + 8 <= bytes.size(); at += 8) {
    const uint64_t word = pattern_word(key, chunk, at);
    std::memcpy(bytes.data() + at, &word, sizeof word);
  }
}
// Every 61st word, and the last: a chunk that belongs to another sentence differs in all of them.
inline bool has_pattern(std::span<const std::byte> bytes, const Digest& key, uint32_t chunk) {
  const auto same = [&](uint64_t at) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data() + at, sizeof word);
    return word == pattern_word(key, chunk, at);
  };
  for (uint64_t at = 0; at + 8 <= bytes.size(); at += 8 * 61) {
    if (!same(at)) return false;
  }
  return same(bytes.size() - 8);
}

// Stands for the data thread: knows which chunks of fed sentences it may read, and answers
// withdrawals when the test says so.
class FakeDataThread final : public ResidencyListener {
 public:
  using Id = std::pair<SentenceUid, uint32_t>;

  void chunk_arrived(SentenceUid uid, uint32_t chunk, uint64_t offset, Origin) override {
    if (fed.contains(uid)) readable[{uid, chunk}] = offset;  // else it is not known: ignored
    ++arrivals;
    open_needs.erase({uid, chunk});
  }
  void chunk_failed(SentenceUid uid, uint32_t chunk, ErrorCode code) override {
    failures.push_back({{uid, chunk}, code});
    open_needs.erase({uid, chunk});
  }
  void withdraw(SentenceUid uid, uint32_t chunk) override { withdrawals.push_back({uid, chunk}); }

  // FeedSentence, and the last feed of a sentence closed.
  void feed(SentenceUid uid, const std::vector<HostChunk>& chunks) {
    ++fed[uid];
    for (uint32_t chunk = 0; chunk < chunks.size(); ++chunk) {
      if (chunks[chunk].offset != kNoExtent) readable[{uid, chunk}] = chunks[chunk].offset;
    }
  }
  void unfeed(SentenceUid uid) {
    if (--fed[uid] > 0) return;
    fed.erase(uid);
    readable.erase(readable.lower_bound({uid, 0}), readable.upper_bound({uid, ~0U}));
  }

  std::map<SentenceUid, int> fed;
  std::map<Id, uint64_t> readable;
  std::map<Id, int> open_needs;
  std::deque<Id> withdrawals;
  std::vector<std::pair<Id, ErrorCode>> failures;
  uint64_t arrivals = 0;
};

// The parts around one Placement, without threads: the test moves time, the disk and the data
// thread by hand.
class World {
 public:
  struct Options {
    uint64_t host_bytes = 4U << 20;
    uint64_t slab_bytes = 256U << 10;
    uint64_t nvme_bytes = 64U << 20;  // 0: no NVMe tier
    uint64_t nvme_spare_bytes = 0;    // of the fake
    uint64_t vectors_bytes = 0;
    uint32_t layers = 2;
    uint64_t in_place_bytes = 64U << 20;  // LeaseMaps::Limits
    uint32_t chunks_per_turn = kLeaseMapChunksPerTurn;
    // The real NvmeStore on a disk in memory instead of the fake: nvme_bytes is the file.
    bool real_nvme = false;
  };
  static constexpr SpaceId kSpace{1};
  static constexpr uint32_t kUid = 1000;
  static constexpr uint32_t kLeaseMapsMax = 3;  // of a session

  explicit World(const Options& options_in) : options(options_in) {
    model = std::make_shared<const Model>(small_model(options.layers));
    medium = std::make_shared<FakeNvme::Medium>();
    media = std::make_shared<SimulatedMedia>(options.nvme_bytes);
    start();
  }

  void start() {
    host = HostStore::create({options.host_bytes, options.slab_bytes}).value();
    open_nvme();
    if (nvme != nullptr) {
      salt = nvme->space_salt(kUid).value();
      (void)nvme->remember_model(model->fingerprint, encode(model->descriptor()));
    }
    data = FakeDataThread{};
    directory = std::make_unique<Directory>(42);
    lease_maps = std::make_unique<LeaseMaps>(
        loop, *directory,
        LeaseMaps::Limits{kLeaseMapsMax, options.in_place_bytes, options.chunks_per_turn});
    directory->add_listener(lease_maps.get());
    placement = std::make_unique<Placement>(
        PlacementOptions{.vectors_bytes = options.vectors_bytes},
        Placement::Parts{directory.get(), host.get(), nvme.get(), &data, lease_maps.get()});
    lease_maps->set_placement(placement.get());
    ASSERT_TRUE(placement->add_space(kSpace, kUid, quota).ok());
    placement->recover();
    placement->poll(now_ns);
  }
  void open_nvme() {
    fake = nullptr;
    if (options.nvme_bytes == 0) return;
    if (!options.real_nvme) {
      auto made = std::make_unique<FakeNvme>(medium, options.nvme_bytes);
      fake = made.get();
      fake->spare_bytes = options.nvme_spare_bytes;
      nvme = std::move(made);
      return;
    }
    auto opened_disk = std::make_unique<SimulatedDisk>(media, ++disk_seed);
    disk = opened_disk.get();
    NvmeStore::Options store;
    store.file_bytes = options.nvme_bytes;
    store.segment_bytes = 1U << 20;
    auto opened = NvmeStore::open(std::move(opened_disk), store);
    ASSERT_TRUE(opened.ok()) << opened.error().message;
    nvme = std::move(opened).value();
  }
  void stop() {
    fake = nullptr;
    disk = nullptr;
    placement.reset();
    lease_maps.reset();
    directory.reset();
    nvme.reset();
    host.reset();
  }

  Context context(SessionId session, std::shared_ptr<const Model> of = nullptr) const {
    return Context({ContextId{1}, session, kSpace, salt, of == nullptr ? model : of, {}});
  }
  // A context with sentences of `blocks` blocks each over the tokens seed, seed + 1, ...
  Context chain(SessionId session, uint32_t seed, uint32_t sentences, uint32_t blocks = 4) const {
    Context made = context(session);
    ContextAppend append;
    for (uint32_t token = 0; token < sentences * blocks * 8 + 8; ++token) {
      append.tokens.push_back(seed + token);
    }
    for (uint32_t index = 1; index <= sentences; ++index) append.ends.push_back(index * blocks * 8);
    append.ends_final_to = sentences * blocks * 8 + 8;
    EXPECT_TRUE(made.append(append).ok());
    EXPECT_GE(made.sentence_count(), sentences);
    return made;
  }

  // The client's side of a new lease map, by mappings of its own.
  Result<LeaseMapReader> lease_map(LeaseMapId id, const Context& of) {
    const auto shared = std::make_shared<Context>(of);
    Result<LeaseMaps::Opened> opened = lease_maps->open(id, shared, /*sentence_capacity=*/256);
    if (!opened.ok()) return opened.error();
    using Access = MappedMemory::Access;
    const LeaseMaps::Opened& made = opened.value();
    words[id] = MappedMemory::map(made.words.get(), made.bytes, Access::kReadWrite).value();
    return LeaseMapReader::open(
        MappedMemory::map(made.places.get(), made.bytes, Access::kReadOnly).value(),
        MappedMemory::map(made.words.get(), made.bytes, Access::kReadWrite).value(),
        of.model()->layout().chunk_count());
  }

  using Reservations = std::vector<Placement::PutReservation>;
  std::shared_ptr<std::optional<Reservations>> reserve(const Context& context,
                                                       uint32_t first,
                                                       uint32_t count,
                                                       uint64_t wait_ns = 1'000'000) {
    auto answer = std::make_shared<std::optional<Reservations>>();
    Placement::PutRequest request;
    request.session = context.session();
    request.deadline_ns = now_ns + wait_ns;
    for (uint32_t index = first; index < first + count; ++index) {
      request.sentences.push_back(context.describe(*directory, index));
    }
    request.done = [answer](Reservations results) { *answer = std::move(results); };
    placement->put_reserve(std::move(request));
    return answer;
  }

  std::span<std::byte> memory(uint64_t offset, uint64_t bytes) const {
    return host->bytes(kSpace, HostExtent{offset, storage_bytes(bytes)}).first(bytes);
  }

  // What the data thread's copy task does for one sentence.
  void write_body(SentenceUid uid) {
    const Sentence* sentence = directory->find(uid);
    ASSERT_NE(sentence, nullptr);
    const std::vector<uint64_t> extents = placement->extents(uid);
    for (uint32_t chunk = 0; chunk < extents.size(); ++chunk) {
      ASSERT_NE(extents[chunk], kNoExtent);
      const auto bytes = memory(extents[chunk], sentence->shape->chunk_bytes[chunk]);
      fill_pattern(bytes, sentence->key, chunk);
      placement->chunk_written(uid, chunk, checksum(bytes));
    }
  }
  static VectorsBlob vectors_of(const Digest& key) {
    std::vector<std::byte> bytes(256);
    fill_pattern(bytes, key, 99);
    return std::make_shared<const std::vector<std::byte>>(std::move(bytes));
  }
  void add_feed(SentenceUid uid) {
    const std::vector<HostChunk> chunks = placement->host_chunks(uid);
    placement->add_feed(uid);
    data.feed(uid, chunks);
  }
  void remove_feed(SentenceUid uid) {
    placement->remove_feed(uid);
    data.unfeed(uid);
  }
  PutOutcome commit(SessionId session, SentenceUid uid) {
    const Sentence* sentence = directory->find(uid);
    return placement->put_commit(session, uid,
                                 sentence == nullptr ? nullptr : vectors_of(sentence->key));
  }

  // reserve, write, commit; the disk and the data thread work as long as the reservation waits.
  Reservations put(const Context& context, uint32_t first, uint32_t count) {
    auto answer = reserve(context, first, count);
    for (int turn = 0; turn < 1000 && !answer->has_value(); ++turn) settle_once();
    if (!answer->has_value()) {
      now_ns += 2'000'000;
      placement->poll(now_ns);
    }
    for (const auto& result : **answer) {
      if (result.outcome != PutOutcome::kReserved) continue;
      write_body(result.uid);
      EXPECT_EQ(commit(context.session(), result.uid), PutOutcome::kCommitted);
    }
    return **answer;
  }

  // What start(done) answers.
  template <typename Answer, typename Start>
  Answer wait_for(Start start) {
    auto answer = std::make_shared<std::optional<Answer>>();
    start([answer](const Answer& result) { *answer = result; });
    for (int turn = 0; turn < 1000 && !answer->has_value(); ++turn) settle_once();
    SKV_CHECK(answer->has_value(), "no answer came");
    return **answer;
  }

  void answer_withdrawals(size_t count = ~size_t{0}) {
    for (; count > 0 && !data.withdrawals.empty(); --count) {
      const FakeDataThread::Id id = data.withdrawals.front();
      data.withdrawals.pop_front();
      data.readable.erase(id);
      placement->withdraw_done(id.first, id.second);
    }
  }
  void settle_once() {
    if (nvme != nullptr) nvme->drain();
    answer_withdrawals();
    lease_maps->run_pending();
    placement->poll(now_ns);
  }
  void settle() {
    for (int turn = 0; turn < 64; ++turn) settle_once();
  }

  Options options;
  SpaceQuota quota;
  std::shared_ptr<const Model> model;
  std::shared_ptr<FakeNvme::Medium> medium;
  std::shared_ptr<SimulatedMedia> media;
  uint64_t disk_seed = 1;
  Digest salt;
  uint64_t now_ns = 1'000'000'000;
  std::unique_ptr<HostStore> host;
  std::unique_ptr<NvmeStore> nvme;
  FakeNvme* fake = nullptr;       // `nvme`, where it is the fake
  SimulatedDisk* disk = nullptr;  // under `nvme`, where it is the real one
  FakeDataThread data;
  Loop loop;                                 // takes no turns: settle() shows what is to be shown
  std::map<LeaseMapId, MappedMemory> words;  // of lease maps, for clients that write rubbish
  std::unique_ptr<Directory> directory;
  std::unique_ptr<LeaseMaps> lease_maps;
  std::unique_ptr<Placement> placement;
};

}  // namespace skv::test
