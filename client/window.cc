#include "client/window.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <utility>

#include "client/abi.h"
#include "client/channel.h"

namespace skv::client {
namespace {

// A table that changes under the reader this often is being overwritten faster than it can be read:
// readers_done was called too early.
constexpr int kReadAttempts = 16;

Error bad_window(const std::string& why) {
  return Error{ErrorCode::kProtocol, "the daemon's window is not what it announced: " + why};
}

// Each word with acquire, so that what is loaded afterwards is not older than it.
TableHeader load_header(std::byte* from) {
  std::array<uint64_t, sizeof(TableHeader) / sizeof(uint64_t)> words{};
  auto* shared = reinterpret_cast<uint64_t*>(from);
  for (size_t i = 0; i < words.size(); ++i) {
    words[i] = std::atomic_ref<uint64_t>(shared[i]).load(std::memory_order_acquire);
  }
  return std::bit_cast<TableHeader>(words);
}

}  // namespace

Window::Window(std::shared_ptr<Context> context)
    : Object(context->owner), context_(std::move(context)) {}

Result<std::shared_ptr<Window>> Window::open(std::shared_ptr<Context> context,
                                             const WindowOpen& options) {
  auto window = std::make_shared<Window>(std::move(context));
  const Deadline deadline = window->context_->session()->call_deadline();
  SKV_TRY(done, window->context_->perform(Verb::kWindowOpen, deadline,
                                          [&](Connection&, uint32_t id) -> Result<WindowOpen> {
                                            WindowOpen message = options;
                                            message.context = id;
                                            return message;
                                          }));
  std::vector<UniqueFd> fds = std::move(done.operation->frame.fds);
  SKV_TRY(reply, done.connection->reply<WindowOpenReply>(done.operation));
  window->connection_ = done.connection;
  if (Result<void> attached = window->attach(options, reply, std::move(fds)); !attached.ok()) {
    done.connection->post(Verb::kWindowClose, WindowClose{reply.window});
    return attached.error();
  }
  return window;
}

Result<void> Window::attach(const WindowOpen& options,
                            const WindowOpenReply& reply,
                            std::vector<UniqueFd> fds) {
  opened_ = reply;
  const bool rank_here = reply.rank_in == static_cast<uint8_t>(RankIn::kClient);
  const size_t expected = (reply.slots_in_host != 0 ? 1 : 2) + (rank_here ? 2 : 0);
  if (fds.size() != expected) {
    return bad_window(std::to_string(fds.size()) + " descriptors instead of " +
                      std::to_string(expected));
  }
  const BodyLayout& layout = context_->model()->layout();
  uint64_t at = kWindowHeaderBytes;
  for (uint32_t layer = 0; layer < layout.layer_count(); ++layer) {
    layer_at_.push_back(at);
    at += sizeof(LayerTableHeader) + 2 * TableLayout::of(layout.kv_heads(layer), reply.width).bytes;
  }
  SKV_TRY(tables_size, shared_memory_bytes(fds[0].get()));
  if (reply.tables_bytes < at || tables_size < reply.tables_bytes) {
    return bad_window("tables of " + std::to_string(tables_size) + " bytes, announced " +
                      std::to_string(reply.tables_bytes) + ", needed " + std::to_string(at));
  }
  SKV_TRY(tables,
          MappedMemory::map(fds[0].get(), reply.tables_bytes, MappedMemory::Access::kReadWrite));
  tables_ = std::make_shared<MappedMemory>(std::move(tables));
  if (header().magic != kWindowMagic || header().layer_count != layout.layer_count() ||
      header().width != reply.width || reply.slot_unit_bytes == 0 ||
      header().slot_unit_bytes != reply.slot_unit_bytes) {
    return bad_window("its header");
  }
  if (reply.slots_in_host != 0) {
    SKV_TRY(host, connection_->host());
    slots_ = host;
    opened_.slots_bytes = slots_->bytes();
    if (rank_here) SKV_CHECK_OK(attach_ranker(options, fds[1], fds[2]));
    return {};
  }
  if (connection_->hello().device_kind == "cuda") {
    return Error{ErrorCode::kUnsupported, "windows in the memory of a cuda device"};
  }
  SKV_TRY(slots_size, shared_memory_bytes(fds[1].get()));
  if (reply.slots_bytes == 0 || slots_size < reply.slots_bytes) {
    return bad_window("slots of " + std::to_string(slots_size) + " bytes, announced " +
                      std::to_string(reply.slots_bytes));
  }
  SKV_TRY(slots,
          MappedMemory::map(fds[1].get(), reply.slots_bytes, MappedMemory::Access::kReadOnly));
  slots_ = std::make_shared<MappedMemory>(std::move(slots));
  return {};
}

Result<void> Window::attach_ranker(const WindowOpen& options,
                                   const UniqueFd& feed,
                                   const UniqueFd& vectors) {
  SKV_TRY(feed_size, shared_memory_bytes(feed.get()));
  if (opened_.feed_bytes == 0 || feed_size < opened_.feed_bytes) {
    return bad_window("a feed of " + std::to_string(feed_size) + " bytes, announced " +
                      std::to_string(opened_.feed_bytes));
  }
  Ranker::Parts parts;
  parts.model = &context_->model()->descriptor();
  parts.body = &context_->model()->layout();
  parts.index = context_->index();
  parts.shape = {options.budget_blocks,
                 options.sink_blocks,
                 options.recent_blocks,
                 options.resident_blocks,
                 static_cast<CutUnit>(options.cut),
                 options.coarse_blocks,
                 options.mass,
                 options.head_budgets,
                 options.query_cosine,
                 static_cast<Scores>(options.scores)};
  parts.tables = tables_;
  SKV_TRY(mapped,
          MappedMemory::map(feed.get(), opened_.feed_bytes, MappedMemory::Access::kReadOnly));
  parts.feed = std::make_shared<MappedMemory>(std::move(mapped));
  SKV_TRY(pages, connection_->vectors(vectors.get(), opened_.vectors_bytes));
  parts.vectors = pages;
  parts.host = slots_;
  parts.fill = [this](std::span<Ranker::Wanted> wanted, const Ranker::FillOptions& fill_options) {
    return fill(wanted, fill_options);
  };
  SKV_TRY(ranker, Ranker::create(std::move(parts)));
  ranker_ = std::move(ranker);
  return {};
}

WindowHeader& Window::header() const { return *reinterpret_cast<WindowHeader*>(tables_->data()); }

bool Window::is_stale() const {
  return !connection_->alive() || context_->closed() || connection_->window_lost(opened_.window);
}

Result<void> Window::check_fresh() const {
  if (context_->closed()) return stale("the context of this window was closed");
  if (!connection_->alive()) {
    return stale("the window belongs to a connection that is gone: close it, open a new one");
  }
  return {};
}

Result<void> Window::close() {
  if (is_stale()) return {};
  const Result<Empty> reply = connection_->call<Empty>(
      Verb::kWindowClose, WindowClose{opened_.window}, context_->session()->call_deadline());
  if (!reply.ok() && reply.error().code != ErrorCode::kDisconnected) return reply.error();
  return {};
}

void Window::saw_version(uint64_t version) {
  uint64_t newest = newest_version_.load(std::memory_order_relaxed);
  while (newest < version && !newest_version_.compare_exchange_weak(newest, version)) {
  }
}

Result<CompletionEntry> Window::prefetch(std::span<const std::shared_ptr<Window>> windows,
                                         std::span<PrefetchRow> rows,
                                         const SubmissionEntry& entry,
                                         std::span<const std::byte> queries,
                                         Deadline deadline) {
  const std::shared_ptr<Connection>& connection = windows[0]->connection_;
  for (size_t i = 0; i < windows.size(); ++i) {
    SKV_CHECK_OK(windows[i]->check_fresh());
    if (windows[i]->connection_ != connection) {
      return invalid("windows of two connections in one prefetch: open them again");
    }
    rows[i] = {};
    rows[i].window = windows[i]->opened_.window;
  }
  const bool here = std::any_of(windows.begin(), windows.end(),
                                [](const auto& window) { return window->ranks_here(); });
  if (here && windows.size() == 1) return windows[0]->rank_here(entry, queries, rows[0], deadline);
  if (here) return one_by_one(windows, rows, entry, queries, deadline);
  SKV_TRY(channel,
          ThreadChannel::of_this_thread(connection, rows.size_bytes() + queries.size(), deadline));
  SKV_TRY(completion, channel->prefetch(entry, rows, queries, deadline));
  for (size_t i = 0; i < windows.size(); ++i) windows[i]->saw_version(rows[i].version);
  return completion;
}

// Rows that are ranked here share this thread.
Result<CompletionEntry> Window::one_by_one(std::span<const std::shared_ptr<Window>> windows,
                                           std::span<PrefetchRow> rows,
                                           const SubmissionEntry& entry,
                                           std::span<const std::byte> queries,
                                           Deadline deadline) {
  const size_t query_bytes = queries.size() / windows.size();
  CompletionEntry sum{};
  for (size_t i = 0; i < windows.size(); ++i) {
    const Result<CompletionEntry> done =
        prefetch(windows.subspan(i, 1), rows.subspan(i, 1), entry,
                 queries.subspan(i * query_bytes, query_bytes), deadline);
    if (!done.ok()) {
      rows[i].status = static_cast<int32_t>(done.error().code);
    } else {
      sum.daemon_ns += done.value().daemon_ns;
      sum.rank_ns += done.value().rank_ns;
      sum.cut_ns += done.value().cut_ns;
      sum.write_ns += done.value().write_ns;
    }
    if (sum.status == 0) sum.status = rows[i].status;
  }
  return sum;
}

Result<void> Window::guess(const SubmissionEntry& entry,
                           std::span<const std::byte> query,
                           Deadline deadline) {
  SKV_CHECK_OK(check_fresh());
  if (ranker_) return {};  // blocks are read in place: there is nothing to move
  PrefetchRow row{};
  row.window = opened_.window;
  SKV_TRY(channel, ThreadChannel::of_this_thread(connection_, sizeof row + query.size(), deadline));
  return channel->guess(entry, row, query, deadline);
}

Result<void> Window::fill(std::span<Ranker::Wanted> wanted,
                          const Ranker::FillOptions& options) const {
  if (!options.wait) connection_->take_arrived();  // answers to what was posted before
  for (size_t first = 0; first < wanted.size(); first += kFillChunksMax) {
    const std::span<Ranker::Wanted> piece =
        wanted.subspan(first, std::min<size_t>(kFillChunksMax, wanted.size() - first));
    WindowFill message;
    message.window = opened_.window;
    message.version = options.version;
    message.wait = options.wait ? 1 : 0;
    message.deadline_us = options.deadline_us;
    for (const Ranker::Wanted& each : piece) {
      message.sentences.push_back(each.sentence);
      message.chunks.push_back(each.chunk);
    }
    if (!options.wait) {
      connection_->post(Verb::kWindowFill, message);
      continue;
    }
    SKV_TRY(reply,
            connection_->call<WindowFillReply>(Verb::kWindowFill, message, options.deadline));
    if (reply.host_pages.size() != piece.size() || reply.origins.size() != piece.size()) {
      return bad_window("its answer to a fill");
    }
    for (size_t i = 0; i < piece.size(); ++i) {
      piece[i].host_page = reply.host_pages[i];
      piece[i].origin = reply.origins[i];
    }
  }
  return {};
}

Result<CompletionEntry> Window::rank_here(const SubmissionEntry& entry,
                                          std::span<const std::byte> query,
                                          PrefetchRow& row,
                                          Deadline deadline) {
  Ranker::Request request;
  request.layers = {entry.first_layer, entry.layer_count};
  request.query = reinterpret_cast<const float*>(query.data());
  request.wait = entry.cold == static_cast<uint32_t>(ColdMode::kWait);
  request.deadline_us = entry.deadline_us;
  request.deadline = deadline;
  SKV_TRY(ranked, ranker_->prefetch(request));
  row.version = ranked.version;
  row.covered_to = ranked.covered_to;
  row.hits_host = ranked.hits_host;
  row.hits_nvme = ranked.hits_nvme;
  row.misses = ranked.misses;
  row.read_blocks = ranked.read_blocks;
  row.unread_mass = ranked.unread_mass;
  row.ranked_heads = ranked.ranked_heads;
  CompletionEntry done{};
  done.rank_ns = ranked.spent.rank_ns;
  done.cut_ns = ranked.spent.cut_ns;
  done.write_ns = ranked.spent.write_ns;
  saw_version(ranked.version);
  return done;
}

Result<skv_table> Window::table(uint32_t layer) {
  const BodyLayout& layout = context_->model()->layout();
  if (layer >= layout.layer_count()) {
    return invalid("layer " + std::to_string(layer) + " of a model that has " +
                   std::to_string(layout.layer_count()));
  }
  SKV_CHECK_OK(check_fresh());
  const uint32_t heads = layout.kv_heads(layer);
  const TableLayout at = TableLayout::of(heads, opened_.width);
  std::byte* const base = tables_->data() + layer_at_[layer];
  const auto& current = reinterpret_cast<const LayerTableHeader*>(base)->current;
  for (int attempt = 0; attempt < kReadAttempts; ++attempt) {
    const uint64_t word = current.load(std::memory_order_acquire);
    if (word == 0) {
      return Error{ErrorCode::kNotFound, "layer " + std::to_string(layer) + " has no table yet"};
    }
    std::byte* buffer = base + sizeof(LayerTableHeader) + (word & 1) * at.bytes;
    const TableHeader seen = load_header(buffer);
    // While we looked, `current` may have moved on twice, and this buffer been written again.
    if (current.load(std::memory_order_relaxed) != word) continue;
    skv_table table{};
    table.covered_to = seen.covered_to;
    table.version = seen.version;
    table.entry_count = seen.entry_count;
    table.head_count = seen.head_count;
    table.unread_mass = seen.unread_mass;
    table.indptr = reinterpret_cast<const uint32_t*>(buffer + at.indptr);
    table.slot = reinterpret_cast<const uint32_t*>(buffer + at.slot);
    table.block = reinterpret_cast<const uint32_t*>(buffer + at.block);
    table.sentence = reinterpret_cast<const uint32_t*>(buffer + at.sentence);
    table.score = reinterpret_cast<const float*>(buffer + at.score);
    table.origin = reinterpret_cast<const uint8_t*>(buffer + at.origin);
    const bool whole = seen.version == word >> 1 && seen.head_count == heads &&
                       seen.entry_count <= uint64_t{heads} * opened_.width &&
                       table.indptr[0] == 0 && table.indptr[heads] == seen.entry_count;
    if (!whole) {
      return Error{ErrorCode::kCorrupt,
                   "the table of layer " + std::to_string(layer) + " does not hold together"};
    }
    saw_version(table.version);
    return table;
  }
  return Error{ErrorCode::kBusy,
               "the table of layer " + std::to_string(layer) + " is overwritten while it is read"};
}

Result<const void*> Window::slot(uint32_t layer, uint32_t slot) const {
  const BodyLayout& layout = context_->model()->layout();
  if (layer >= layout.layer_count()) {
    return invalid("layer " + std::to_string(layer) + " of a model that has " +
                   std::to_string(layout.layer_count()));
  }
  const uint64_t at = uint64_t{slot} * opened_.slot_unit_bytes;
  const uint64_t bytes = layout.block_bytes(layer);
  if (at > opened_.slots_bytes || bytes > opened_.slots_bytes - at) {
    return invalid("slot " + std::to_string(slot) + " lies outside the window's " +
                   std::to_string(opened_.slots_bytes) + " bytes of slots");
  }
  return static_cast<const void*>(slots_->data() + at);
}

Result<void> Window::readers_done(uint64_t version) {
  const uint64_t newest = newest_version_.load(std::memory_order_relaxed);
  if (version > newest) {
    return invalid("version " + std::to_string(version) + " was never seen, the newest is " +
                   std::to_string(newest));
  }
  std::atomic<uint64_t>& word = header().readers_done;
  uint64_t now = word.load(std::memory_order_relaxed);
  while (now < version && !word.compare_exchange_weak(now, version, std::memory_order_release,
                                                      std::memory_order_relaxed)) {
  }
  return {};
}

}  // namespace skv::client
