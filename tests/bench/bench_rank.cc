// Ranking beside a streaming read of the same bytes, one thread.
//
//   bench_rank [--quick] [--json FILE] [--all]     --all: every size, dtype and group; else a
//   choice
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <set>
#include <string>
#include <vector>

#include "kernels/cut.h"
#include "kernels/rank.h"
#include "kernels/vectors.h"
#include "tests/bench/rank_vectors.h"
#include "tests/bench/rank_world.h"
#include "tests/bench/report.h"

namespace skv::bench {
namespace {

constexpr float kScale = 0.0883883476F;

std::string count_name(uint64_t count) {
  if (count >= 1 << 20 && count % (1 << 20) == 0) return std::to_string(count >> 20) + "M";
  if (count >= 1024) return std::to_string(count >> 10) + "K";
  return std::to_string(count);
}

// Every head once.
struct Ranker {
  const VectorPages& pages;
  RankOptions options;
  std::vector<float> queries;
  uint32_t query_count;
  RankScratch scratch;

  Ranker(const VectorPages& of, const RankOptions& how, uint32_t count)
      : pages(of),
        options(how),
        queries(random_queries(count, of.layout().vectors().k_dim(0), 7)),
        query_count(count) {}

  double run() {
    const double begin = thread_seconds();
    for (uint32_t head = 0; head < pages.layout().vectors().kv_heads(0); ++head) {
      const RankResult result =
          rank(pages.view(0, head), {queries.data(), query_count, kScale}, options, scratch);
      sink = sink + result.scores[0];
      last = result;
    }
    return thread_seconds() - begin;
  }
  volatile float sink = 0.0F;
  RankResult last;  // of the last head
};

struct Case {
  RankShape shape;
  uint32_t vectors = 0;
  uint32_t queries = 1;
};

double target_of(const Case& c, bool in_cache) {
  if (in_cache) return 0;
  if (c.shape.kind == IndexKind::kFp16 || c.shape.kind == IndexKind::kBf16) {
    return c.queries == 1 ? 0.9 : c.queries == 4 ? 0.75 : 0;
  }
  return 0;
}

// One shape and size: the groups of queries in turn, each beside the read in the same rounds.
void stream_cases(Report& report,
                  const RankShape& shape,
                  uint32_t vectors,
                  const std::vector<uint32_t>& groups,
                  double seconds) {
  const auto pages = random_pages(shape, vectors);
  const double bytes = static_cast<double>(scanned_bytes(*pages)) * shape.heads;
  const StreamingRead stream(*pages);
  const bool in_cache = bytes < 2.0 * static_cast<double>(l3_bytes());
  RankOptions options;
  options.full_scan_blocks = ~0U;
  std::vector<Ranker> rankers;
  for (const uint32_t group : groups) rankers.emplace_back(*pages, options, group);
  std::vector<std::vector<double>> times(groups.size());
  std::vector<double> reads;
  const double end = now() + seconds;
  for (int round = 0; round < 3 || now() < end; ++round) {
    const double begin = thread_seconds();
    volatile uint64_t sum = stream.run();
    (void)sum;
    const double read = thread_seconds() - begin;
    if (round != 0) reads.push_back(read);
    for (size_t i = 0; i < rankers.size(); ++i) {
      const double time = rankers[i].run();
      if (round != 0) times[i].push_back(time);
    }
  }
  for (size_t i = 0; i < groups.size(); ++i) {
    const Case c{shape, vectors, groups[i]};
    Figure figure;
    figure.name =
        std::string(in_cache ? "rank.incache.q" : "rank.stream.q") + std::to_string(groups[i]);
    figure.of = count_name(vectors) + " x " + std::to_string(shape.heads) + " x " +
                std::to_string(shape.k_dim) + " " + name_of(shape.kind) + ", " +
                std::to_string(static_cast<int>(bytes / 1e6)) + " MB";
    figure.value = bytes / median(times[i]) / 1e9;
    figure.unit = "GB/s";
    figure.limit = bytes / median(reads) / 1e9;
    figure.limit_name = std::string("streaming read (") + stream.loop_name() + ")";
    figure.target = target_of(c, in_cache);
    report.add(figure);
  }
}

void streams(Report& report, bool all) {
  const std::vector<uint32_t> groups = {1, 4, 8};
  const IndexKind flat[] = {IndexKind::kFp16, IndexKind::kBf16, IndexKind::kInt8, IndexKind::kInt4};
  std::vector<uint32_t> sizes = {1U << 10, 1U << 17};
  if (all) sizes = {1U << 10, 1U << 13, 1U << 16, 1U << 17, 1U << 20};
  if (report.quick()) sizes = {1U << 10};
  const double seconds = report.quick() ? 0.01 : 1.5;
  for (const IndexKind kind : flat) {
    for (const uint32_t size : sizes) {
      stream_cases(report, {kind, 128, 8, 8, 1}, size, groups, seconds);
    }
  }
  // The product's default index: runs of 2 tokens behind means and spreads.
  for (const uint32_t size : sizes) {
    stream_cases(report, {IndexKind::kMeanSpreadRuns, 128, 8, 8, 2}, size, groups, seconds);
  }
}

// Coarse-then-fine against the full scan of the default index: time, and how much of the full
// scan's read set the other finds. Keys with topics, so that there is something to find.
void coarse_cases(Report& report, bool all) {
  std::vector<uint32_t> sizes = {1U << 12, 1U << 16};
  if (all) sizes = {1U << 12, 1U << 14, 1U << 16, 1U << 18, 1U << 20};
  if (report.quick()) sizes = {1U << 12};
  for (const uint32_t tokens : sizes) {
    const auto pages = topical_pages({IndexKind::kMeanSpreadRuns, 128, 1, 8, 2}, tokens);
    constexpr uint32_t kBudget = 256;
    RankOptions full;
    full.full_scan_blocks = ~0U;
    RankOptions coarse;
    coarse.full_scan_blocks = 0;
    coarse.coarse_blocks = 4 * kBudget;
    std::vector<double> full_times;
    std::vector<double> coarse_times;
    double found = 0;
    double wanted = 0;
    const double end = now() + (report.quick() ? 0.01 : 1.0);
    Ranker a(*pages, full, 4);
    Ranker b(*pages, coarse, 4);
    CutScratch cut_a;
    CutScratch cut_b;
    for (uint64_t round = 0; round < 5 || now() < end; ++round) {
      a.queries = b.queries = random_queries(4, 128, round);
      full_times.push_back(a.run());
      coarse_times.push_back(b.run());
      const ReadSet all_set = cut(a.last, {CutUnit::kBlock, kBudget}, cut_a);
      const ReadSet set = cut(b.last, {CutUnit::kBlock, kBudget}, cut_b);
      const std::set<uint32_t> have(set.blocks.begin(), set.blocks.end());
      for (const uint32_t block : all_set.blocks) found += have.count(block) != 0 ? 1 : 0;
      wanted += static_cast<double>(all_set.blocks.size());
    }
    const std::string of = count_name(tokens) + " tokens, 4 queries, " + std::to_string(kBudget) +
                           " of " + std::to_string(pages->end_block()) + " blocks";
    report.add({"rank.coarse.time", of, median(coarse_times) * 1e6, "us", median(full_times) * 1e6,
                "full scan", 0, Better::kLower});
    report.add({"rank.coarse.recall", of, found / wanted, "", 1.0, "full scan"});
  }
}

}  // namespace
}  // namespace skv::bench

int main(int argc, char** argv) {
  skv::bench::Report report(argc, argv);
  const auto& rest = report.rest();
  const bool all = std::find(rest.begin(), rest.end(), "--all") != rest.end();
  std::fprintf(stderr, "rank: %s, L3 %.0f MiB\n", skv::rank_target(),
               static_cast<double>(skv::bench::l3_bytes()) / (1 << 20));
  if (const auto file = std::find(rest.begin(), rest.end(), "--faiss-file");
      file != rest.end() && file + 1 != rest.end()) {
    return skv::bench::serve_vectors(*(file + 1));
  }
  skv::bench::streams(report, all);
  skv::bench::coarse_cases(report, all);
  return report.finish();
}
