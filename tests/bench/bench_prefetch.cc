// Round trips of a hot prefetch from a client process to a real skvd by the ring, and by how much
// they are longer than the ranking, the cut and the table that were asked for.
//
//   bench_prefetch [--quick] [--json FILE] [layers=N] [rounds=N]
//
// And of one in the engine's own thread, which talks to nobody.
//
// Every round by the ring is followed by one of a bare ping-pong between two processes by the same
// doorbells, so both see the same machine. A round's own time is the call's, less what its
// completion says was spent ranking, choosing and writing tables. The other end of the ping-pong
// reads memory for as long before it rings back: a core that was idle for milliseconds wakes up
// later than one that was idle for microseconds, and ranking leaves the caches to vectors.
// prefetch.pingpong.idle is without that.
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "client/skv.h"
#include "ipc/doorbell.h"
#include "ipc/spin.h"
#include "tests/bench/report.h"
#include "tests/daemon/daemon_fixture.h"

namespace skv::bench {
namespace {

void check(int code, const char* what) {
  if (code >= 0) return;
  std::fprintf(stderr, "bench_prefetch: %s: %s\n", what, skv_last_error());
  std::exit(1);
}

template <typename T>
T sized() {
  T value{};
  value.size = sizeof(T);
  return value;
}

struct Shape {
  uint32_t layers = 1;
  uint32_t heads = 8;
  uint32_t queries = 4;  // per kv head
  uint32_t dim = 128;
  uint32_t sentences = 5000;  // of 32 tokens
  uint32_t budget = 256;      // blocks per (layer, kv head)

  uint64_t body_bytes() const {  // of one layer
    return uint64_t{sentences} * 32 * heads * dim * 4;
  }
  uint64_t slots_bytes() const { return uint64_t{layers} * heads * (5 * budget / 2) * 8 * dim * 4; }
  std::string text() const {
    return std::to_string(layers) + " layer x " + std::to_string(heads) + " heads x " +
           std::to_string(sentences) + " sentences, " + std::to_string(budget) + " blocks";
  }
};

// The other end of the bare ping-pong: a process that sleeps on an eventfd and rings a pipe, or
// looks at a word, as the data thread does.
class PingPong {
 public:
  explicit PingPong(bool spins) : spins_(spins) {
    words_ = static_cast<Words*>(
        ::mmap(nullptr, sizeof(Words), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    to_ = ::eventfd(0, EFD_CLOEXEC);
    PipeDoorbell back = std::move(create_pipe_doorbell()).value();
    from_ = std::move(back.sleeper_end);
    child_ = ::fork();
    if (child_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      uint64_t count = 0;
      for (uint32_t round = 1;; ++round) {
        if (spins_) {
          while (words_->to.load(std::memory_order_acquire) < round) spin_pause();
          read_memory(words_->busy_s);
          words_->from.store(round, std::memory_order_release);
        } else {
          if (::read(to_, &count, sizeof count) < 0) ::_exit(1);
          read_memory(words_->busy_s);
          ring_doorbell(back.ringer_end.get());
        }
      }
    }
  }
  ~PingPong() {
    ::kill(child_, SIGKILL);
    ::waitpid(child_, nullptr, 0);
    ::close(to_);
    ::munmap(words_, sizeof(Words));
  }
  PingPong(const PingPong&) = delete;
  PingPong& operator=(const PingPong&) = delete;

  // Seconds without what the other end was busy.
  double round(double busy_s) {
    words_->busy_s = busy_s;
    const double start = now();
    ring_and_wait();
    return now() - start - busy_s;
  }

 private:
  void ring_and_wait() {
    ++round_;
    if (spins_) {
      words_->to.store(round_, std::memory_order_release);
      while (words_->from.load(std::memory_order_acquire) < round_) spin_pause();
      return;
    }
    ring_doorbell(to_);
    pollfd watched{from_.get(), POLLIN, 0};
    ::poll(&watched, 1, -1);
    drain_doorbell(from_.get());
  }

  // Of the other end: as ranking does, from more memory than caches hold.
  void read_memory(double seconds) {
    const double end = now() + seconds;
    uint64_t sum = 0;
    while (now() < end) {
      for (size_t i = 0; i < 8192; ++i) sum += memory_[at_ + i];
      at_ = (at_ + 8192) % memory_.size();
    }
    asm volatile("" : : "r"(sum) : "memory");
  }

  struct Words {
    alignas(64) std::atomic<uint32_t> to{0};
    alignas(64) std::atomic<uint32_t> from{0};
    double busy_s = 0.0;  // before it answers
  };
  bool spins_;
  Words* words_;
  int to_ = -1;
  UniqueFd from_;
  pid_t child_ = -1;
  uint32_t round_ = 0;
  std::vector<uint64_t> memory_ = std::vector<uint64_t>(8U << 20, 1);
  size_t at_ = 0;
};

// A stored context and a window on it.
class Engine {
 public:
  Engine(const std::string& socket, const Shape& shape, uint32_t spin_us, uint32_t rank_in)
      : shape_(shape) {
    auto options = sized<skv_session_options>();
    options.socket_path = socket.c_str();
    options.call_timeout_ms = 120'000;
    options.spin_us = spin_us == 0 ? SKV_SPIN_NEVER : spin_us;
    check(skv_session_open(&options, &session_), "session");
    open_model();
    fill();
    auto window = sized<skv_window_options>();
    window.budget_blocks = shape.budget;
    window.rank_in = rank_in;
    check(skv_window_open(context_, &window, &window_), "window");
  }
  ~Engine() { (void)skv_session_close(session_); }
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  std::vector<float> query(uint32_t seed) const {
    std::mt19937 base(7);
    std::mt19937 own(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values(size_t{shape_.layers} * shape_.heads * shape_.queries * shape_.dim);
    for (float& value : values) value = normal(base) + 0.1F * normal(own);
    return values;
  }
  struct Call {
    skv_prefetch_result result;
    double seconds;
  };
  Call prefetch(const std::vector<float>& query) {
    auto result = sized<skv_prefetch_result>();
    const double start = now();
    const int code =
        skv_prefetch(window_, query.data(), query.size() * sizeof(float), nullptr, &result);
    const double seconds = now() - start;
    check(code, "prefetch");
    check(skv_readers_done(window_, result.version), "readers_done");
    return {result, seconds};
  }

 private:
  void open_model() {
    std::vector<skv_layer> layers(shape_.layers, sized<skv_layer>());
    for (skv_layer& layer : layers) {
      layer.kv_heads = shape_.heads;
      layer.queries_per_kv_head = shape_.queries;
      layer.k_dim = shape_.dim;
      layer.v_dim = shape_.dim;
      layer.softmax_scale = 0.0884F;
      layer.rotary_index = 0xFFFF;
    }
    auto descriptor = sized<skv_model_descriptor>();
    descriptor.dtype = SKV_DTYPE_FP16;
    descriptor.block_tokens = 8;
    descriptor.tp_size = 1;
    descriptor.weights_id = "bench-prefetch";
    descriptor.layers = layers.data();
    descriptor.layer_count = shape_.layers;
    check(skv_model_open(session_, &descriptor, &model_), "model");
    check(skv_context_open(model_, nullptr, &context_), "context");
  }

  // Random keys and values, sentence after sentence from one small memory: what is measured does
  // not depend on whose bytes lie where.
  void fill() {
    const uint32_t tokens = shape_.sentences * 32;
    const uint32_t batch_tokens = kAtOnce * 32;
    const uint64_t row = uint64_t{shape_.dim} * 2;
    const uint64_t side = uint64_t{shape_.layers} * shape_.heads * batch_tokens * row;
    check(skv_memory_create(session_, 2 * side, &memory_), "memory");
    auto info = sized<skv_memory_info>();
    check(skv_memory_get_info(memory_, &info), "memory info");
    std::mt19937 random(3);
    for (uint32_t first = 0; first < tokens; first += batch_tokens) {
      const uint32_t count = std::min(batch_tokens, tokens - first);
      auto* values = static_cast<uint16_t*>(info.pointer);
      for (uint64_t i = 0; i < side; ++i) {  // fp16 in +-[0.25, 1)
        const uint32_t bits = static_cast<uint32_t>(random());
        values[i] = static_cast<uint16_t>((bits & 0x8000) | 0x3400 | (bits & 0x07FF));
      }
      std::vector<uint32_t> ids(count);
      std::iota(ids.begin(), ids.end(), first);
      std::vector<uint32_t> ends;
      for (uint32_t end = first + 32; end <= first + count; end += 32) ends.push_back(end);
      auto append = sized<skv_append_options>();
      append.first_position = first;
      append.tokens = ids.data();
      append.token_count = count;
      append.ends = ends.data();
      append.end_count = static_cast<uint32_t>(ends.size());
      append.ends_final_to = first + count + (first + count == tokens ? 64 : 0);
      check(skv_context_append(context_, &append, nullptr), "append");
      auto known = sized<skv_context_info>();
      check(skv_context_get_info(context_, &known), "context");
      put(known.sentence_count, row, side);
    }
  }
  void put(uint32_t known, uint64_t row, uint64_t side) {
    // `known` sentences have closed; the last of a batch may only do so with the next one.
    while (stored_ < known) {
      auto strided = sized<skv_strided_kv>();
      strided.memory = memory_;
      strided.v_offset = side;
      strided.token_stride = row;
      strided.head_stride = kAtOnce * 32 * row;
      strided.layer_stride = shape_.heads * strided.head_stride;
      strided.first_token = stored_ * 32;
      auto write = sized<skv_put_write_options>();
      write.first_sentence = stored_;
      write.sentence_count = std::min(known - stored_, kAtOnce);
      write.layer_count = shape_.layers;
      write.source = &strided;
      check(skv_put_reserve(context_, stored_, write.sentence_count, nullptr), "reserve");
      check(skv_put_write(context_, &write, nullptr), "write");
      check(skv_put_commit(context_, stored_, write.sentence_count, 1, nullptr), "commit");
      stored_ += write.sentence_count;
    }
  }

  static constexpr uint32_t kAtOnce = 64;  // sentences

  Shape shape_;
  skv_session session_ = nullptr;
  skv_model model_ = nullptr;
  skv_context context_ = nullptr;
  skv_memory memory_ = nullptr;
  skv_window window_ = nullptr;
  uint32_t stored_ = 0;
};

// rounds=N, or as many as medians need.
int round_count(const Report& report) {
  for (const std::string& word : report.rest()) {
    if (word.rfind("rounds=", 0) == 0) return std::clamp(std::atoi(word.c_str() + 7), 1, 1'000'000);
  }
  return report.quick() ? 30 : 1200;
}

// One kind of waiting: asleep, or spinning on both sides.
void measure(Report& report, const Shape& shape, bool spins) {
  const uint64_t host = (shape.layers * shape.body_bytes() * 5 / 4 >> 26 << 26) + (256U << 20);
  test::DaemonProcess::Options options;
  options.host_budget = std::to_string(host >> 20) + "MiB";
  options.host_slab = "4MiB";
  options.device_kind = "emulated";
  options.device_budget = std::to_string((shape.slots_bytes() >> 20) + 64) + "MiB";
  options.sessions = "staging = \"64KiB\"\nmemory = \"4GiB\"\n";
  if (spins) options.data = "spin = \"10ms\"\nspin_cores = 2\n";
  test::DaemonProcess daemon(options);
  if (!daemon.start()) {
    std::fprintf(stderr, "bench_prefetch: skvd does not start\n%s\n", daemon.log().c_str());
    std::exit(1);
  }
  Engine engine(daemon.socket(), shape, spins ? 10'000 : 0, SKV_RANK_DAEMON);
  std::vector<std::vector<float>> queries;
  for (uint32_t seed = 0; seed < 3; ++seed) queries.push_back(engine.query(seed));

  PingPong bare(spins);
  const int rounds = round_count(report);
  std::vector<double> own, ping, idle, table, copied, rest;
  uint64_t moved = 0;
  uint64_t table_bytes = 0;
  std::vector<char> from, to;
  for (int round = -10; round < rounds; ++round) {
    const std::vector<float>& query = queries[static_cast<size_t>(round + 10) % queries.size()];
    const auto [done, call_s] = engine.prefetch(query);
    const double inside =
        1e-3 * static_cast<double>(uint64_t{done.rank_ns} + done.cut_ns + done.write_ns);
    const double ping_s = bare.round(1e-6 * inside);
    const double idle_s = bare.round(0);
    if (round < 0) continue;
    table_bytes = 17ULL * done.read_blocks + 4ULL * shape.layers * (shape.heads + 1);
    from.resize(table_bytes, 1);
    to.resize(table_bytes);
    const double copying = now();
    std::memcpy(to.data(), from.data(), table_bytes);
    asm volatile("" : : "r"(to.data()) : "memory");
    copied.push_back((now() - copying) * 1e6);
    moved += done.bytes_moved;
    own.push_back(call_s * 1e6 - inside);
    rest.push_back(1e-3 * done.daemon_ns - inside);
    ping.push_back(ping_s * 1e6);
    idle.push_back(idle_s * 1e6);
    table.push_back(1e-3 * done.write_ns);
  }
  if (moved != 0)
    std::fprintf(stderr, "bench_prefetch: %llu bytes moved: not hot\n",
                 static_cast<unsigned long long>(moved));
  const std::string kind = spins ? ", spinning" : ", asleep";
  const double bare_us = median(ping);
  report.add({.name = spins ? "prefetch.ring.spinning" : "prefetch.ring",
              .of = shape.text() + kind,
              .value = median(own),
              .unit = "us",
              .limit = 1.2 * bare_us + 3.0,
              .limit_name = "1.2 x ping-pong + 3 us",
              .target = 1.0,
              .better = Better::kLower});
  report.add({.name = spins ? "prefetch.pingpong.spinning" : "prefetch.pingpong",
              .of = "doorbells alone, the other end busy for as long" + kind,
              .value = bare_us,
              .unit = "us",
              .limit_name = ""});
  report.add({.name = spins ? "prefetch.pingpong.idle.spinning" : "prefetch.pingpong.idle",
              .of = "doorbells alone" + kind,
              .value = median(idle),
              .unit = "us",
              .limit_name = ""});
  report.add({.name = spins ? "prefetch.daemon.spinning" : "prefetch.daemon",
              .of = shape.text() + ": of it in the daemon",
              .value = median(rest),
              .unit = "us",
              .limit_name = ""});
  report.add({.name = spins ? "prefetch.table.spinning" : "prefetch.table",
              .of = std::to_string(table_bytes) + " bytes of tables",
              .value = median(table),
              .unit = "us",
              .limit = median(copied),
              .limit_name = "memcpy of as many bytes",
              .better = Better::kLower});
}

// In the engine's thread: vectors and bodies are read where the daemon has them.
void measure_in_process(Report& report, const Shape& shape) {
  test::DaemonProcess::Options options;
  options.host_budget =
      std::to_string(((shape.layers * shape.body_bytes() * 5 / 4 + (256U << 20)) >> 22) * 4) +
      "MiB";
  options.host_slab = "4MiB";
  options.device_kind = "none";
  options.sessions = "staging = \"64KiB\"\nmemory = \"4GiB\"\n";
  test::DaemonProcess daemon(options);
  if (!daemon.start()) {
    std::fprintf(stderr, "bench_prefetch: skvd does not start\n%s\n", daemon.log().c_str());
    std::exit(1);
  }
  Engine engine(daemon.socket(), shape, 0, SKV_RANK_CLIENT);
  std::vector<std::vector<float>> queries;
  for (uint32_t seed = 0; seed < 3; ++seed) queries.push_back(engine.query(seed));
  const int rounds = round_count(report);
  std::vector<double> own, table, copied, call;
  std::vector<char> from, to;
  uint64_t table_bytes = 0;
  for (int round = -10; round < rounds; ++round) {
    const std::vector<float>& query = queries[static_cast<size_t>(round + 10) % queries.size()];
    const auto [done, call_s] = engine.prefetch(query);
    if (round < 0) continue;
    table_bytes = 17ULL * done.read_blocks + 4ULL * shape.layers * (shape.heads + 1);
    from.resize(table_bytes, 1);
    to.resize(table_bytes);
    const double copying = now();
    std::memcpy(to.data(), from.data(), table_bytes);
    asm volatile("" : : "r"(to.data()) : "memory");
    copied.push_back((now() - copying) * 1e6);
    const double inside =
        1e-3 * static_cast<double>(uint64_t{done.rank_ns} + done.cut_ns + done.write_ns);
    own.push_back(call_s * 1e6 - inside);
    call.push_back(call_s * 1e6);
    table.push_back(1e-3 * done.write_ns);
  }
  report.add({.name = "prefetch.inprocess",
              .of = shape.text(),
              .value = median(own),
              .unit = "us",
              .limit = 3.0,
              .limit_name = "3 us",
              .target = 1.0,
              .better = Better::kLower});
  report.add({.name = "prefetch.inprocess.call",
              .of = shape.text() + ": all of it",
              .value = median(call),
              .unit = "us",
              .limit_name = ""});
  report.add({.name = "prefetch.inprocess.table",
              .of = std::to_string(table_bytes) + " bytes of tables, where blocks lie looked up",
              .value = median(table),
              .unit = "us",
              .limit = median(copied),
              .limit_name = "memcpy of as many bytes",
              .better = Better::kLower});
}

int run(int argc, char** argv) {
  Report report(argc, argv);
  Shape shape;
  if (report.quick()) {
    shape.heads = 2;
    shape.sentences = 300;
    shape.budget = 64;
  }
  measure_in_process(report, shape);
  measure(report, shape, /*spins=*/false);
  // Client, data thread and the ping-pong's other end spin at once: with fewer cores they take
  // turns, and neither figure means anything.
  if (cores_allowed() >= 3) {
    measure(report, shape, /*spins=*/true);
  } else {
    std::printf("prefetch.ring.spinning: not measured, it needs 3 cores\n");
  }
  Shape many = shape;
  many.layers = report.quick() ? 2 : 4;
  for (const std::string& word : report.rest()) {
    if (word.rfind("layers=", 0) == 0) many.layers = std::clamp(std::atoi(word.c_str() + 7), 1, 32);
  }
  if (many.layers > 1) measure(report, many, /*spins=*/false);
  return report.finish();
}

}  // namespace
}  // namespace skv::bench

int main(int argc, char** argv) { return skv::bench::run(argc, argv); }
