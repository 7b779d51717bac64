// rank and derive beside what bounds them: a streaming read of the same bytes in the same run.
// Arguments of the rank benchmarks: sentences, queries. Counters: bytes_per_second of vectors read.
//
// ctest runs the smallest size for a moment, so that this file cannot rot; for numbers:
//   rank_bench --benchmark_filter=. (release build)
#include <benchmark/benchmark.h>

#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include "kernels/cut.h"
#include "kernels/rank.h"
#include "kernels/rank_pages.h"
#include "kernels/vectors.h"
#include "tests/kernels/synthetic.h"

namespace skv {
namespace {

constexpr uint32_t kKDim = 128;
constexpr uint32_t kBlocks = 6;  // 48 tokens: 24 runs

// A context of equal-sized sentences; a few distinct blobs are enough for times.
const VectorPages& pages_of(uint32_t sentences) {
  static std::map<uint32_t, std::unique_ptr<VectorPages>> made;
  std::unique_ptr<VectorPages>& pages = made[sentences];
  if (pages == nullptr) {
    const synthetic::Shape shape{kKDim, 8, 2};
    pages = synthetic::empty_pages(shape);
    synthetic::Noise noise(1);
    std::vector<std::vector<std::byte>> blobs;
    for (int i = 0; i < 16; ++i) {
      std::vector<float> keys(size_t{kBlocks} * 8 * kKDim);
      for (float& key : keys) key = noise.normal();
      blobs.push_back(synthetic::blob_of(shape, kBlocks, keys));
    }
    for (uint32_t i = 0; i < sentences; ++i) pages->append(kBlocks, blobs[i % 16]);
  }
  return *pages;
}

uint64_t coarse_bytes(uint32_t sentences, bool spread) {
  return uint64_t{(sentences + 15) / 16} * (spread ? 48 * kKDim + 64 : 32 * kKDim);
}
uint64_t fine_bytes(uint64_t sentences) { return sentences * kKDim * (1 + kBlocks * 2); }

// The same pages, each 8 bytes read once.
void stream(benchmark::State& state) {
  const auto sentences = static_cast<uint32_t>(state.range(0));
  const RankView view = pages_of(sentences).view(0, 0);
  const uint64_t page_bytes = RankAreaLayout::fine(view.kind, kKDim) + fine_bytes(kPageSentences);
  const uint32_t page_count = (sentences + kPageSentences - 1) / kPageSentences;
  uint64_t bytes = 0;
  for (auto _ : state) {
    uint64_t sum[8] = {};
    for (uint32_t page = 0; page < page_count; ++page) {
      const std::byte* from = view.pages[page] + view.area_offset;
      const uint64_t last =
          page + 1 < page_count ? kPageSentences : sentences - page * kPageSentences;
      const uint64_t count = RankAreaLayout::fine(view.kind, kKDim) + fine_bytes(last);
      for (uint64_t at = 0; at + 64 <= std::min(count, page_bytes); at += 64) {
        uint64_t words[8];
        std::memcpy(words, from + at, sizeof words);
        for (int i = 0; i < 8; ++i) sum[i] += words[i];
      }
      bytes += count;
    }
    benchmark::DoNotOptimize(sum);
  }
  state.SetBytesProcessed(static_cast<int64_t>(bytes));
}

void run_rank(benchmark::State& state, const RankOptions& options, bool cut_too) {
  const auto sentences = static_cast<uint32_t>(state.range(0));
  const auto query_count = static_cast<uint32_t>(state.range(1));
  const VectorPages& pages = pages_of(sentences);
  const RankView view = pages.view(0, 0);
  const std::vector<float> queries = synthetic::random_queries(query_count, kKDim, 1);
  const RankQuery query = {queries.data(), query_count, 0.0883883476F};
  RankScratch scratch;
  CutScratch cut_scratch;
  uint64_t bytes = 0;
  uint32_t fine = 0;
  for (auto _ : state) {
    const RankResult result = rank(view, query, options, scratch);
    benchmark::DoNotOptimize(result.scores.data());
    fine = static_cast<uint32_t>(result.sentences.size());
    bytes += coarse_bytes(sentences, !result.full_scan) + fine_bytes(fine);
    if (cut_too) {
      const ReadSet set = cut(result, {CutUnit::kBlock, 256}, cut_scratch);
      benchmark::DoNotOptimize(set.blocks.data());
    }
  }
  state.SetBytesProcessed(static_cast<int64_t>(bytes));
  state.counters["fine_sentences"] = fine;
  state.SetLabel(rank_target());
}

void rank_full(benchmark::State& state) {
  RankOptions options;
  options.full_scan_blocks = ~0U;
  run_rank(state, options, false);
}
void rank_coarse_then_fine(benchmark::State& state) {
  RankOptions options;
  options.full_scan_blocks = 0;
  options.coarse_blocks = 1024;
  run_rank(state, options, false);
}
void rank_and_cut(benchmark::State& state) {
  RankOptions options;
  options.full_scan_blocks = 0;
  options.coarse_blocks = 1024;
  run_rank(state, options, true);
}

// Tokens' keys to vectors, one head; items are tokens.
void derive(benchmark::State& state) {
  std::vector<uint16_t> keys(size_t{kBlocks} * 8 * kKDim);
  synthetic::Noise noise(1);
  for (uint16_t& key : keys) key = float_to_half(noise.normal());
  KeyRows rows;
  rows.blocks = reinterpret_cast<const std::byte*>(keys.data());
  rows.row_stride = kKDim * 2;
  rows.block_stride = rows.row_stride * 8;
  rows.block_count = kBlocks;
  rows.block_tokens = 8;
  rows.k_dim = kKDim;
  std::vector<std::byte> record(
      VectorRecordLayout::of(IndexKind::kMeanSpreadRuns, kKDim, kBlocks * 4).bytes);
  DeriveScratch scratch;
  for (auto _ : state) {
    derive_record(rows, {}, nullptr, record, scratch);
    benchmark::DoNotOptimize(record.data());
  }
  state.SetItemsProcessed(state.iterations() * kBlocks * 8);
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(keys.size() * 2));
}

BENCHMARK(stream)->Arg(128)->Arg(1024)->Arg(5000)->Arg(40000);
BENCHMARK(rank_full)->ArgsProduct({{128, 1024, 5000, 40000}, {1, 4, 8}});
BENCHMARK(rank_coarse_then_fine)->ArgsProduct({{1024, 5000, 40000}, {1, 4, 8}});
BENCHMARK(rank_and_cut)->ArgsProduct({{1024, 5000}, {4}});
BENCHMARK(derive);

}  // namespace
}  // namespace skv

BENCHMARK_MAIN();
