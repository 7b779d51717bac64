#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "ipc/layout/vectors.h"
#include "ipc/types/ids.h"

namespace skv {

inline constexpr uint32_t kTileSentences = 16;  // width of a coarse tile
inline constexpr uint32_t kPageSentences = 64;  // sentences per page: 4 coarse tiles

// Where one (layer, kv head) lies inside its area of a page. All offsets are multiples of 8, those
// of coarse tiles of 64, from a page base that is aligned to 64.
//
//   4 coarse tiles: mean fp16 [d][16], squares of the spread u8 [d / 4][16][4] (square_step),
//   spread_m fp16 [16], scale_m fp16 [16]; then per sentence, back to back: scale codes u8 [d], its
//   runs by fours (ResidualPlace)
// kMean has the means only. Flat kinds: kernels/flat_pages.h.
struct RankAreaLayout {
  static constexpr uint32_t coarse_tile_bytes(IndexKind kind, uint32_t k_dim) {
    return kind == IndexKind::kMean ? 32 * k_dim : 48 * k_dim + 64;
  }
  static constexpr uint32_t squares(uint32_t k_dim) { return 32 * k_dim; }
  // Of a tile.
  static constexpr uint32_t square(uint32_t k_dim, uint32_t channel, uint32_t lane) {
    return squares(k_dim) + (channel / 4 * kTileSentences + lane) * 4 + channel % 4;
  }
  static constexpr uint32_t spread_m(uint32_t k_dim) { return 48 * k_dim; }
  static constexpr uint32_t scale_m(uint32_t k_dim) { return 48 * k_dim + 32; }
  static constexpr uint32_t fine(IndexKind kind, uint32_t k_dim) {
    return kPageSentences / kTileSentences * coarse_tile_bytes(kind, k_dim);
  }
  // Fine bytes of a sentence are k_dim * fine_units: one byte of scale code and stored_runs / 2.
  static constexpr uint32_t fine_units(uint32_t runs) { return 1 + stored_runs(runs) / 2; }
  // Scanners load whole lines, so the last of a sentence may be read past its end.
  static constexpr uint32_t kOverread = 64;
};

// What a spread code stands for in the coarse stage: the square of the spread in steps of
// spread_m^2 / 255, nearest even.
inline constexpr uint32_t kSquareSteps = 255;
constexpr uint8_t square_step(uint8_t code) {
  constexpr float kMagic = 12582912.0F;  // 1.5 * 2^23
  const float steps = log_code_square(code) * static_cast<float>(kSquareSteps);
  return static_cast<uint8_t>((steps + kMagic) - kMagic);
}

// Residuals beside a sentence's scale codes. Four runs are 2 * k_dim bytes: a line of 64 for every
// 32 channels, and a shorter one for what is left. A line of c channels is [c / 8][run][4] bytes:
// byte b of group g has in its low half channel 4 g + b of the line, in its high half c / 2
// further. Stored as residual + 8, so never below 0. So a lane of 32 bits is a run, whatever the
// width of vectors, and a sentence of any length fills them.
inline constexpr uint32_t kQuadRuns = 4;
inline constexpr uint32_t kLineChannels = 32;
struct ResidualPlace {
  uint32_t byte;
  uint32_t shift;  // 0 or 4
};
constexpr uint32_t quad_bytes(uint32_t k_dim) { return 2 * k_dim; }
constexpr ResidualPlace residual_place(uint32_t k_dim, uint32_t run, uint32_t channel) {
  const uint32_t line = channel / kLineChannels * kLineChannels;
  const uint32_t half = (k_dim - line < kLineChannels ? k_dim - line : kLineChannels) / 2;
  // k_dim is even. NOLINTNEXTLINE(clang-analyzer-core.DivideZero)
  const uint32_t at = (channel - line) % half;
  return {
      run / kQuadRuns * quad_bytes(k_dim) + 2 * line + at / 4 * 16 + run % kQuadRuns * 4 + at % 4,
      channel - line < half ? 0U : 4U};
}
constexpr uint32_t padded_to_line(uint32_t k_dim) {
  return (k_dim + kLineChannels - 1) / kLineChannels * kLineChannels;
}

struct RankSentence {
  uint32_t first_block = 0;
  uint16_t block_count = 0;
  // Its fine bytes begin k_dim * fine_unit after RankAreaLayout::fine; flat kinds: runs of the page
  // before it.
  uint16_t fine_unit = 0;
};
static_assert(sizeof(RankSentence) == 8);

// One (layer, kv head) of a context, as rank reads it. Plain and borrowed: valid until the
// VectorPages it came from is appended to. The same struct over device addresses feeds a kernel.
struct RankView {
  const std::byte* const* pages = nullptr;  // base of each page; page i holds sentences 64 i ..
  const RankSentence* sentences = nullptr;
  uint32_t sentence_count = 0;
  uint32_t end_block = 0;    // blocks [0, end_block) are covered
  uint64_t area_offset = 0;  // of this (layer, kv head), from each page's base
  uint32_t k_dim = 0;
  uint32_t block_tokens = 0;
  uint32_t run_tokens = 0;
  IndexKind kind = IndexKind::kMeanSpreadRuns;
};

// Where pages of vectors lie: the heap, or memory that other processes map.
//
// Thread  that of the pages made in it.
class PageMemory {
 public:
  virtual ~PageMemory() = default;
  // Aligned to 64, contents undefined; null: there is no room.
  virtual std::byte* allocate(uint64_t bytes) = 0;
  virtual void release(std::byte* memory, uint64_t bytes) = 0;
};
std::shared_ptr<PageMemory> heap_page_memory();

// Up to 64 consecutive sentences of one path, all layers and heads: the unit of sharing between
// contexts. Immutable once full. Memory is one allocation of fixed size, touched as it fills.
struct VectorPage {
  VectorPage(std::shared_ptr<PageMemory> from, uint64_t page_bytes);  // memory may be null after it
  ~VectorPage();
  VectorPage(const VectorPage&) = delete;
  VectorPage& operator=(const VectorPage&) = delete;

  const std::shared_ptr<PageMemory> owner;
  const uint64_t bytes;
  std::byte* const memory;  // aligned to 64
  uint32_t sentence_count = 0;
  uint32_t fine_unit_count = 0;
  uint32_t block_counts[kPageSentences] = {};
};

// Fixed per (model, index): offsets of the areas inside a page.
//
// Thread  immutable after construction; any. Shared by all contexts of the model and index.
class RankPageLayout {
 public:
  explicit RankPageLayout(VectorsLayout vectors);

  const VectorsLayout& vectors() const { return vectors_; }
  uint64_t page_bytes() const { return page_bytes_; }
  uint64_t area_offset(uint32_t layer, uint32_t head) const {
    return areas_[layer].offset + head * areas_[layer].bytes;
  }

 private:
  struct Area {
    uint64_t offset;
    uint64_t bytes;
  };
  VectorsLayout vectors_;
  std::vector<Area> areas_;  // per layer: of head 0
  uint64_t page_bytes_ = 0;
};

// The semantic vectors of one context, laid out for ranking: append moves nothing that is there.
//
// Thread  the owner's (a data thread). Full pages may be read by any thread.
// Owns    its last page alone; full pages together with whoever else holds them.
class VectorPages {
 public:
  explicit VectorPages(std::shared_ptr<const RankPageLayout> layout,
                       std::shared_ptr<PageMemory> memory = heap_page_memory());

  // Appends the sentence that follows on the context's grid; `blob` is copied and must have the
  // size for block_count (checked), finite or not. Requires: 32..64 tokens, so that it fits.
  // False: it needs a new page and there is no memory for one; nothing changed.
  bool append(uint32_t block_count, std::span<const std::byte> blob);

  // Contexts with a common path share full pages: full_page(i) of one is adopted by the other.
  // Requires of adopt: only full pages before (sentence_count() a multiple of 64), same layout.
  uint32_t full_page_count() const { return sentence_count() / kPageSentences; }
  std::shared_ptr<const VectorPage> full_page(uint32_t page_index) const;
  void adopt(std::shared_ptr<const VectorPage> page);

  uint32_t sentence_count() const { return static_cast<uint32_t>(sentences_.size()); }
  uint32_t end_block() const { return end_block_; }
  SentenceSpan sentence(uint32_t sentence_index) const;
  const RankSentence& ranked(uint32_t sentence_index) const { return sentences_[sentence_index]; }
  uint32_t page_count() const { return static_cast<uint32_t>(bases_.size()); }
  const std::byte* page(uint32_t page_index) const { return bases_[page_index]; }
  uint64_t bytes() const;  // of all its pages, shared ones included
  const RankPageLayout& layout() const { return *layout_; }

  RankView view(uint32_t layer, uint32_t head) const;

 private:
  std::shared_ptr<const RankPageLayout> layout_;
  std::shared_ptr<PageMemory> memory_;
  std::vector<std::shared_ptr<VectorPage>> pages_;
  std::vector<const std::byte*> bases_;
  std::vector<RankSentence> sentences_;
  uint32_t end_block_ = 0;
};

}  // namespace skv
