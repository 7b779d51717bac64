#include "kernels/rank_pages.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "ipc/types/check.h"
#include "kernels/flat_pages.h"

namespace skv {
namespace {

constexpr uint32_t kMeanElement = 2;  // bytes

// What a sentence adds to RankSentence::fine_unit of the next.
constexpr uint32_t fine_units(IndexKind kind, uint32_t runs) {
  return is_flat(kind) ? runs : RankAreaLayout::fine_units(runs);
}

// A scan of the vectors is one long stream: with pages of 4 KiB it spends a third of its time in
// the translation of addresses.
std::byte* page_memory(uint64_t bytes) {
  constexpr uint64_t kHugePage = uint64_t{2} << 20;
  const bool huge = bytes >= kHugePage;
  const uint64_t alignment = huge ? kHugePage : 64;
  auto* memory = static_cast<std::byte*>(
      std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment));
  if (memory != nullptr && huge)
    ::madvise(memory, bytes, MADV_HUGEPAGE);  // advice: where there are none, it stays slow
  return memory;
}

constexpr std::array<uint8_t, 256> kSquareStepOfCode = [] {
  std::array<uint8_t, 256> steps{};
  for (uint32_t c = 0; c < 256; ++c) steps[c] = square_step(static_cast<uint8_t>(c));
  return steps;
}();

// The low bytes of four numbers of 16 bits.
uint32_t low_bytes(uint64_t four) {
  four &= 0x00FF00FF00FF00FFU;
  four = (four | four >> 8) & 0x0000FFFF0000FFFFU;
  return static_cast<uint32_t>(four | four >> 16);
}

// Four channels of four runs, each `row_bytes` behind the one before: nibble 4 c + r is run r of
// channel c, plus 8.
uint64_t load_four(const std::byte* row, size_t row_bytes) {
  uint64_t four = 0;
  for (uint32_t c = 0; c < 4; ++c) {
    uint16_t runs = 0;
    std::memcpy(&runs, row + c * row_bytes, sizeof runs);
    four |= uint64_t{runs} << (16 * c);
  }
  return four ^ 0x8888888888888888U;
}

// The tiles of a record as ResidualPlace says.
void lay_out_residuals(const std::byte* tiles, uint32_t k_dim, uint32_t runs, std::byte* to) {
  constexpr uint64_t kLow = 0x0F0F0F0F0F0F0F0FU;
  for (uint32_t run = 0; run < runs; run += kQuadRuns) {
    const uint32_t first_run = run / kTileRuns * kTileRuns;
    const size_t row_bytes = VectorRecordLayout::tile_width(runs, first_run) / 2;
    const std::byte* from =
        tiles + VectorRecordLayout::tile_offset(k_dim, first_run) + (run - first_run) / 2;
    for (uint32_t line = 0; line < k_dim; line += kLineChannels) {
      const uint32_t half = std::min(k_dim - line, kLineChannels) / 2;
      for (uint32_t at = line; at < line + half; at += 4) {
        const uint64_t low = load_four(from + at * row_bytes, row_bytes);
        const uint64_t high = load_four(from + (at + half) * row_bytes, row_bytes);
        const uint64_t even = (low & kLow) | (high & kLow) << 4;  // of runs 0 and 2
        const uint64_t odd = (low >> 4 & kLow) | (high & ~kLow);
        const uint32_t words[kQuadRuns] = {low_bytes(even), low_bytes(odd), low_bytes(even >> 8),
                                           low_bytes(odd >> 8)};
        std::memcpy(to, words, sizeof words);
        to += sizeof words;
      }
    }
  }
}

void append_area(std::byte* area,
                 IndexKind kind,
                 uint32_t k_dim,
                 const VectorRecordLayout& record_layout,
                 // NOLINTNEXTLINE(bugprone-easily-swappable-parameters)
                 uint32_t runs,
                 uint32_t sentence,
                 uint32_t fine_unit,
                 const std::byte* record) {
  const uint32_t tile_bytes = RankAreaLayout::coarse_tile_bytes(kind, k_dim);
  std::byte* tile = area + size_t{sentence / kTileSentences} * tile_bytes;
  const uint32_t lane = sentence % kTileSentences;
  // Lanes of sentences still to come are scanned with the others and their results thrown away.
  if (lane == 0) std::memset(tile, 0, tile_bytes);
  for (uint32_t d = 0; d < k_dim; ++d) {
    std::memcpy(tile + size_t{d * kTileSentences + lane} * kMeanElement,
                record + size_t{d} * kMeanElement, kMeanElement);
  }
  if (kind == IndexKind::kMean) return;
  const std::byte* codes = record + record_layout.spread_codes;
  for (uint32_t d = 0; d < k_dim; d += 4) {
    uint8_t steps[4];
    for (uint32_t i = 0; i < 4; ++i)
      steps[i] = kSquareStepOfCode[static_cast<size_t>(codes[d + i])];
    std::memcpy(tile + RankAreaLayout::square(k_dim, d, lane), steps, sizeof steps);
  }
  std::memcpy(tile + RankAreaLayout::spread_m(k_dim) + size_t{lane} * 2,
              record + record_layout.spread_m, 2);
  std::memcpy(tile + RankAreaLayout::scale_m(k_dim) + size_t{lane} * 2,
              record + record_layout.scale_m, 2);
  std::byte* fine = area + RankAreaLayout::fine(kind, k_dim) + size_t{k_dim} * fine_unit;
  std::memcpy(fine, record + record_layout.scale_codes, k_dim);
  lay_out_residuals(record + record_layout.tiles, k_dim, runs, fine + k_dim);
}

class HeapPageMemory final : public PageMemory {
 public:
  std::byte* allocate(uint64_t bytes) override { return page_memory(bytes); }
  void release(std::byte* memory, uint64_t) override { std::free(memory); }
};

}  // namespace

std::shared_ptr<PageMemory> heap_page_memory() {
  static const auto kMemory = std::make_shared<HeapPageMemory>();
  return kMemory;
}

VectorPage::VectorPage(std::shared_ptr<PageMemory> from, uint64_t page_bytes)
    : owner(std::move(from)), bytes(page_bytes), memory(owner->allocate(page_bytes)) {}

VectorPage::~VectorPage() {
  if (memory != nullptr) owner->release(memory, bytes);
}

RankPageLayout::RankPageLayout(VectorsLayout vectors) : vectors_(std::move(vectors)) {
  const IndexKind kind = vectors_.index().kind;
  const uint32_t runs_max = kSentenceTokensMax / vectors_.index().run_tokens;
  for (uint32_t layer = 0; layer < vectors_.layer_count(); ++layer) {
    const uint32_t k_dim = vectors_.k_dim(layer);
    uint64_t bytes = RankAreaLayout::fine(kind, k_dim);
    if (is_flat(kind)) {
      bytes = FlatAreaLayout::area_bytes(kind, k_dim, vectors_.index().run_tokens);
    } else if (kind != IndexKind::kMean) {
      bytes += uint64_t{kPageSentences} * k_dim * RankAreaLayout::fine_units(runs_max);
    }
    bytes = (bytes + 63) / 64 * 64;
    areas_.push_back({page_bytes_, bytes});
    page_bytes_ += bytes * vectors_.kv_heads(layer);
  }
  page_bytes_ = (page_bytes_ + RankAreaLayout::kOverread + 63) / 64 * 64;
}

VectorPages::VectorPages(std::shared_ptr<const RankPageLayout> layout,
                         std::shared_ptr<PageMemory> memory)
    : layout_(std::move(layout)), memory_(std::move(memory)) {}

bool VectorPages::append(uint32_t block_count, std::span<const std::byte> blob) {
  const VectorsLayout& vectors = layout_->vectors();
  const uint32_t tokens = block_count * vectors.block_tokens();
  SKV_CHECK(tokens >= 1 && tokens <= kSentenceTokensMax, "tokens of a sentence");
  SKV_CHECK(blob.size() == vectors.blob_bytes(block_count), "blob size");
  if (sentence_count() % kPageSentences == 0) {
    auto page = std::make_shared<VectorPage>(memory_, layout_->page_bytes());
    if (page->memory == nullptr) return false;
    // Read past the last fine row, never used.
    std::memset(page->memory + layout_->page_bytes() - RankAreaLayout::kOverread, 0,
                RankAreaLayout::kOverread);
    bases_.push_back(page->memory);
    pages_.push_back(std::move(page));
  }
  VectorPage& page = *pages_.back();
  const IndexKind kind = vectors.index().kind;
  const std::byte* record = blob.data();
  for (uint32_t layer = 0; layer < vectors.layer_count(); ++layer) {
    const VectorRecordLayout record_layout = vectors.record(layer, block_count);
    for (uint32_t head = 0; head < vectors.kv_heads(layer); ++head) {
      std::byte* area = page.memory + layout_->area_offset(layer, head);
      if (is_flat(kind)) {
        append_flat(area, vectors.index(), vectors.k_dim(layer), page.fine_unit_count,
                    vectors.runs(block_count), record);
      } else {
        append_area(area, kind, vectors.k_dim(layer), record_layout, vectors.runs(block_count),
                    page.sentence_count, page.fine_unit_count, record);
      }
      record += record_layout.bytes;
    }
  }
  sentences_.push_back({end_block_, static_cast<uint16_t>(block_count),
                        static_cast<uint16_t>(page.fine_unit_count)});
  page.block_counts[page.sentence_count++] = block_count;
  page.fine_unit_count += fine_units(kind, vectors.runs(block_count));
  end_block_ += block_count;
  return true;
}

std::shared_ptr<const VectorPage> VectorPages::full_page(uint32_t page_index) const {
  SKV_CHECK(page_index < full_page_count(), "a full page");
  return pages_[page_index];
}

void VectorPages::adopt(std::shared_ptr<const VectorPage> page) {
  SKV_CHECK(sentence_count() % kPageSentences == 0 && page->sentence_count == kPageSentences,
            "only full pages are shared");
  uint32_t fine_unit = 0;
  for (const uint32_t block_count : page->block_counts) {
    sentences_.push_back(
        {end_block_, static_cast<uint16_t>(block_count), static_cast<uint16_t>(fine_unit)});
    fine_unit += fine_units(layout_->vectors().index().kind, layout_->vectors().runs(block_count));
    end_block_ += block_count;
  }
  bases_.push_back(page->memory);
  // Never written again: append only touches a page that is not full.
  pages_.push_back(std::const_pointer_cast<VectorPage>(std::move(page)));
}

SentenceSpan VectorPages::sentence(uint32_t sentence_index) const {
  const RankSentence& at = sentences_[sentence_index];
  return {at.first_block, at.block_count};
}

uint64_t VectorPages::bytes() const { return pages_.size() * layout_->page_bytes(); }

RankView VectorPages::view(uint32_t layer, uint32_t head) const {
  const VectorsLayout& vectors = layout_->vectors();
  RankView view;
  view.pages = bases_.data();
  view.sentences = sentences_.data();
  view.sentence_count = sentence_count();
  view.end_block = end_block_;
  view.area_offset = layout_->area_offset(layer, head);
  view.k_dim = vectors.k_dim(layer);
  view.block_tokens = vectors.block_tokens();
  view.run_tokens = vectors.index().run_tokens;
  view.kind = vectors.index().kind;
  return view;
}

}  // namespace skv
