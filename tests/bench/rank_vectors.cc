#include "tests/bench/rank_vectors.h"

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>
#include <vector>

#include "kernels/cut.h"
#include "kernels/rank.h"
#include "kernels/vectors.h"
#include "tests/bench/rank_world.h"

namespace skv::bench {
namespace {

constexpr uint32_t kBlockTokens = 4;
// Pages are laid out as a model's with so many heads; only the first is filled and ranked.
constexpr uint16_t kHeads = 8;

struct Vectors {
  uint32_t kind = 0;
  uint32_t count = 0;
  uint32_t dim = 0;
  uint32_t query_count = 0;
  uint32_t k = 0;
  std::vector<float> vectors;
  std::vector<float> queries;
};

bool read(const std::string& path, Vectors& to) {
  std::ifstream file(path, std::ios::binary);
  const auto read_into = [&file](void* memory, size_t bytes) {
    file.read(static_cast<char*>(memory), static_cast<std::streamsize>(bytes));
  };
  read_into(&to, 20);
  if (!file || !is_index_kind(to.kind) || to.count % 16 != 0 || to.dim % 8 != 0) return false;
  to.vectors.resize(size_t{to.count} * to.dim);
  to.queries.resize(size_t{to.query_count} * to.dim);
  read_into(to.vectors.data(), to.vectors.size() * 4);
  read_into(to.queries.data(), to.queries.size() * 4);
  return static_cast<bool>(file);
}

// Sentences of 16 blocks; all tokens of a block are its vector, whose mean it then is.
std::unique_ptr<VectorPages> pages_of(const Vectors& from) {
  ModelDescriptor model;
  model.weights_id = "vectors";
  model.block_tokens = kBlockTokens;
  LayerDescriptor layer;
  layer.kv_heads = kHeads;
  layer.queries_per_kv_head = 1;
  layer.k_dim = layer.v_dim = static_cast<uint16_t>(from.dim);
  model.layers.push_back(layer);
  const VectorsLayout layout(model, {static_cast<IndexKind>(from.kind), kBlockTokens});
  auto pages = std::make_unique<VectorPages>(std::make_shared<RankPageLayout>(layout));
  std::vector<std::byte> blob(layout.blob_bytes(16));
  DeriveScratch scratch;
  KeyRows rows;
  rows.block_stride = size_t{from.dim} * 4;
  rows.row_stride = 0;
  rows.dtype = BodyDtype::kFp32;
  rows.block_count = 16;
  rows.block_tokens = kBlockTokens;
  rows.k_dim = from.dim;
  for (uint32_t first = 0; first < from.count; first += 16) {
    rows.blocks =
        reinterpret_cast<const std::byte*>(from.vectors.data() + size_t{first} * from.dim);
    derive_record(rows, layout.index(), nullptr, std::span(blob).first(layout.record(0, 16).bytes),
                  scratch);
    pages->append(16, blob);
  }
  return pages;
}

}  // namespace

int serve_vectors(const std::string& path) {
  Vectors from;
  if (!read(path, from)) {
    std::fprintf(stderr, "%s: not a file of vectors\n", path.c_str());
    return 1;
  }
  const auto pages = pages_of(from);
  from.vectors.clear();
  from.vectors.shrink_to_fit();
  RankScratch scratch;
  std::vector<CutScratch> cuts(from.query_count);
  std::vector<ReadSet> sets(from.query_count);
  const RankView view = pages->view(0, 0);
  RankOptions options;
  options.best_blocks = from.k;
  std::string verb;
  uint32_t rows = 0;
  std::cout << "ready" << std::endl;
  while (std::cin >> verb && verb != "quit" && std::cin >> rows) {
    rows = std::min(std::max(rows, 1U), from.query_count);
    const double begin = thread_seconds();
    const auto results =
        rank_rows(view, {from.queries.data(), 1, 0.0883883476F, rows}, options, scratch);
    for (uint32_t row = 0; row < rows; ++row) {
      sets[row] = cut(results[row], {CutUnit::kBlock, from.k}, cuts[row]);
    }
    const double seconds = thread_seconds() - begin;
    if (verb == "time") {
      std::cout << seconds << std::endl;
      continue;
    }
    for (uint32_t row = 0; row < rows; ++row) {
      for (const uint32_t block : sets[row].blocks) std::cout << block << ' ';
      std::cout << std::endl;
    }
  }
  return 0;
}

}  // namespace skv::bench
