// The NVMe store against fio: the same file, request size, depth and engine (io_uring, O_DIRECT),
// in short runs that take turns, because a disk (a virtual one above all) is not the same from one
// second to the next; and in the same memory, an arena as the host tier has it, because a request
// of pages that lie apart costs such a disk half as much again. Sentences are those of Llama-3-8B:
// 32 chunks of 256 KiB.
#include <poll.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "ipc/types/check.h"
#include "tests/bench/report.h"
#include "tiers/aligned_buffer.h"
#include "tiers/arena_warmer.h"
#include "tiers/host_arena.h"
#include "tiers/nvme_format.h"
#include "tiers/nvme_store.h"

namespace skv {
namespace {

constexpr int kSkipped = 77;  // ctest: SKIP_RETURN_CODE
constexpr uint64_t kMiB = 1u << 20;
constexpr uint64_t kChunkBytes = 256u << 10;
constexpr uint32_t kChunks = 32;
constexpr uint64_t kSentencesPerSegment = 7;
constexpr uint32_t kReadsInFlight =
    32;                                // 8 MiB: chunks that one prefetch of a cold context asks for
constexpr uint32_t kPutsInFlight = 4;  // PlacementOptions::writes_max
// What DiskEngine has at the disk of writes: 12 requests of 1 MiB.
constexpr uint32_t kWriteDepth = 12;

struct Sizes {
  uint64_t file_bytes;
  double seconds;  // of one run
  int rounds;
};

double cpu_seconds(int who) {
  rusage used{};
  getrusage(who, &used);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
  };
  return seconds(used.ru_utime) + seconds(used.ru_stime);
}

struct Run {
  double gb_per_s = 0;
  double cpu_per_gb = 0;  // seconds
};

// What is read and written: the host tier's kind of memory, its pages made by the warmer, which
// makes huge ones where it can. fio maps it too, from its start.
class Memory {
 public:
  Memory() {
    Result<std::unique_ptr<HostArena>> made =
        HostArena::create((kPutsInFlight * kChunks + landings()) * kChunkBytes, 2 * kMiB);
    SKV_CHECK(made.ok(), "an arena for the bench");
    arena_ = std::move(made).value();
    ArenaWarmer warmer;
    warmer.add(arena_->memory());
    warmer.settle();
  }
  std::string for_fio() const {
    return " --mem=mmapshared:/proc/" + std::to_string(getpid()) + "/fd/" +
           std::to_string(arena_->fd());
  }
  std::span<std::byte> chunk(uint32_t body, uint32_t chunk) const {
    return arena_->memory().subspan((body * kChunks + chunk) * kChunkBytes, kChunkBytes);
  }
  // Chunks land where nobody has looked for long, as in a host tier: this disk is another processor
  // that writes into memory, and is slower by a third where a core still has the lines in its
  // cache.
  static uint32_t landings() {
    return static_cast<uint32_t>(
        std::max(4 * bench::l3_bytes() / kChunkBytes, 2UL * kReadsInFlight));
  }
  std::span<std::byte> landing(uint32_t read) const { return chunk(kPutsInFlight, read); }

 private:
  std::unique_ptr<HostArena> arena_;
};

// One run of fio over the segments of the file. Reads and writes together count once.
Run fio(const std::string& path, const std::string& how, const Sizes& sizes) {
  const uint64_t first = nvme::kFrontBytes;
  std::string command =
      "fio --name=limit --filename='" + path + "' --ioengine=io_uring --direct=1 --time_based" +
      " --allow_file_create=0 --output-format=json --offset=" + std::to_string(first) +
      " --size=" + std::to_string(sizes.file_bytes - first) +
      " --runtime=" + std::to_string(static_cast<int>(sizes.seconds * 1000)) + "ms " + how +
      " 2>/dev/null";
  const double cpu = cpu_seconds(RUSAGE_CHILDREN);
  std::string answer;
  if (FILE* const pipe = popen(command.c_str(), "r"); pipe != nullptr) {
    std::array<char, 4096> buffer;
    for (size_t got = 0; (got = fread(buffer.data(), 1, buffer.size(), pipe)) > 0;) {
      answer.append(buffer.data(), got);
    }
    (void)pclose(pipe);
  }
  const nlohmann::json said = nlohmann::json::parse(answer, nullptr, /*allow_exceptions=*/false);
  if (said.is_discarded() || !said.contains("jobs")) {
    std::fprintf(stderr, "fio failed: %s\n%s\n", command.c_str(), answer.c_str());
    std::exit(1);
  }
  Run run;
  double bytes = 0;
  for (const char* const way : {"read", "write"}) {
    run.gb_per_s += said["jobs"][0][way]["bw_bytes"].get<double>() / 1e9;
    bytes += said["jobs"][0][way]["io_bytes"].get<double>();
  }
  run.cpu_per_gb = (cpu_seconds(RUSAGE_CHILDREN) - cpu) / (bytes / 1e9);
  return run;
}

// A store with sentences that are put, read and erased as the loop does it: by drain().
class Bench {
 public:
  Bench(std::string path, const Sizes& sizes, const Memory& memory)
      : path_(std::move(path)), sizes_(sizes), memory_(memory) {}

  enum class Order : uint8_t { kOldest, kAny };  // who is erased for what comes

  void open(Order order = Order::kOldest) {
    order_ = order;
    make_bodies();
    NvmeStore::Options options;
    options.file_bytes = sizes_.file_bytes;
    Result<std::unique_ptr<NvmeStore>> opened = NvmeStore::open(path_, options);
    if (!opened.ok()) fail(opened.error().message);
    store_ = std::move(opened).value();
    if (Result<Digest> salt = store_->space_salt(1000); !salt.ok()) fail(salt.error().message);
  }
  void close() { store_.reset(); }
  NvmeStore& store() { return *store_; }
  // A new store in the old file: the front is what makes it one.
  void forget() {
    close();
    FILE* const file = std::fopen(path_.c_str(), "r+b");
    const std::vector<char> zeros(nvme::kFrontBytes);
    if (file == nullptr || std::fwrite(zeros.data(), 1, zeros.size(), file) != zeros.size()) {
      fail("cannot write " + path_);
    }
    std::fclose(file);
    keys_ = 0;
    live_.clear();
    erased_ = 0;
  }

  // Until something was erased for what comes next.
  void fill() {
    while (erased_ == 0) (void)run(kWrite, 10, kSentencesPerSegment);
  }

  enum What : unsigned { kRead = 1, kWrite = 2 };
  // Demotions to the log's end (sentences are erased as the store asks for it), promotions of
  // chunks drawn at random, or both.
  Run run(unsigned what, double seconds, uint64_t puts_max = UINT64_MAX) {
    const double cpu = cpu_seconds(RUSAGE_SELF);
    const double begin = bench::now();
    bytes_ = 0;
    const uint64_t keys_before = keys_;
    const auto going = [&] {
      return bench::now() - begin < seconds && keys_ - keys_before < puts_max;
    };
    while (going() || in_flight_ > 0) {
      while (going() && (what & kWrite) != 0 && free_bodies_.size() < kPutsInFlight && put()) {
      }
      while (going() && (what & kRead) != 0 && reads_.size() < kReadsInFlight) read();
      pollfd wake{.fd = store_->wake_fd(), .events = POLLIN, .revents = 0};
      (void)poll(&wake, 1, 1000);
      store_->drain();
    }
    const double took = bench::now() - begin;
    const double gb = static_cast<double>(bytes_) / 1e9;
    return {gb / took, (cpu_seconds(RUSAGE_SELF) - cpu) / gb};
  }

 private:
  [[noreturn]] static void fail(const std::string& what) {
    std::fprintf(stderr, "bench_nvme: %s\n", what.c_str());
    std::exit(1);
  }
  static Digest key_of(uint64_t number) {
    Digest key;
    std::memcpy(key.bytes.data(), &number, sizeof number);
    const ChunkSum mixed = checksum(std::as_bytes(std::span(key.bytes)));
    std::memcpy(key.bytes.data() + 8, &mixed, sizeof mixed);
    return key;
  }
  // Anew for each run: fio wrote patterns of its own into the memory.
  void make_bodies() {
    std::mt19937_64 random(1);
    sums_.assign(kPutsInFlight, {});
    for (uint32_t body = 0; body < kPutsInFlight; ++body) {
      for (uint32_t chunk = 0; chunk < kChunks; ++chunk) {
        const std::span<std::byte> bytes = memory_.chunk(body, chunk);
        auto* const words = reinterpret_cast<uint64_t*>(bytes.data());
        for (uint64_t at = 0; at < bytes.size() / 8; ++at) words[at] = random();
        sums_[body].push_back(checksum(bytes));
      }
    }
  }

  // False: no room until more has been erased and freed.
  bool put() {
    uint32_t body = 0;
    while (std::find(free_bodies_.begin(), free_bodies_.end(), body) != free_bodies_.end()) ++body;
    BodyPut put;
    put.record.key = key_of(keys_);
    put.record.space_uid = 1000;
    put.record.token_count = 64;
    put.record.chunk_bytes.assign(kChunks, kChunkBytes);
    put.record.chunk_sums = sums_[body];
    for (uint32_t chunk = 0; chunk < kChunks; ++chunk)
      put.chunks.push_back(memory_.chunk(body, chunk));
    put.done = [this, body](const Result<void>& result) {
      if (!result.ok()) fail(result.error().message);
      --in_flight_;
      std::erase(free_bodies_, body);
      bytes_ += kChunkBytes * kChunks;
    };
    const Result<StoreOutcome> outcome = store_->put(put);
    if (!outcome.ok()) fail(outcome.error().message);
    if (outcome.value() == StoreOutcome::kFull) erase_one();
    if (outcome.value() != StoreOutcome::kAccepted) return outcome.value() == StoreOutcome::kFull;
    live_.push_back(keys_++);
    while (store_->erase_ahead_bytes() > 0) erase_one();
    free_bodies_.push_back(body);
    ++in_flight_;
    return true;
  }

  // Of live_. The newest may not be written yet.
  size_t any_written() { return random_() % (live_.size() - kPutsInFlight); }
  void erase_one() {
    const auto gone = static_cast<std::ptrdiff_t>(order_ == Order::kAny ? any_written() : 0);
    store_->erase(key_of(live_[gone]));
    live_.erase(live_.begin() + gone);
    ++erased_;
  }

  void read() {
    uint32_t slot = 0;
    do {
      slot = landing_++ % Memory::landings();
    } while (std::find(reads_.begin(), reads_.end(), slot) != reads_.end());
    BodyRead read;
    read.key = key_of(live_[any_written()]);
    read.first_chunk = static_cast<uint32_t>(random_() % kChunks);
    read.chunks = {memory_.landing(slot)};
    read.done = [this, slot](const Result<void>& result) {
      if (!result.ok()) fail(result.error().message);
      --in_flight_;
      std::erase(reads_, slot);
      bytes_ += kChunkBytes;
    };
    const Result<BodyReadOutcome> outcome = store_->read(read);
    if (!outcome.ok()) fail(outcome.error().message);
    if (outcome.value() != BodyReadOutcome::kAccepted) return;
    reads_.push_back(slot);
    ++in_flight_;
  }

  std::string path_;
  Sizes sizes_;
  std::unique_ptr<NvmeStore> store_;
  const Memory& memory_;
  std::vector<std::vector<ChunkSum>> sums_;
  std::vector<uint32_t> free_bodies_;  // bodies that are being put
  std::vector<uint32_t> reads_;        // landing places in use
  uint32_t landing_ = 0;
  std::mt19937_64 random_{7};
  Order order_ = Order::kOldest;
  uint64_t keys_ = 0;           // that were put
  std::vector<uint64_t> live_;  // those of them in the store, oldest first
  uint64_t erased_ = 0;
  uint64_t bytes_ = 0;
  uint32_t in_flight_ = 0;
};

struct Series {
  std::vector<double> store;
  std::vector<double> limit;
  std::vector<double> ratio;
  std::vector<double> store_cpu;
  std::vector<double> limit_cpu;
  void add(const Run& ours, const Run& theirs) {
    store.push_back(ours.gb_per_s);
    limit.push_back(theirs.gb_per_s);
    ratio.push_back(ours.gb_per_s / theirs.gb_per_s);
    store_cpu.push_back(ours.cpu_per_gb);
    limit_cpu.push_back(theirs.cpu_per_gb);
  }
  void report(bench::Report& report,
              const std::string& name,
              const std::string& of,
              double target) {
    report.add({.name = name,
                .of = of,
                .value = bench::median(store),
                .unit = "GB/s",
                .limit = bench::median(limit),
                .limit_name = "fio",
                .target = target});
    report.add({.name = name + ".cpu",
                .of = of,
                .value = bench::median(store_cpu),
                .unit = "s/GB",
                .limit = bench::median(limit_cpu),
                .limit_name = "fio (no checksums)"});
    const double middle = bench::median(ratio);  // sorts
    std::printf("%-22s of the rounds' ratios the least %.3f, the median %.3f, the most %.3f\n",
                name.c_str(), ratio.front(), middle, ratio.back());
  }
};

// Restart: the store is opened again with many small sentences in it. Held against the reads that a
// walk from header to header is made of, one after the other.
void restart(bench::Report& report, const std::string& path, const Sizes& sizes) {
  constexpr uint32_t kSmallChunks = 16;
  NvmeStore::Options options;
  options.file_bytes = sizes.file_bytes;
  const auto opened = [&] {
    Result<std::unique_ptr<NvmeStore>> store = NvmeStore::open(path, options);
    if (!store.ok()) {
      std::fprintf(stderr, "bench_nvme: %s\n", store.error().message.c_str());
      std::exit(1);
    }
    return std::move(store).value();
  };
  std::unique_ptr<NvmeStore> store = opened();
  (void)store->space_salt(1000);
  const AlignedBuffer body(kSmallChunks * 4096);
  const ChunkSum sum = checksum(body.span().first(4096));
  const uint64_t count = report.quick() ? 1000 : 16'000;
  uint64_t done = 0;
  for (uint64_t number = 0; done < count;) {
    while (number < count && store->transfers_in_flight() < 200) {
      BodyPut put;
      std::memcpy(put.record.key.bytes.data(), &number, sizeof number);
      put.record.space_uid = 1000;
      put.record.token_count = 64;
      put.record.chunk_bytes.assign(kSmallChunks, 4096);
      put.record.chunk_sums.assign(kSmallChunks, sum);
      for (uint32_t chunk = 0; chunk < kSmallChunks; ++chunk) {
        put.chunks.push_back(body.span().subspan(chunk * 4096, 4096));
      }
      put.done = [&done](const Result<void>&) { ++done; };
      const Result<StoreOutcome> outcome = store->put(put);
      if (!outcome.ok() || outcome.value() != StoreOutcome::kAccepted) break;
      ++number;
    }
    pollfd wake{.fd = store->wake_fd(), .events = POLLIN, .revents = 0};
    (void)poll(&wake, 1, 1000);
    store->drain();
  }
  std::vector<double> ours, theirs;
  for (int round = 0; round < (report.quick() ? 1 : 5); ++round) {
    store.reset();
    const double begin = bench::now();
    store = opened();
    ours.push_back(static_cast<double>(store->stats().recovered_records) / (bench::now() - begin));
    const Run walk = fio(path, "--rw=randread --bs=4k --iodepth=1", {sizes.file_bytes, 0.2, 1});
    theirs.push_back(walk.gb_per_s * 1e9 / 4096);
  }
  report.add({.name = "nvme.restart",
              .of = std::to_string(store->stats().recovered_records) + " records of 64 KiB",
              .value = bench::median(ours),
              .unit = "1/s",
              .limit = bench::median(theirs),
              .limit_name = "reads of 4 KiB, one by one (fio)"});
}

int main_of(int argc, char** argv) {
  bench::Report report(argc, argv);
  if (std::system("fio --version >/dev/null 2>&1") != 0) {
    std::printf("skipped: fio is not installed (scripts/install-deps.sh)\n");
    return kSkipped;
  }
  const Sizes sizes = report.quick() ? Sizes{768 * kMiB, 0.15, 1} : Sizes{2048 * kMiB, 0.6, 11};
  // Beside this program: on the disk that builds use, not in a tmpfs.
  const std::string path =
      (report.rest().empty()
           ? std::filesystem::read_symlink("/proc/self/exe").parent_path() / "bench_nvme.store"
           : std::filesystem::path(report.rest()[0]))
          .string();
  std::error_code ignored;
  std::filesystem::remove(path, ignored);

  const Memory memory;
  Bench bench(path, sizes, memory);
  bench.open();
  // A preallocated file that nothing was written to yet, once over its length.
  const uint64_t once = bench.store().stats().segment_count / 4 * 3 * kSentencesPerSegment;
  const Run first = bench.run(Bench::kWrite, 60, report.quick() ? 8 : once);
  bench.forget();
  (void)fio(path, "--rw=write --bs=1m --iodepth=16",
            {sizes.file_bytes, report.quick() ? .5 : 3, 1});

  Series read, write, scattered, mixed;
  // The order changes from round to round: what a run leaves in the disk's caches is the next
  // one's.
  const auto in_turns = [](int round, Series& series, const auto& ours, const auto& theirs) {
    Run limit;
    if (round % 2 == 0) limit = theirs();
    const Run run = ours();
    if (round % 2 != 0) limit = theirs();
    series.add(run, limit);
  };
  const std::string depth = " --bs=256k --iodepth=" + std::to_string(kReadsInFlight);
  // Both read what the store wrote, and nobody writes meanwhile.
  bench.open();
  bench.fill();
  (void)bench.run(Bench::kRead, sizes.seconds * 2);
  for (int round = 0; round < sizes.rounds; ++round) {
    in_turns(
        round, read, [&] { return bench.run(Bench::kRead, sizes.seconds); },
        [&] { return fio(path, "--readonly --rw=randread" + depth + memory.for_fio(), sizes); });
  }
  bench.forget();
  for (int round = 0; round < sizes.rounds; ++round) {
    const auto pair = [&](Series& series, unsigned what, const std::string& how,
                          Bench::Order order = Bench::Order::kOldest) {
      const auto ours = [&] {
        bench.open(order);
        bench.fill();
        const Run run = bench.run(what, sizes.seconds);
        bench.forget();
        return run;
      };
      in_turns(round, series, ours, [&] { return fio(path, how + memory.for_fio(), sizes); });
    };
    const std::string writes = "--rw=write --bs=1m --iodepth=" + std::to_string(kWriteDepth);
    pair(write, Bench::kWrite, writes);
    pair(scattered, Bench::kWrite, writes, Bench::Order::kAny);
    pair(mixed, Bench::kRead | Bench::kWrite, "--rw=randrw --rwmixread=50" + depth);
  }
  read.report(report, "nvme.read", "promote: 256 KiB chunks at random, 32 in flight", 0.9);
  write.report(report, "nvme.write", "demote: sentences of 8 MiB, 4 in flight, a full store", 0.85);
  scattered.report(report, "nvme.write.scattered", "the same, sentences go in no order", 0);
  mixed.report(report, "nvme.mixed", "both at once", 0);
  report.add({.name = "nvme.first_write",
              .of = "preallocated segments, never written",
              .value = first.gb_per_s,
              .unit = "GB/s",
              .limit = bench::median(write.store),
              .limit_name = "segments written before"});
  restart(report, path, sizes);
  std::filesystem::remove(path, ignored);
  return report.finish();
}

}  // namespace
}  // namespace skv

int main(int argc, char** argv) { return skv::main_of(argc, argv); }
