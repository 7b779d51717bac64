#include "client/ranker.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <thread>
#include <utility>

#include "client/abi.h"
#include "kernels/difference.h"

namespace skv::client {
namespace {

uint64_t now_ns() {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                   std::chrono::steady_clock::now().time_since_epoch())
                                   .count());
}

Error bad_feed(const std::string& why) {
  return Error{ErrorCode::kCorrupt, "what the daemon shares of the context: " + why};
}

// One per thread, shared by all its windows: some MiB for a large context.
HeadRanker& thread_ranker() {
  thread_local HeadRanker ranker;
  return ranker;
}

RecallSampler& thread_recall() {
  thread_local RecallSampler recall;
  return recall;
}

// One writer: the thread that has the window.
void add(std::atomic<uint64_t>& sum, uint64_t count) {
  sum.store(sum.load(std::memory_order_relaxed) + count, std::memory_order_relaxed);
}

}  // namespace

Ranker::Ranker(Parts parts)
    : parts_(std::move(parts)),
      layout_(*parts_.body,
              parts_.shape,
              /*slots_in_host=*/true,
              reinterpret_cast<const FeedHeader*>(parts_.feed->data())->sentence_capacity),
      pages_layout_(VectorsLayout(*parts_.model, parts_.index)),
      heads_(layout_.resident_sets()),
      kept_reads_(parts_.shape.query_cosine, layout_.resident_sets()) {}

Result<std::unique_ptr<Ranker>> Ranker::create(Parts parts) {
  if (parts.feed->bytes() < kFeedHeaderBytes) return bad_feed("it is too small");
  std::unique_ptr<Ranker> ranker(new Ranker(std::move(parts)));
  const Parts& own = ranker->parts_;
  const FeedHeader& header = ranker->feed_header();
  ranker->capacity_ = header.sentence_capacity;
  ranker->feed_at_ = FeedLayout::of(ranker->capacity_, own.body->chunk_count());
  if (header.magic != kFeedMagic || header.version != kFeedVersion ||
      header.chunk_count != own.body->chunk_count() ||
      header.page_bytes != ranker->pages_layout_.page_bytes() ||
      own.feed->bytes() < ranker->feed_at_.bytes) {
    return bad_feed("its header");
  }
  if (own.tables->bytes() < ranker->layout_.tables_bytes()) {
    return bad_feed("the tables of the window are too small");
  }
  ranker->tables_ = WindowTables(ranker->layout_, own.tables->data());
  if (ranker->tables_.header().touched_offset != ranker->layout_.touched_offset()) {
    return bad_feed("the header of the window");
  }
  return ranker;
}

const FeedHeader& Ranker::feed_header() const {
  return *reinterpret_cast<const FeedHeader*>(parts_.feed->data());
}

const std::atomic<uint32_t>* Ranker::host_pages_of(uint32_t chunk) const {
  const auto* pages =
      reinterpret_cast<const std::atomic<uint32_t>*>(parts_.feed->data() + feed_at_.host_pages);
  return pages + uint64_t{chunk} * capacity_;
}

// ---- the feed -----------------------------------------------------------------------------------

Result<void> Ranker::follow_feed(Deadline deadline) {
  const FeedHeader& header = feed_header();
  for (;;) {
    const uint32_t count = header.sentence_count.load(std::memory_order_acquire);
    if (count != sentences_.size()) SKV_CHECK_OK(take_sentences(count));
    if (count >= header.promised_count.load(std::memory_order_acquire) ||
        header.ended.load(std::memory_order_acquire) != 0) {
      return {};
    }
    if (Clock::now() >= deadline) {
      return Error{ErrorCode::kTimeout,
                   "vectors of the context's last sentences are not there yet"};
    }
    std::this_thread::sleep_for(std::chrono::microseconds(50));  // after a put or a window_open
  }
}

Result<void> Ranker::take_sentences(uint32_t count) {
  if (count < sentences_.size() || count > capacity_) return bad_feed("its count");
  const auto* entries =
      reinterpret_cast<const FeedSentenceEntry*>(parts_.feed->data() + feed_at_.sentences);
  const auto* offsets = reinterpret_cast<const uint64_t*>(parts_.feed->data() + feed_at_.pages);
  const uint64_t page_bytes = pages_layout_.page_bytes();
  const VectorsLayout& vectors = pages_layout_.vectors();
  const auto units = [&](uint32_t runs) {
    return is_flat(vectors.index().kind) ? runs : RankAreaLayout::fine_units(runs);
  };
  const uint32_t units_max =
      kPageSentences * units(kSentenceTokensMax / vectors.index().run_tokens);
  for (auto i = static_cast<uint32_t>(sentences_.size()); i < count; ++i) {
    const FeedSentenceEntry entry = entries[i];
    const uint32_t tokens = uint32_t{entry.block_count} * vectors.block_tokens();
    if (entry.first_block != end_block_ || tokens == 0 || tokens > kSentenceTokensMax ||
        entry.fine_unit + units(vectors.runs(entry.block_count)) > units_max) {
      return bad_feed("sentence " + std::to_string(i));
    }
    if (i % kPageSentences == 0) {
      const uint64_t offset = offsets[i / kPageSentences];
      if (offset % 64 != 0 || offset > parts_.vectors->bytes() ||
          page_bytes > parts_.vectors->bytes() - offset) {
        return bad_feed("page " + std::to_string(i / kPageSentences));
      }
      pages_.push_back(parts_.vectors->data() + offset);
    }
    sentences_.push_back({entry.first_block, entry.block_count, entry.fine_unit});
    end_block_ += entry.block_count;
  }
  return {};
}

// ---- places -------------------------------------------------------------------------------------

Ranker::HeadPlace::HeadPlace(const Ranker& ranker, uint32_t layer, uint32_t head) {
  const BodyLayout& body = *ranker.parts_.body;
  const uint32_t unit = ranker.layout_.slot_unit_bytes();
  chunk = body.chunk_of(layer);
  block_units = body.block_bytes(layer) / unit;
  page_units = static_cast<uint32_t>(kFeedHostUnit) / unit;
  // Of the head in its chunk, per block of the sentence.
  head_units = static_cast<uint32_t>(body.block_offset(layer, head, 0, 1) / unit);
  host_units = ranker.parts_.host->bytes() / unit;
}

uint32_t Ranker::HeadPlace::first_slot(const RankSentence& span, uint32_t host_page) const {
  const uint64_t first =
      uint64_t{host_page - 1} * page_units + uint64_t{span.block_count} * head_units;
  const bool inside = first + uint64_t{span.block_count} * block_units <= host_units;
  return host_page != 0 && inside ? static_cast<uint32_t>(first) : kNoSlot;
}

// ---- one prefetch -------------------------------------------------------------------------------

Result<Ranked> Ranker::prefetch(const Request& request) {
  uint32_t free = kFree;
  if (!busy_.compare_exchange_strong(free, kBusy, std::memory_order_acquire)) {
    while (busy_.exchange(kAwaited, std::memory_order_acquire) != kFree) busy_.wait(kAwaited);
  }
  Result<Ranked> result = work(request);
  tables_.header().making.store(0, std::memory_order_release);
  if (busy_.exchange(kFree, std::memory_order_release) == kAwaited) busy_.notify_one();
  return result;
}

Result<Ranked> Ranker::work(const Request& request) {
  const LayerRange layers = request.layers;
  const float* query = request.query;
  SKV_CHECK_OK(follow_feed(request.deadline));
  WindowHeader& header = tables_.header();
  const uint64_t readers_done =
      std::min(header.readers_done.load(std::memory_order_acquire), version_);
  for (uint32_t layer = layers.first; layer < layers.end(); ++layer) {
    if (!tables_.buffer_is_free(layer, readers_done)) {
      return Error{ErrorCode::kBusy, "readers_done is too far behind: layer " +
                                         std::to_string(layer) + " has no free table"};
    }
  }
  const uint64_t version = version_ + 1;
  // The daemon hides a chunk, then looks at `making`; this sets it, then looks for chunks.
  // All four accesses are sequentially consistent, so one of the two sees the other.
  header.making.store(version, std::memory_order_seq_cst);

  spent_ = {};
  RankView view;
  view.pages = pages_.data();
  view.sentences = sentences_.data();
  view.sentence_count = static_cast<uint32_t>(sentences_.size());
  view.end_block = end_block_;
  view.block_tokens = parts_.body->block_tokens();
  view.run_tokens = parts_.index.run_tokens;
  view.kind = parts_.index.kind;
  HeadRanker& ranker = thread_ranker();
  uint32_t absent = 0;
  uint32_t ranked_heads = 0;
  uint64_t lap = now_ns();
  for (uint32_t index = layers.first; index < layers.end(); ++index) {
    const LayerDescriptor& layer = parts_.model->layers[index];
    const TableArrays to = tables_.buffer(index);
    to.indptr[0] = 0;
    view.k_dim = layer.k_dim;
    for (uint32_t head = 0; head < layer.kv_heads; ++head) {
      view.area_offset = pages_layout_.area_offset(index, head);
      const uint32_t set = layout_.resident_set(index, head);
      const CutOptions options = parts_.shape.cut_options(set);
      const std::span<const float> queries(query, size_t{layer.queries_per_kv_head} * layer.k_dim);
      ReadSet read;
      RankResult ranked;
      const ReadSet* kept = kept_reads_.find(set, queries, layer.k_dim, end_block_);
      if (kept != nullptr) {
        read = *kept;
        const uint64_t now = now_ns();
        spent_.rank_ns += static_cast<uint32_t>(now - lap);
        lap = now;
      } else if (end_block_ > 0) {
        ranked = ranker.rank(view, layer, query, parts_.shape, options);
        const uint64_t now = now_ns();
        spent_.rank_ns += static_cast<uint32_t>(now - lap);
        lap = now;
        read = ranker.cut(ranked, options);
        kept_reads_.keep(set, queries, layer.k_dim, end_block_, read);
        ++ranked_heads;
      }
      const uint64_t cut = now_ns();
      spent_.cut_ns += static_cast<uint32_t>(cut - lap);
      write_head(index, head, read, to);
      absent += heads_[set].absent;
      const uint64_t written = now_ns();
      spent_.write_ns += static_cast<uint32_t>(written - cut);
      lap = written;
      if (kept == nullptr && thread_recall().due(header.recall_every, ranked)) {
        add_recall(
            thread_recall().compare({view, layer, query, parts_.shape, options}, ranked, read));
        lap = now_ns();
      }
      query += queries.size();
    }
  }
  if (absent > 0 && parts_.fill) {
    SKV_CHECK_OK(fill_absent(request, version));
    lap = now_ns();
  }
  Ranked result;
  result.ranked_heads = ranked_heads;
  publish(layers, version, result);
  spent_.write_ns += static_cast<uint32_t>(now_ns() - lap);
  result.spent = spent_;
  return result;
}

void Ranker::write_head(uint32_t layer, uint32_t head, const ReadSet& read, const TableArrays& to) {
  const uint32_t at = to.indptr[head];
  const auto count = static_cast<uint32_t>(read.blocks.size());
  HeadDone& done = heads_[layout_.resident_set(layer, head)];
  done = {count, 0, read.unread_mass};
  to.indptr[head + 1] = at + count;
  if (count == 0) return;
  std::copy(read.blocks.begin(), read.blocks.end(), to.block + at);
  std::copy(read.sentences.begin(), read.sentences.end(), to.sentence + at);
  std::copy(read.scores.begin(), read.scores.end(), to.score + at);
  std::fill_n(to.origin + at, count, static_cast<uint8_t>(Origin::kHost));

  const HeadPlace place(*this, layer, head);
  const std::atomic<uint32_t>* const host_pages = host_pages_of(place.chunk);
  auto* const touched =
      reinterpret_cast<std::atomic<uint8_t>*>(parts_.tables->data() + layout_.touched_offset());
  uint32_t sentence = kNoBlock;
  uint32_t first_slot = kNoSlot;  // of the sentence's block 0, this head; kNoSlot: absent
  uint32_t first_block = 0;
  for (uint32_t i = 0; i < count; ++i) {
    if (read.sentences[i] != sentence) {
      sentence = read.sentences[i];
      const RankSentence& span = sentences_[sentence];
      first_block = span.first_block;
      first_slot = place.first_slot(span, host_pages[sentence].load(std::memory_order_seq_cst));
      // Looked at first: the line stays shared while nothing changes.
      if (first_slot != kNoSlot && touched[sentence].load(std::memory_order_relaxed) == 0) {
        touched[sentence].store(1, std::memory_order_relaxed);
      }
    }
    if (first_slot == kNoSlot) {
      to.slot[at + i] = kNoSlot;
      ++done.absent;
    } else {
      to.slot[at + i] = first_slot + (read.blocks[i] - first_block) * place.block_units;
    }
  }
}

template <typename Use>
void Ranker::each_entry(LayerRange layers, Use&& use) {
  for (uint32_t layer = layers.first; layer < layers.end(); ++layer) {
    const TableArrays table = tables_.buffer(layer);
    for (uint32_t head = 0; head < parts_.body->kv_heads(layer); ++head) {
      const HeadPlace place(*this, layer, head);
      for (uint32_t i = table.indptr[head]; i < table.indptr[head + 1]; ++i) {
        use(table, i, place, heads_[layout_.resident_set(layer, head)]);
      }
    }
  }
}

// cold = partial: asks once in a while, what is absent stays a miss. wait: everything is leased,
// what is here already too, since the rest may need the room of what is only looked at.
Result<void> Ranker::fill_absent(const Request& request, uint64_t version) {
  constexpr uint64_t kAskAgain = 16;  // prefetches
  constexpr size_t kAskedMax = 1U << 16;
  wanted_.clear();
  each_entry(request.layers,
             [&](const TableArrays& table, uint32_t i, const HeadPlace& place, const HeadDone&) {
               if (!request.wait && table.slot[i] != kNoSlot) return;
               const Wanted wanted{table.sentence[i], place.chunk, 0, 0};
               if (wanted_.empty() || wanted_.back().sentence != wanted.sentence ||
                   wanted_.back().chunk != wanted.chunk) {
                 wanted_.push_back(wanted);
               }
             });
  const auto key = [](const Wanted& of) { return uint64_t{of.chunk} << 32 | of.sentence; };
  std::sort(wanted_.begin(), wanted_.end(),
            [&](const Wanted& a, const Wanted& b) { return key(a) < key(b); });
  wanted_.erase(std::unique(wanted_.begin(), wanted_.end(),
                            [&](const Wanted& a, const Wanted& b) { return key(a) == key(b); }),
                wanted_.end());
  const FillOptions options{version, request.wait, request.deadline_us, request.deadline};
  if (!request.wait) {
    if (asked_.size() > kAskedMax) asked_.clear();
    std::erase_if(wanted_, [&](const Wanted& wanted) {
      const auto [asked, is_new] = asked_.try_emplace(key(wanted), version);
      if (!is_new && asked->second + kAskAgain > version) return true;
      asked->second = version;
      return false;
    });
    return wanted_.empty() ? Result<void>{} : parts_.fill(wanted_, options);
  }
  tables_.header().making.store(0, std::memory_order_release);
  SKV_CHECK_OK(parts_.fill(wanted_, options));
  each_entry(request.layers, [&](const TableArrays& table, uint32_t i, const HeadPlace& place,
                                 HeadDone& done) {
    const uint64_t at = uint64_t{place.chunk} << 32 | table.sentence[i];
    const auto found =
        std::lower_bound(wanted_.begin(), wanted_.end(), at,
                         [&](const Wanted& wanted, uint64_t than) { return key(wanted) < than; });
    const RankSentence& span = sentences_[table.sentence[i]];
    const uint32_t first = place.first_slot(span, found->host_page);
    done.absent -= table.slot[i] == kNoSlot ? 1 : 0;
    done.absent += first == kNoSlot ? 1 : 0;
    table.slot[i] = first == kNoSlot
                        ? kNoSlot
                        : first + (table.block[i] - span.first_block) * place.block_units;
    table.origin[i] = found->origin;
  });
  return {};
}

void Ranker::add_recall(const RecallCounts& counts) {
  WindowHeader& header = tables_.header();
  add(header.recall_rankings, counts.rankings);
  add(header.recall_wanted, counts.wanted);
  add(header.recall_found, counts.found);
}

// ---- publish ------------------------------------------------------------------------------------

void Ranker::publish(LayerRange layers, uint64_t version, Ranked& result) {
  const uint32_t covered_to = end_block_ * parts_.body->block_tokens();
  float mass_sum = 0.0F;
  uint32_t head_sum = 0;
  for (uint32_t layer = layers.first; layer < layers.end(); ++layer) {
    const TableArrays table = tables_.buffer(layer);
    const uint32_t heads = parts_.body->kv_heads(layer);
    float layer_mass = 0.0F;
    uint32_t to = 0;
    uint32_t from = 0;
    for (uint32_t head = 0; head < heads; ++head) {
      HeadDone& done = heads_[layout_.resident_set(layer, head)];
      if (done.absent == 0 && to == from) {
        to += done.count;
        from = to;
      } else {
        for (uint32_t left = done.count; left > 0; --left, ++from) {
          if (table.slot[from] == kNoSlot) {
            done.unread_mass += table.score[from];
            continue;
          }
          table.slot[to] = table.slot[from];
          table.block[to] = table.block[from];
          table.sentence[to] = table.sentence[from];
          table.score[to] = table.score[from];
          table.origin[to] = table.origin[from];
          ++to;
        }
        table.indptr[head + 1] = to;
      }
      result.misses += done.absent;
      layer_mass += std::min(done.unread_mass, 1.0F);  // relative scores may say more than there is
    }
    result.hits_nvme += static_cast<uint32_t>(
        std::count(table.origin, table.origin + to, static_cast<uint8_t>(Origin::kNvme)));
    result.read_blocks += to;
    mass_sum += layer_mass;
    head_sum += heads;
    tables_.publish(layer, {version, covered_to, to, layer_mass / static_cast<float>(heads)});
  }
  version_ = version;
  WindowHeader& header = tables_.header();
  header.making.store(0, std::memory_order_release);
  result.version = version;
  result.covered_to = covered_to;
  result.hits_host = result.read_blocks - result.hits_nvme;
  result.unread_mass = mass_sum / static_cast<float>(head_sum);
  add(header.prefetches, 1);
  add(header.read_blocks, result.read_blocks);
  add(header.misses, result.misses);
}

}  // namespace skv::client
