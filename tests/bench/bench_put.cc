// put_write and get of bodies of 64 KiB to 6 MiB through a real daemon, beside memcpy of the same
// bytes in the same run and beside Redis on a Unix socket; a get in place; one greedy client beside
// a modest one.
//
//   copy.*        one pass of copy and checksum beside memcpy, in memory that was touched before
//   fault.*       what a page costs the first time, and what that makes of memcpy
//   put.*, get.*  GB/s; the cases name operations in flight and client processes
//   get.mapped    microseconds until a stored body can be read where it lies
//   fairness.p99  of a modest client, with a greedy one beside it, against alone
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tests/bench/bench_daemon.h"
#include "tests/bench/clients.h"
#include "tests/bench/put_engine.h"
#include "tests/bench/redis_client.h"
#include "tests/bench/report.h"
#include "tiers/arena_warmer.h"
#include "tiers/checksum.h"
#include "tiers/copy.h"
#include "tiers/host_arena.h"

namespace skv::bench {
namespace {

using Shape = PutEngine::Shape;

struct Size {
  const char* name;
  Shape shape;
  double target;  // of memcpy
};
constexpr Size kSizes[] = {{"64k", {64 << 10, 1, 2}, 0.3},
                           {"256k", {256 << 10, 1, 8}, 0.5},
                           {"1.5m", {1536 << 10, 6, 8}, 0.7},
                           {"6m", {6144 << 10, 24, 8}, 0.8}};

// What each client goes through: more than the caches of one core, so that memcpy and put meet the
// same memory.
constexpr uint64_t kWorkingSetBytes = 48ULL << 20;

struct Region {
  explicit Region(uint64_t size) : bytes(size) {
    const int fd = ::memfd_create("bench", MFD_CLOEXEC);
    if (::ftruncate(fd, static_cast<off_t>(size)) == 0) {
      memory =
          static_cast<std::byte*>(::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    }
    // The same pages through page tables that nobody has filled yet.
    untouched = static_cast<const std::byte*>(::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0));
    ::close(fd);
  }
  ~Region() {
    ::munmap(memory, bytes);
    ::munmap(const_cast<std::byte*>(untouched), bytes);
  }
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;
  std::byte* memory = nullptr;
  const std::byte* untouched = nullptr;
  uint64_t bytes;
};

// Two touched regions, and memcpy between them in pieces: the limit of everything here.
class Memcpy {
 public:
  Memcpy() : from_(kWorkingSetBytes), to_(kWorkingSetBytes) {
    std::memset(from_.memory, 1, from_.bytes);
    std::memset(to_.memory, 2, to_.bytes);
  }
  // Median seconds of one piece.
  double seconds(uint64_t bytes, uint32_t count) {
    return each(bytes, count,
                [bytes](std::byte* to, const std::byte* from) { std::memcpy(to, from, bytes); });
  }
  template <typename Copy>
  double each(uint64_t bytes, uint32_t count, const Copy& copy) {
    const uint64_t pieces = kWorkingSetBytes / bytes;
    std::vector<double> times;
    // The system may have taken back what was not used for seconds; that is not memcpy's time.
    std::memcpy(to_.memory, from_.memory, kWorkingSetBytes);
    for (uint32_t i = 0; i < count; ++i) {
      const uint64_t at = next_++ % pieces * bytes;
      const double begin = now();
      copy(to_.memory + at, from_.memory + at);
      times.push_back(now() - begin);
    }
    return median(times);
  }

 private:
  Region from_;
  Region to_;
  uint64_t next_ = 0;
};

class Bench {
 public:
  Bench(Report& report, Memcpy& limit) : report_(report), limit_(limit) {}

  int run();

 private:
  struct Case {
    const Size& size;
    uint32_t depth;
    uint32_t clients;
    std::string text() const {
      return std::to_string(depth) + " in flight x " + std::to_string(clients) + " clients";
    }
  };
  enum class Verb { kPut, kGet };
  // bench_put [SIZE ...]: of the matrix only these.
  bool wanted(const Size& size) const {
    const std::vector<std::string>& names = report_.rest();
    return names.empty() || std::find(names.begin(), names.end(), size.name) != names.end();
  }

  uint32_t count_of(const Size& size) const {
    const uint64_t bytes = report_.quick() ? 24ULL << 20 : 256ULL << 20;
    return static_cast<uint32_t>(std::clamp<uint64_t>(bytes / size.shape.bytes, 16, 2000));
  }
  void copies();
  void faults();
  void matrix();
  void skvd_case(const Case& each, Verb verb);
  void redis_case(const Case& each, Verb verb);
  void add(const std::string& name, const Case& each, const Run& run, double target);
  void mapped();
  void fairness();

  Report& report_;
  Memcpy& limit_;
  ServerProcess skvd_;
  std::unique_ptr<ServerProcess> redis_;
  uint32_t salt_ = 1;
  bool failed_ = false;
};

void Bench::copies() {
  for (const Size& size : kSizes) {
    const uint64_t bytes = size.shape.bytes;
    const uint32_t count = count_of(size) / 4 + 3;
    std::vector<double> memcpy_s;
    std::vector<double> pass_s;
    std::vector<double> two_s;
    ChecksumStream stream;
    for (int round = 0; round < 5; ++round) {
      memcpy_s.push_back(limit_.seconds(bytes, count));
      pass_s.push_back(limit_.each(bytes, count, [&](std::byte* to, const std::byte* from) {
        stream.reset();
        stream.copy(to, from, bytes, 4096);
        stores_done();
      }));
      two_s.push_back(limit_.each(bytes, count, [&](std::byte* to, const std::byte* from) {
        std::memcpy(to, from, bytes);
        volatile uint64_t sum = checksum({to, bytes}).low;
        (void)sum;
      }));
    }
    const double gb = 1e-9 * static_cast<double>(bytes);
    const double limit = gb / median(memcpy_s);
    report_.add({std::string("copy.") + size.name, "copy and checksum in one pass",
                 gb / median(pass_s), "GB/s", limit, "memcpy", 0, Better::kHigher});
    report_.add({std::string("copy.") + size.name, "memcpy, then checksum", gb / median(two_s),
                 "GB/s", limit, "memcpy", 0, Better::kHigher});
  }
}

// Fresh pages of a memfd: the kernel finds, clears and maps one at each first touch.
void Bench::faults() {
  const uint64_t bytes = report_.quick() ? 16ULL << 20 : 128ULL << 20;
  const std::vector<std::byte> from(6 << 20, std::byte{1});
  const double touched = 1e-9 * 6291456.0 / limit_.seconds(6 << 20, 5);
  const auto per_page = [&](const char* text, const auto& touch) {
    const std::unique_ptr<HostArena> arena = HostArena::create(bytes, kHugePageBytes).value();
    const double begin = now();
    touch(arena->memory());
    report_.add({"fault.page", text, (now() - begin) * 1e6 / static_cast<double>(bytes / 4096),
                 "us", 0, "", 0, Better::kLower});
  };
  per_page("4 KiB, by touch", [](std::span<std::byte> memory) {
    for (uint64_t at = 0; at < memory.size(); at += 4096) memory[at] = std::byte{1};
  });
  ArenaWarmer warmer;
  per_page("4 KiB of huge pages, by the warmer", [&](std::span<std::byte> memory) {
    warmer.add(memory);
    warmer.settle();
  });
  Region fresh(bytes);
  const double begin = now();
  uint64_t at = 0;
  for (; at + from.size() <= bytes; at += from.size()) {
    std::memcpy(fresh.memory + at, from.data(), from.size());
  }
  report_.add({"fault.memcpy", "memcpy of 6 MiB into fresh memfd pages",
               1e-9 * static_cast<double>(at) / (now() - begin), "GB/s", touched,
               "memcpy into touched pages", 0, Better::kHigher});
}

void Bench::add(const std::string& name, const Case& each, const Run& run, double target) {
  if (!run.ok) {
    std::fprintf(stderr, "%s %s failed\n", name.c_str(), each.text().c_str());
    failed_ = true;
    return;
  }
  const double gb =
      1e-9 * static_cast<double>(each.size.shape.bytes) * count_of(each.size) * each.clients;
  // Through all of the memory at least once: what a few pieces meet may lie in a cache.
  const uint64_t bytes = each.size.shape.bytes;
  const auto pieces = static_cast<uint32_t>(std::max<uint64_t>(31, kWorkingSetBytes / bytes));
  const double limit = 1e-9 * static_cast<double>(bytes) / limit_.seconds(bytes, pieces);
  char details[96];
  std::snprintf(details, sizeof details, "%s; p50 %.0f p99 %.0f us, %.2f cpu s/GB",
                each.text().c_str(), run.p50_us, run.p99_us, (run.cpu_s + run.server_cpu_s) / gb);
  report_.add({name, details, gb / run.seconds, "GB/s", limit, "memcpy", target, Better::kHigher});
}

void Bench::skvd_case(const Case& each, Verb verb) {
  const uint32_t count = count_of(each.size);
  const auto slots = static_cast<uint32_t>(kWorkingSetBytes / each.size.shape.bytes);
  // As many bodies as memcpy goes through, at most one message of sentences.
  const uint32_t sentences = std::min(slots, 256U);
  std::vector<ClientBody> bodies;
  for (uint32_t c = 0; c < each.clients; ++c) {
    bodies.push_back([&, salt = salt_++](uint32_t, Stopwatch& watch) {
      PutEngine engine;
      if (!engine.open(skvd_.socket(), each.size.shape, sentences, std::min(slots, 256U), salt) ||
          !engine.reserve()) {
        return false;
      }
      for (uint32_t i = 0; i < sentences; ++i) {  // touches extents, maps the source
        if (!engine.write(i, nullptr)) return false;
      }
      if (verb == Verb::kGet && !engine.commit(false)) return false;
      std::vector<skv_ticket> tickets(each.depth);
      watch.start();
      const bool done = keep_in_flight(
          each.depth, count, watch,
          [&](uint32_t i) {
            skv_ticket* const ticket = each.depth == 1 ? nullptr : &tickets[i % each.depth];
            return verb == Verb::kPut ? engine.write(i, ticket) : engine.load(i, ticket);
          },
          [&](uint32_t i) { return each.depth == 1 || engine.wait(tickets[i % each.depth]); });
      watch.finish();
      return done;
    });
  }
  const Run run = run_clients(bodies, bodies.size(), [this] { return cpu_ns(skvd_.pid()); });
  add(std::string(verb == Verb::kPut ? "put." : "get.") + each.size.name, each, run,
      verb == Verb::kPut ? each.size.target : 0);
}

void Bench::redis_case(const Case& each, Verb verb) {
  if (redis_ == nullptr) return;
  const uint32_t count = count_of(each.size);
  const uint64_t bytes = each.size.shape.bytes;
  const auto keys = static_cast<uint32_t>(std::min<uint64_t>(kWorkingSetBytes / bytes, 256));
  std::vector<ClientBody> bodies;
  for (uint32_t c = 0; c < each.clients; ++c) {
    bodies.push_back([&, c](uint32_t, Stopwatch& watch) {
      RedisClient redis(redis_->connect(SOCK_STREAM));
      std::vector<char> memory(keys * bytes, 'x');
      const auto key = [c](uint32_t i) { return std::to_string(c) + ":" + std::to_string(i); };
      const auto at = [&](uint32_t i) { return memory.data() + (i % keys) * bytes; };
      for (uint32_t i = 0; i < keys; ++i) {
        if (!redis.send_set(key(i), at(i), bytes) || !redis.receive_ok()) return false;
      }
      watch.start();
      const bool done = keep_in_flight(
          each.depth, count, watch,
          [&](uint32_t i) {
            return verb == Verb::kPut ? redis.send_set(key(i % keys), at(i), bytes)
                                      : redis.send_get(key(i % keys));
          },
          [&](uint32_t i) {
            return verb == Verb::kPut ? redis.receive_ok() : redis.receive_value(at(i), bytes);
          });
      watch.finish();
      return done;
    });
  }
  const Run run = run_clients(bodies, bodies.size(), [this] { return cpu_ns(redis_->pid()); });
  add(std::string(verb == Verb::kPut ? "redis.set." : "redis.get.") + each.size.name, each, run, 0);
}

void Bench::matrix() {
  const std::vector<uint32_t> depths =
      report_.quick() ? std::vector<uint32_t>{1, 4} : std::vector<uint32_t>{1, 4, 32};
  const std::vector<uint32_t> clients =
      report_.quick() ? std::vector<uint32_t>{1} : std::vector<uint32_t>{1, 2, 4};
  for (const Size& size : kSizes) {
    if (!wanted(size)) continue;
    for (const uint32_t depth : depths) {
      for (const uint32_t count : clients) {
        for (const Verb verb : {Verb::kPut, Verb::kGet}) {
          skvd_case({size, depth, count}, verb);
          redis_case({size, depth, count}, verb);
        }
      }
    }
  }
}

void Bench::mapped() {
  for (const Size& size : kSizes) {
    const auto sentences =
        static_cast<uint32_t>(std::min<uint64_t>(kWorkingSetBytes / size.shape.bytes, 64));
    PutEngine writer;
    if (!writer.open(skvd_.socket(), size.shape, sentences, 4, salt_++) || !writer.reserve()) {
      failed_ = true;
      return;
    }
    for (uint32_t i = 0; i < sentences; ++i) failed_ = failed_ || !writer.write(i, nullptr);
    failed_ = failed_ || !writer.commit(false);
    // Memory of a memfd that has its pages: the first read through a mapping fills its page tables,
    // here as in the host memory of the session below.
    const uint64_t bytes = size.shape.bytes;
    Region limit_memory(sentences * bytes);
    std::memset(limit_memory.memory, 3, limit_memory.bytes);
    PutEngine reader;
    failed_ = failed_ || !reader.open(skvd_.socket(), size.shape, sentences, 1, salt_ - 1);
    if (failed_) return;
    std::vector<double> get_us;
    std::vector<double> release_us;
    std::vector<double> read_us[2];  // the first time, and again
    std::vector<double> plain_us[2];
    volatile uint64_t sink = 0;
    const uint32_t rounds = report_.quick() ? 128 : 1000;
    for (uint32_t i = 0; i < rounds; ++i) {
      skv_lease lease = nullptr;
      const double begin = now();
      if (!reader.lease(i, &lease)) failed_ = true;
      const double leased = now();
      get_us.push_back((leased - begin) * 1e6);
      if (i < 2 * sentences) {
        const bool again = i >= sentences;
        sink = sink + reader.read(lease);
        read_us[again].push_back((now() - begin) * 1e6);
        const std::byte* const from = again ? limit_memory.memory : limit_memory.untouched;
        const double plain = now();
        sink = sink + PutEngine::read_words(from + (i % sentences) * bytes, bytes);
        plain_us[again].push_back((now() - plain) * 1e6);
      }
      const double release = now();
      (void)skv_lease_release(lease);
      release_us.push_back((now() - release) * 1e6);
    }
    report_.add({"get.mapped", std::string(size.name) + ", until it can be read", median(get_us),
                 "us", 0, "", 10, Better::kLower});
    report_.add(
        {"get.mapped.release", size.name, median(release_us), "us", 0, "", 0, Better::kLower});
    report_.add({"get.mapped.read", std::string(size.name) + ", get and the first full read",
                 median(read_us[0]), "us", median(plain_us[0]),
                 "a first read of as many bytes of a memfd", 0, Better::kLower});
    report_.add({"get.mapped.read", std::string(size.name) + ", get and another full read",
                 median(read_us[1]), "us", median(plain_us[1]), "reading as many mapped bytes", 0,
                 Better::kLower});
  }
}

// 6 MiB puts, 32 in flight, as fast as they go, beside a client of one put or prefetch at a time.
void Bench::fairness() {
  const Shape greedy_shape = kSizes[3].shape;
  const ClientBody greedy = [&, salt = salt_++](uint32_t, Stopwatch& watch) {
    PutEngine engine;
    if (!engine.open(skvd_.socket(), greedy_shape, 16, 8, salt) || !engine.reserve()) return false;
    std::vector<skv_ticket> tickets(32);
    uint32_t sent = 0;
    watch.start();
    while (!watch.stopped()) {
      if (sent >= 32 && !engine.wait(tickets[sent % 32])) return false;
      if (!engine.write(sent, &tickets[sent % 32])) return false;
      ++sent;
    }
    return true;
  };
  const uint32_t count = report_.quick() ? 50 : 1000;
  const auto modest = [&](bool prefetch) -> ClientBody {
    return [&, prefetch, salt = salt_++](uint32_t, Stopwatch& watch) {
      PutEngine engine;
      if (!engine.open(skvd_.socket(), kSizes[1].shape, 64, 4, salt) || !engine.reserve()) {
        return false;
      }
      for (uint32_t i = 0; i < 64; ++i) {
        if (!engine.write(i, nullptr)) return false;
      }
      if (prefetch && (!engine.commit(true) || !engine.open_window(64))) return false;
      watch.start();
      for (uint32_t i = 0; i < count; ++i) {
        const double begin = now();
        if (prefetch ? !engine.prefetch(1) : !engine.write(i, nullptr)) return false;
        watch.took(now() - begin);
      }
      watch.finish();
      return true;
    };
  };
  for (const bool prefetch : {false, true}) {
    std::vector<double> alone;
    std::vector<double> beside;
    std::vector<double> alone_p50;
    std::vector<double> beside_p50;
    for (int round = 0; round < (report_.quick() ? 1 : 5); ++round) {  // interleaved
      const auto cpu = [this] { return cpu_ns(skvd_.pid()); };
      const Run one = run_clients({modest(prefetch)}, 1, cpu);
      const Run two = run_clients({modest(prefetch), greedy}, 1, cpu);
      failed_ = failed_ || !one.ok || !two.ok;
      alone.push_back(one.p99_us);
      beside.push_back(two.p99_us);
      alone_p50.push_back(one.p50_us);
      beside_p50.push_back(two.p50_us);
    }
    const char* const of = prefetch ? "prefetch of 1 layer beside 32 x 6 MiB puts in flight"
                                    : "put of 256 KiB beside 32 x 6 MiB puts in flight";
    report_.add(
        {"fairness.p99", of, median(beside), "us", median(alone), "alone", 2, Better::kLower});
    report_.add({"fairness.p50", of, median(beside_p50), "us", median(alone_p50), "alone", 0,
                 Better::kLower});
  }
}

int Bench::run() {
  copies();
  faults();
  if (!start_skvd(skvd_, "4GiB")) {
    std::fprintf(stderr, "skvd does not start: %s\n", skvd_.log().c_str());
    return 1;
  }
  redis_ = std::make_unique<ServerProcess>();
  if (!redis_->start({"redis-server", "--port", "0", "--unixsocket", redis_->socket(), "--save", "",
                      "--appendonly", "no", "--dir", redis_->folder()})) {
    std::printf("skipped: redis.*: redis-server does not start (Debian package redis-server)\n");
    redis_.reset();
  }
  matrix();
  redis_.reset();
  mapped();
  fairness();
  const int written = report_.finish();
  if (failed_) std::fprintf(stderr, "skvd says:\n%s\n", skvd_.log().c_str());
  return failed_ ? 1 : written;
}

}  // namespace
}  // namespace skv::bench

int main(int argc, char** argv) {
  skv::bench::Report report(argc, argv);
  skv::bench::Memcpy limit;
  return skv::bench::Bench(report, limit).run();
}
