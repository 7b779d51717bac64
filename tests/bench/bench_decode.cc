// A whole decode step of a model of Llama-3-8B's shape: what one call that ranks all layers for all
// rows of a batch costs the engine, at 64K and 128K tokens.
//
//   bench_decode [--quick] [--json FILE] [memory=GIB] [tokens=K] [batch=N]
//
//   decode.step     ms of a step for 32 layers, in the call. Ranked in process; by ring (the data
//                   thread, blocks read in place); into slots (the data thread, and what is not
//                   resident moves into slots of the window)
//   decode.cpu      CPU time of the engine's thread and of skvd: without other work on the machine
//                   and without the device worker
//   decode.bylayer  the step as a call per layer, as an engine makes it that computes in between
//   decode.rank     of the call ranking and choosing, beside one read of the vectors it looks at
//   decode.write    of the call writing tables
//   decode.rest     what is left of the call
//   decode.new      of the read set not in the step before: how far the synthetic queries drift
//   decode.moved    bytes into slots in a step, of the read set
//   decode.scale    a step with another budget or context, beside the one with 256 blocks at 64K
//
// Measured on as many layers as fit `memory` (16 GiB) and what the machine has free, and scaled to
// 32: layers are alike, a step is so many of them one after another. Bodies are synthetic: times do
// not depend on them, which blocks are chosen does.
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "ipc/layout/vectors.h"
#include "kernels/rank_pages.h"
#include "tests/bench/bench_daemon.h"
#include "tests/bench/decode_engine.h"
#include "tests/bench/rank_world.h"
#include "tests/bench/report.h"

namespace skv::bench {
namespace {

constexpr uint32_t kModelLayers = 32;
constexpr double kSentenceKvMs = 73;            // its appendices A.5, A.6: ranking and copying
constexpr uint64_t kReserveBytes = 3ULL << 30;  // of what the machine has free, left to others

enum class Place { kInProcess, kRing, kSlots };
const char* name_of(Place place) {
  if (place == Place::kInProcess) return "in process";
  return place == Place::kRing ? "by ring" : "into slots";
}

uint64_t available_bytes() {
  std::ifstream file("/proc/meminfo");
  std::string word;
  uint64_t kib = 0;
  while (file >> word) {
    if (word == "MemAvailable:" && file >> kib) return kib << 10;
  }
  return 0;
}

// The earlier case's processes give their memory back after they have ended, gigabytes take a
// while.
uint64_t settled_available_bytes() {
  uint64_t most = available_bytes();
  int still = 0;
  for (int i = 0; i < 150 && still < 10; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    const uint64_t now = available_bytes();
    still = now > most + (32ULL << 20) ? 0 : still + 1;
    most = std::max(most, now);
  }
  return available_bytes();
}

// What one layer of a case takes, all rows together.
struct LayerBytes {
  uint64_t bodies = 0;
  uint64_t vectors = 0;  // as stored and as laid out for ranking
  uint64_t slots = 0;    // resident sets
  uint64_t tables = 0;
  uint64_t sum() const { return bodies + vectors + slots + tables; }
};
constexpr uint32_t kSentenceTokens = 40;  // on average

LayerBytes layer_bytes(const DecodeShape& shape, bool has_slots, uint32_t budget) {
  ModelDescriptor model;
  model.block_tokens = DecodeShape::kBlockTokens;
  LayerDescriptor layer;
  layer.kv_heads = static_cast<uint16_t>(shape.heads);
  layer.queries_per_kv_head = static_cast<uint16_t>(shape.queries);
  layer.k_dim = layer.v_dim = static_cast<uint16_t>(shape.dim);
  model.layers.push_back(layer);
  const VectorsLayout vectors(model, IndexDescriptor{IndexKind::kMeanSpreadRuns, 2});
  const uint64_t page = RankPageLayout(vectors).page_bytes();
  const uint32_t own = shape.tokens - shape.shared_tokens();
  const auto pages = [](uint32_t tokens) { return tokens / kSentenceTokens / kPageSentences + 1; };
  const uint64_t tokens = shape.tokens + uint64_t{shape.rows - 1} * own;
  const uint64_t width = uint64_t{budget} + DecodeEngine::kSinks + DecodeEngine::kRecents;
  LayerBytes made;
  made.bodies = tokens / DecodeShape::kBlockTokens * shape.heads * shape.block_bytes();
  made.vectors =
      tokens / kSentenceTokens * vectors.blob_bytes(kSentenceTokens / DecodeShape::kBlockTokens) +
      (pages(shape.tokens) + uint64_t{shape.rows - 1} * (pages(own) + 1)) * page;
  if (has_slots) {
    made.slots = shape.rows * shape.heads * ((5 * width + 1) / 2) * shape.block_bytes();
  }
  made.tables = 2 * shape.rows * shape.heads * width * 17;
  return made;
}

// Bytes of the vectors of one layer that a step has to read: the coarse ones of what rows share
// once, the fine ones of each row's best sentences.
double ranked_bytes(const DecodeShape& shape, uint32_t budget) {
  const uint32_t own = shape.tokens - shape.shared_tokens();
  const double sentences = (shape.tokens + (shape.rows - 1.0) * own) / kSentenceTokens;
  const double coarse =
      RankAreaLayout::coarse_tile_bytes(IndexKind::kMeanSpreadRuns, shape.dim) / 16.0;
  const double fine_blocks = std::max(4 * budget, 512U);
  const double fine = fine_blocks * DecodeShape::kBlockTokens / kSentenceTokens * shape.dim *
                      RankAreaLayout::fine_units(kSentenceTokens / 2);
  return shape.heads * (sentences * coarse + shape.rows * fine);
}

struct Medians {
  double call_ms = 0;  // of a step for 32 layers, like the others
  double rank_ms = 0;
  double write_ms = 0;
  double rest_ms = 0;
  double moved = 0;  // bytes into slots
  double read = 0;   // bytes of the read sets
  double fresh = 0;  // share
  double cpu_ms = 0;
};

struct Settings {
  bool quick = false;
  double stream_bytes_per_s = 0;  // one thread reads so fast
  uint64_t memory_bytes = 16ULL << 30;
  std::vector<uint32_t> tokens, batches, budgets;  // the second budget is the one of most cases
};

struct Way {
  bool by_layer = false;
  bool has_slots = false;
  bool quick = false;
};

Medians measure(DecodeEngine& engine, pid_t skvd, const DecodeShape& shape, const Way& way) {
  DriftingQueries queries(shape);
  // With slots until all of them were written once: what a step finds in them then stays the same,
  // and no page of theirs is touched for the first time.
  const int warm_up = way.quick ? 2 : way.has_slots ? 14 : 3;
  for (int i = 0; i < warm_up; ++i) (void)engine.step(queries.next(), way.by_layer);
  std::vector<double> call, rank, write, rest, moved, read, fresh, cpu;
  const size_t steps_min = way.quick ? 3 : 5;
  double spent = 0;
  while (call.size() < steps_min || (!way.quick && call.size() < 60 && spent < 2.0)) {
    const std::vector<float>& next = queries.next();
    const uint64_t skvd_ns = cpu_ns(skvd);
    const DecodeEngine::Step step = engine.step(next, way.by_layer);
    const double to_ms = 1e3 * kModelLayers / shape.layers;
    cpu.push_back((step.cpu_s + 1e-9 * static_cast<double>(cpu_ns(skvd) - skvd_ns)) * to_ms);
    spent += step.call_s;
    call.push_back(step.call_s * to_ms);
    rank.push_back(step.rank_s * to_ms);
    write.push_back(step.write_s * to_ms);
    rest.push_back((step.call_s - step.rank_s - step.write_s) * to_ms);
    moved.push_back(static_cast<double>(step.moved) * kModelLayers / shape.layers);
    read.push_back(static_cast<double>(step.read * shape.block_bytes()) * kModelLayers /
                   shape.layers);
    fresh.push_back(static_cast<double>(step.fresh) / static_cast<double>(step.first_row_read));
  }
  return {median(call),  median(rank), median(write), median(rest),
          median(moved), median(read), median(fresh), median(cpu)};
}

class Decode {
 public:
  Decode(Report& report, const Settings& settings) : report_(report), settings_(settings) {}

  // All of one context length, with or without slots: one daemon, bodies put once; the rows of the
  // larger batches come as they are needed.
  void run(uint32_t tokens, bool has_slots) {
    DecodeShape shape;
    shape.tokens = tokens;
    shape.rows = settings_.batches.back();
    if (settings_.quick) shape.heads = 2;
    const uint32_t largest = shape.rows == 1 ? settings_.budgets.back() : settings_.budgets[1];
    if (!fit(shape, has_slots, largest)) return;
    ServerProcess server;
    if (!start(server, shape, has_slots, largest)) {
      std::fprintf(stderr, "bench_decode: skvd does not start\n%s\n", server.log().c_str());
      std::exit(1);
    }
    DecodeEngine engine(server.socket(), shape);
    for (const uint32_t batch : settings_.batches) {
      const double begin = now();
      shape.rows = batch;
      engine.set_rows(batch);
      std::printf("%s, batch %u: %u of %u layers, %.2f GiB of bodies in all, the last %.1f s\n",
                  tokens_text(tokens).c_str(), batch, shape.layers, kModelLayers,
                  static_cast<double>(engine.stored_bytes()) / (1 << 30), now() - begin);
      wait_until_idle(server.pid());
      for (const uint32_t budget : settings_.budgets) {
        const bool usual = budget == settings_.budgets[1];
        if (batch > 1 && !usual) continue;
        if (has_slots) {
          figures(engine, server.pid(), shape, budget, Place::kSlots);
          continue;
        }
        figures(engine, server.pid(), shape, budget, Place::kInProcess);
        if (usual) figures(engine, server.pid(), shape, budget, Place::kRing);
      }
    }
  }

  // How a step grows, for each place that saw all of it.
  void scale() {
    const uint32_t usual = settings_.budgets[1];
    for (const Place place : {Place::kInProcess, Place::kSlots}) {
      for (const uint32_t budget : settings_.budgets) {
        if (budget != usual) {
          ratio({settings_.tokens[0], budget, place}, {settings_.tokens[0], usual, place});
        }
      }
      for (const uint32_t tokens : settings_.tokens) {
        if (tokens != settings_.tokens[0]) {
          ratio({tokens, usual, place}, {settings_.tokens[0], usual, place});
        }
      }
    }
  }

 private:
  struct Case {  // of batch 1
    uint32_t tokens, budget;
    Place place;
    friend auto operator<=>(const Case&, const Case&) = default;
  };

  static std::string tokens_text(uint32_t tokens) { return std::to_string(tokens >> 10) + "K"; }
  static std::string text(const DecodeShape& shape, uint32_t budget, Place place) {
    return tokens_text(shape.tokens) + " tokens, batch " + std::to_string(shape.rows) + ", " +
           std::to_string(budget) + " blocks, " + std::to_string(shape.layers) + " of " +
           std::to_string(kModelLayers) + " layers, " + name_of(place);
  }

  bool fit(DecodeShape& shape, bool has_slots, uint32_t budget) const {
    const uint64_t available = settings_.quick ? available_bytes() : settled_available_bytes();
    const uint64_t room =
        std::min(settings_.memory_bytes, available > kReserveBytes ? available - kReserveBytes : 0);
    const LayerBytes each = layer_bytes(shape, has_slots, budget);
    const uint64_t layers_max = settings_.quick ? 2 : kModelLayers;
    shape.layers = static_cast<uint32_t>(std::min(layers_max, room / each.sum()));
    std::printf(
        "%s tokens, batch %u, %s: a layer takes %.0f MiB (bodies %.0f, vectors %.0f, slots "
        "%.0f, tables %.1f), %.1f GiB hold %u layers\n",
        tokens_text(shape.tokens).c_str(), shape.rows, has_slots ? "slots" : "in place",
        mib(each.sum()), mib(each.bodies), mib(each.vectors), mib(each.slots), mib(each.tables),
        mib(room) / 1024, shape.layers);
    return shape.layers > 0;
  }
  static double mib(uint64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

  static bool start(ServerProcess& server,
                    const DecodeShape& shape,
                    bool has_slots,
                    uint32_t budget) {
    const LayerBytes each = layer_bytes(shape, has_slots, budget);
    const uint64_t host = (each.bodies * shape.layers * 17 / 16 >> 20) + 256;  // MiB, a few spare
    const uint64_t vectors = (each.vectors * shape.layers >> 20) + 256;
    const uint64_t slots = (each.slots * shape.layers >> 20) + 64 * shape.rows;
    std::string more = "vectors = \"" + std::to_string(vectors) +
                       "MiB\"\n[tiers.device]\nkind = \"" + (has_slots ? "emulated" : "none") +
                       "\"\n";
    if (has_slots) more += "budget = \"" + std::to_string(slots) + "MiB\"\n";
    return start_skvd(server, std::to_string(host / 2 * 2) + "MiB", more);
  }

  void figures(
      DecodeEngine& engine, pid_t skvd, const DecodeShape& shape, uint32_t budget, Place place) {
    engine.open_windows(budget, place == Place::kInProcess ? SKV_RANK_CLIENT : SKV_RANK_DAEMON);
    const Medians seen =
        measure(engine, skvd, shape, {false, place == Place::kSlots, settings_.quick});
    if (shape.rows == 1) steps_[{shape.tokens, budget, place}] = seen.call_ms;
    add_step("decode.step", shape, budget, place, seen.call_ms);
    report_.add({.name = "decode.cpu",
                 .of = text(shape, budget, place),
                 .value = seen.cpu_ms,
                 .unit = "ms",
                 .limit_name = ""});
    if (budget != settings_.budgets[1]) return;
    if (shape.rows == 1 && shape.tokens == settings_.tokens[0]) {
      engine.open_windows(budget, place == Place::kInProcess ? SKV_RANK_CLIENT : SKV_RANK_DAEMON);
      const Medians layers =
          measure(engine, skvd, shape, {true, place == Place::kSlots, settings_.quick});
      add_step("decode.bylayer", shape, budget, place, layers.call_ms);
    }
    const std::string of = text(shape, budget, place);
    report_.add(
        {.name = "decode.rank",
         .of = of,
         .value = seen.rank_ms,
         .unit = "ms",
         .limit = 1e3 * kModelLayers * ranked_bytes(shape, budget) / settings_.stream_bytes_per_s,
         .limit_name = "one read of the vectors",
         .better = Better::kLower});
    const auto share = [&](const char* name, double value, const char* unit) {
      report_.add({.name = name, .of = of, .value = value, .unit = unit, .limit_name = ""});
    };
    share("decode.write", seen.write_ms, "ms");
    share("decode.rest", seen.rest_ms, "ms");
    share("decode.new", seen.fresh, "");
    if (place != Place::kSlots) return;
    report_.add({.name = "decode.moved",
                 .of = of,
                 .value = seen.moved / (1 << 20),
                 .unit = "MiB",
                 .limit = seen.read / (1 << 20),
                 .limit_name = "bytes of the read set",
                 .better = Better::kLower});
  }
  void add_step(const char* name,
                const DecodeShape& shape,
                uint32_t budget,
                Place place,
                double milliseconds) {
    report_.add({.name = name,
                 .of = text(shape, budget, place),
                 .value = milliseconds,
                 .unit = "ms",
                 .limit = kSentenceKvMs,
                 .limit_name = "SentenceKV's appendix, one row of 64K",
                 .target = 1,
                 .better = Better::kLower});
  }
  void ratio(const Case& of, const Case& to) {
    const auto above = steps_.find(of);
    const auto below = steps_.find(to);
    if (above == steps_.end() || below == steps_.end()) return;
    report_.add(
        {.name = "decode.scale",
         .of = tokens_text(of.tokens) + ", " + std::to_string(of.budget) + " blocks, " +
               name_of(of.place),
         .value = above->second,
         .unit = "ms",
         .limit = below->second,
         .limit_name = tokens_text(to.tokens) + ", " + std::to_string(to.budget) + " blocks",
         .better = Better::kLower});
  }

  Report& report_;
  const Settings& settings_;
  std::map<Case, double> steps_;  // ms
};

double stream_bytes_per_s() {
  RankShape shape;
  const uint64_t vector_bytes = uint64_t{shape.heads} * shape.k_dim * 2;
  const auto pages = random_pages(shape, static_cast<uint32_t>(2 * l3_bytes() / vector_bytes));
  const StreamingRead read(*pages);
  std::vector<double> rates;
  uint64_t sum = 0;
  for (int i = 0; i < 9; ++i) {
    const double begin = now();
    sum += read.run();
    rates.push_back(static_cast<double>(shape.heads * scanned_bytes(*pages)) / (now() - begin));
  }
  asm volatile("" : : "r"(sum));
  return median(rates);
}

int run(int argc, char** argv) {
  Report report(argc, argv);
  Settings settings;
  settings.quick = report.quick();
  settings.tokens = {64 << 10, 128 << 10};
  settings.batches = {1, 8};
  settings.budgets = {128, 256, 512};
  if (settings.quick) {
    settings.tokens = {8 << 10, 16 << 10};
    settings.batches = {1, 2};
    settings.budgets = {32, 64, 128};
  }
  for (const std::string& word : report.rest()) {
    const size_t equals = word.find('=');
    uint32_t value = 0;  // all of the word behind it, or it is none
    const char* const end = word.data() + word.size();
    if (equals == std::string::npos ||
        std::from_chars(word.data() + equals + 1, end, value).ptr != end) {
      value = 0;
    }
    const std::string key = word.substr(0, equals);
    if (value > 0 && key == "memory") {
      settings.memory_bytes = uint64_t{value} << 30;
    } else if (value > 0 && key == "tokens") {
      settings.tokens = {value << 10};
    } else if (value > 0 && key == "batch") {
      settings.batches = {value};
    } else {
      std::fprintf(stderr,
                   "bench_decode [--quick] [--json FILE] [memory=GIB] [tokens=K] [batch=N]\n");
      return 2;
    }
  }
  settings.stream_bytes_per_s = stream_bytes_per_s();
  Decode decode(report, settings);
  for (const uint32_t tokens : settings.tokens) {
    for (const bool has_slots : {false, true}) decode.run(tokens, has_slots);
  }
  decode.scale();
  return report.finish();
}

}  // namespace
}  // namespace skv::bench

int main(int argc, char** argv) { return skv::bench::run(argc, argv); }
