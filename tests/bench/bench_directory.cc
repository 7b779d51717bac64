// The directory at scale: 1M sentences in 1K contexts of a Llama-3-8B shape (32 chunks each).
//
//   directory.bytes     what a sentence on NVMe takes in all that the loop keeps of it (graph,
//                       tables, queues, placement, the space's shared directory), beside vectors,
//                       slots and what the store has of its record; by an allocator that counts
//                       what is live, and the length of the shared memory
//   directory.host      the same of a sentence whose 32 chunks are in host memory, beside the first
//   directory.append    sentences per second through Context::append, against SHA-256 of the bytes
//                       that identity hashes
//   directory.put       reserve, 32 sums, commit
//   directory.match     sentences per second of Context::match over whole contexts
//   directory.restart   Placement::recover() of all of them
//   directory.local     microseconds per sentence of a look into the shared directory, chains in
//                       turn, so that little of it is in a cache
//
// Bodies are synthetic: host memory is reserved and never written, the NVMe store keeps records
// only.
#include <malloc.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <new>
#include <random>
#include <vector>

#include "daemon/context.h"
#include "daemon/directory.h"
#include "daemon/placement.h"
#include "daemon/shared_directories.h"
#include "tests/bench/report.h"
#include "tiers/host_store.h"
#include "tiers/nvme_store.h"

namespace {

int64_t live_bytes = 0;  // one thread allocates

void* counted(std::size_t bytes) {
  void* const memory = std::malloc(bytes);
  if (memory == nullptr) std::abort();
  live_bytes += static_cast<int64_t>(malloc_usable_size(memory) + sizeof(size_t));
  return memory;
}
void uncounted(void* memory) {
  if (memory == nullptr) return;
  live_bytes -= static_cast<int64_t>(malloc_usable_size(memory) + sizeof(size_t));
  std::free(memory);
}

}  // namespace

void* operator new(std::size_t bytes) { return counted(bytes); }
void* operator new[](std::size_t bytes) { return counted(bytes); }
void operator delete(void* memory) noexcept { uncounted(memory); }
void operator delete[](void* memory) noexcept { uncounted(memory); }
void operator delete(void* memory, std::size_t) noexcept { uncounted(memory); }
void operator delete[](void* memory, std::size_t) noexcept { uncounted(memory); }

namespace skv::bench {
namespace {

constexpr SpaceId kSpace{1};
constexpr uint32_t kUid = 1000;
constexpr SessionId kSession{1};

// Records without bodies: what a recovery would list.
class RecordStore final : public NvmeStore {
 public:
  Result<StoreOutcome> put(BodyPut& put) override {
    records_.push_back(std::make_shared<const BodyRecord>(std::move(put.record)));
    ready_.push_back(std::move(put.done));
    return StoreOutcome::kAccepted;
  }
  Result<BodyReadOutcome> read(BodyRead&) override { return BodyReadOutcome::kUnknown; }
  BodyReadOutcome read_vectors(const Digest&, std::function<void(Result<VectorsBlob>)>) override {
    return BodyReadOutcome::kUnknown;
  }
  void erase(const Digest&) override {}
  Result<StoreOutcome> put_vectors(const Digest&,
                                   const IndexDescriptor&,
                                   VectorsBlob,
                                   BodyDone) override {
    return StoreOutcome::kFull;
  }
  void purge(std::span<const Digest>, BodyDone done) override { ready_.push_back(std::move(done)); }
  void flush(BodyDone done) override { ready_.push_back(std::move(done)); }
  BodyRecordRef find(const Digest&) const override { return nullptr; }
  std::vector<BodyRecordRef> records() const override { return records_; }
  void drain() override {
    std::deque<BodyDone> ready;
    ready.swap(ready_);
    for (BodyDone& done : ready) done({});
  }
  int wake_fd() const override { return -1; }
  uint32_t transfers_in_flight() const override { return static_cast<uint32_t>(ready_.size()); }
  Result<Digest> space_salt(uint32_t) override { return Digest{}; }
  Result<void> remember_model(const Digest&, const std::vector<uint8_t>& descriptor) override {
    models_.push_back(descriptor);
    return {};
  }
  std::vector<std::vector<uint8_t>> models() const override { return models_; }
  uint64_t record_bytes_max() const override { return 1U << 30; }
  uint64_t erase_ahead_bytes() const override { return 0; }
  Stats stats() const override { return {}; }

  void add(BodyRecord record) {
    records_.push_back(std::make_shared<const BodyRecord>(std::move(record)));
  }

 private:
  std::vector<BodyRecordRef> records_;
  std::vector<std::vector<uint8_t>> models_;
  std::deque<BodyDone> ready_;
};

class NoResidency final : public ResidencyListener {
 public:
  void chunk_arrived(SentenceUid, uint32_t, uint64_t, Origin) override {}
  void chunk_failed(SentenceUid, uint32_t, ErrorCode) override {}
  void withdraw(SentenceUid, uint32_t) override {}
};

ModelDescriptor llama_3_8b() {
  ModelDescriptor model;
  model.weights_id = "llama-3-8b";
  model.dtype = BodyDtype::kFp16;
  model.block_tokens = 8;
  LayerDescriptor layer;
  layer.kv_heads = 8;
  layer.queries_per_kv_head = 4;
  layer.k_dim = 128;
  layer.v_dim = 128;
  layer.softmax_scale = 0.088F;
  model.layers.assign(32, layer);
  return model;
}

class Bench {
 public:
  explicit Bench(Report& report)
      : report_(report),
        sentences_per_context_(1000),
        context_count_(report.quick() ? 20 : 1000),
        model_(std::make_shared<const Model>(llama_3_8b())) {
    (void)store_.remember_model(model_->fingerprint, encode(model_->descriptor()));
  }

  void run() {
    append_all();
    restart();
    match_some();
    local_match_some();
    put_some();
  }

 private:
  // The same context for the same number, each time.
  Context context(uint32_t number) const {
    Context made({ContextId{number + 1}, kSession, kSpace, Digest{}, model_, IndexDescriptor{}});
    std::mt19937 random(number);
    ContextAppend piece;
    while (made.sentence_count() < sentences_per_context_) {
      piece.first_position = made.token_count();
      piece.tokens.clear();
      piece.ends.clear();
      uint32_t end = piece.first_position;
      for (;;) {
        end += 8 + random() % 24;  // an end of a sentence every 8 to 31 tokens
        if (end > piece.first_position + 4096) break;
        piece.ends.push_back(end);
      }
      for (uint32_t token = 0; token < 4096; ++token) piece.tokens.push_back(random());
      piece.ends_final_to = piece.first_position + 4096;
      if (!made.append(piece).ok()) std::abort();
    }
    return made;
  }

  std::string scale() const {
    return std::to_string(context_count_ * sentences_per_context_) + " sentences in " +
           std::to_string(context_count_) + " contexts";
  }

  void append_all() {
    Directory shapes(1);
    double seconds = 0;
    uint64_t blocks = 0;
    for (uint32_t number = 0; number < context_count_; ++number) {
      const double before = now();
      const Context made = context(number);
      seconds += now() - before;
      blocks += made.closed_blocks();
      for (uint32_t index = 0; index < sentences_per_context_; ++index) {
        const Directory::NewSentence sentence = made.describe(shapes, index);
        BodyRecord record;
        record.key = sentence.key;
        record.space_uid = kUid;
        record.fingerprint = model_->fingerprint;
        record.parent_boundary = sentence.start_key;
        record.end_boundary = sentence.end_key;
        record.end_digest = sentence.end_prefix;
        record.first_position = sentence.first_position;
        record.token_count = sentence.shape->token_count;
        record.chunk_bytes = sentence.shape->chunk_bytes;
        store_.add(std::move(record));
      }
    }
    const double count = 1.0 * context_count_ * sentences_per_context_;
    report_.add({.name = "directory.append",
                 .of = "Context::append, " + scale(),
                 .value = count / seconds,
                 .unit = "1/s",
                 .limit = count / hash_seconds(blocks, context_count_ * sentences_per_context_),
                 .limit_name = "SHA-256 of what identity hashes"});
  }

  // Of the digests of so many blocks (a prefix, a boundary) and sentences, by libcrypto.
  static double hash_seconds(uint64_t blocks, uint64_t sentences) {
    constexpr int kRound = 20'000;
    std::vector<uint8_t> prefix(64 + 4 * 8);
    std::vector<uint8_t> key(116);
    std::vector<double> rounds;
    for (int round = 0; round < 5; ++round) {
      const double before = now();
      for (int i = 0; i < kRound; ++i) prefix[0] ^= sha256(prefix).bytes[0];
      const double between = now();
      for (int i = 0; i < kRound; ++i) key[0] ^= sha256(key).bytes[0];
      const double after = now();
      rounds.push_back(((between - before) * static_cast<double>(blocks) +
                        (after - between) * static_cast<double>(blocks + sentences)) /
                       kRound);
    }
    return median(rounds);
  }

  void restart() {
    // Sparse: room for some 1,600 bodies; nothing of it is ever written.
    host_ = HostStore::create({.budget_bytes = 8ULL << 30}).value();
    const int64_t before = live_bytes;
    const double started = now();
    directory_ = std::make_unique<Directory>(42);
    shared_ = std::make_unique<SharedDirectories>(64ULL << 20);
    if (!shared_->add_space(kSpace).ok()) std::abort();
    directory_->set_edge_mirror(shared_.get());
    placement_ = std::make_unique<Placement>(
        PlacementOptions{}, Placement::Parts{directory_.get(), host_.get(), &store_, &residency_});
    if (!placement_->add_space(kSpace, kUid, {}).ok()) std::abort();
    placement_->recover();
    const double seconds = now() - started;
    const auto count = static_cast<double>(directory_->sentence_count());
    const auto shared_bytes = static_cast<int64_t>(shared_->usage().bytes);
    if (shared_->usage().incomplete != 0) std::abort();
    if (directory_->sentence_count() != context_count_ * sentences_per_context_) std::abort();
    report_.add({.name = "directory.bytes",
                 .of = "on NVMe, " + scale(),
                 .value = static_cast<double>(live_bytes - before + shared_bytes) / count,
                 .unit = "B",
                 .limit_name = "",
                 .target = 256,
                 .better = Better::kLower});
    report_.add({.name = "directory.restart",
                 .of = "recover(), " + scale(),
                 .value = seconds,
                 .unit = "s",
                 .limit_name = ""});
  }

  void match_some() {
    std::vector<double> rates;
    for (uint32_t round = 0; round < 20; ++round) {
      const Context made = context(round * 7919 % context_count_);
      const double before = now();
      const Directory::Cover cover = made.match(*directory_);
      const double seconds = now() - before;
      if (cover.path.size() < sentences_per_context_) std::abort();
      rates.push_back(static_cast<double>(cover.path.size()) / seconds);
    }
    report_.add({.name = "directory.match",
                 .of = "Context::match, 1000 sentences each",
                 .value = median(rates),
                 .unit = "1/s",
                 .limit_name = ""});
  }

  void local_match_some() {
    const SharedDirectoryWriter& writer = *shared_->find(kSpace);
    auto mapped =
        MappedMemory::map(writer.read_only_fd(), writer.bytes(), MappedMemory::Access::kReadOnly);
    const SharedDirectoryReader reader =
        SharedDirectoryReader::open(std::move(mapped).value()).value();
    const uint32_t chains = report_.quick() ? 20 : 200;
    std::vector<std::vector<uint64_t>> stored;
    std::vector<std::vector<uint64_t>> unknown;
    for (uint32_t chain = 0; chain < chains; ++chain) {
      const Context made = context(chain * 7919 % context_count_);
      std::vector<uint64_t>& tags = stored.emplace_back();
      const uint32_t blocks = made.sentence(sentences_per_context_ - 1).span.end_block();
      for (uint32_t block = 1; block <= blocks; ++block) {
        tags.push_back(shared_directory_tag(made.boundary(block)));
      }
      for (uint64_t& tag : unknown.emplace_back(tags)) tag = tag * 0x9E3779B97F4A7C15ULL + 1;
    }
    SharedDirectoryReader::Scratch scratch;
    const auto time = [&](const std::vector<std::vector<uint64_t>>& all, bool hit) {
      std::vector<double> each;
      for (const std::vector<uint64_t>& tags : all) {
        const double before = now();
        const SharedDirectoryReader::Cover cover = reader.match({tags, 8, 0}, scratch);
        each.push_back((now() - before) * 1e6);
        if (cover.hit_tokens != (hit ? tags.size() * 8 : 0)) std::abort();
      }
      return median(each);
    };
    const auto add = [&](const char* of, double value) {
      report_.add({.name = "directory.local",
                   .of = of,
                   .value = value,
                   .unit = "us",
                   .limit_name = "",
                   .target = 1,
                   .better = Better::kLower});
    };
    add("hit, per sentence, chains of 1000", time(stored, true) / sentences_per_context_);
    add("miss, per chain", time(unknown, false));
  }

  void put_some() {
    const uint32_t count = report_.quick() ? 500 : 1500;  // fit host memory
    std::vector<double> seconds;
    const Context made = context(context_count_);
    const Context more = context(context_count_ + 1);
    const int64_t before = live_bytes;
    const auto stored_before = static_cast<double>(directory_->sentence_count());
    for (uint32_t index = 0; index < count; ++index) {
      const Context& from = index < sentences_per_context_ ? made : more;
      Placement::PutRequest request;
      request.session = kSession;
      request.deadline_ns = 1;
      request.sentences.push_back(from.describe(*directory_, index % sentences_per_context_));
      SentenceUid uid{};
      request.done = [&uid](const std::vector<Placement::PutReservation>& results) {
        if (results.at(0).outcome == PutOutcome::kReserved) uid = results.at(0).uid;
      };
      const double started = now();
      placement_->put_reserve(std::move(request));
      if (uid == SentenceUid{}) std::abort();
      for (uint32_t chunk = 0; chunk < 32; ++chunk) placement_->chunk_written(uid, chunk, {});
      if (placement_->put_commit(kSession, uid, nullptr) != PutOutcome::kCommitted) std::abort();
      seconds.push_back(now() - started);
    }
    const double stored = static_cast<double>(directory_->sentence_count()) - stored_before;
    report_.add({.name = "directory.put",
                 .of = "reserve, 32 sums, commit",
                 .value = 1 / median(seconds),
                 .unit = "1/s",
                 .limit_name = ""});
    report_.add({.name = "directory.host",
                 .of = "32 chunks in host memory, with sums",
                 .value = static_cast<double>(live_bytes - before) / stored,
                 .unit = "B",
                 .limit_name = ""});
  }

  Report& report_;
  const uint32_t sentences_per_context_;
  const uint32_t context_count_;
  const std::shared_ptr<const Model> model_;
  RecordStore store_;
  NoResidency residency_;
  std::unique_ptr<HostStore> host_;
  std::unique_ptr<SharedDirectories> shared_;
  std::unique_ptr<Directory> directory_;
  std::unique_ptr<Placement> placement_;
};

}  // namespace
}  // namespace skv::bench

int main(int argc, char** argv) {
  skv::bench::Report report(argc, argv);
  skv::bench::Bench(report).run();
  return report.finish();
}
