#include "daemon/data/data_core.h"

#include <time.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <iterator>
#include <string>
#include <utility>

#include "ipc/codec.h"
#include "ipc/types/check.h"

namespace skv {
namespace {

// How often readers_done is looked at while a withdrawal waits for it: no doorbell tells.
constexpr uint64_t kReadersPollNs = 1'000'000;
// How often the marks of clients that rank for themselves are collected.
constexpr uint64_t kCollectNs = 1'000'000'000;
constexpr uint32_t kEntriesPerTurn = 4;  // of one channel, per step

uint64_t monotonic_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

DataOptions with_clock(DataOptions options) {
  if (!options.now_ns) options.now_ns = monotonic_ns;
  return options;
}

// Bytes of the queries of these layers: fp32 [layer][query head][k_dim].
uint64_t query_bytes(const ModelDescriptor& model, LayerRange layers) {
  uint64_t floats = 0;
  for (uint32_t i = layers.first; i < layers.end(); ++i) {
    const LayerDescriptor& layer = model.layers[i];
    floats += uint64_t{layer.kv_heads} * layer.queries_per_kv_head * layer.k_dim;
  }
  return floats * sizeof(float);
}

}  // namespace

DataCore::DataCore(const DataOptions& options, SlotPool& pool, DataCounters& counters, Watch watch)
    : options_(with_clock(options)),
      pool_(pool),
      counters_(counters),
      watch_(std::move(watch)),
      prefetches_(
          {[this] { return now_ns(); }, [this] { return PoolTicket{next_ticket_++}; },
           [this](const Prefetch& prefetch) { complete(prefetch); },
           [this](SpaceId space, const ChunkRef& chunk, bool urgent) { ask(space, chunk, urgent); },
           options_.recall_every, [this] { return called(); }},
          pool,
          residency_,
          counters),
      fills_({[this] { return now_ns(); }, [this](TaskDone done) { emit(std::move(done)); },
              [this](SpaceId space, const ChunkRef& chunk, bool urgent) {
                ask(space, chunk, urgent);
              }},
             residency_),
      copies_({[this] { return now_ns(); },
               [this](SpaceId space) {
                 const auto arena = arenas_.find(space);
                 SKV_CHECK(arena != arenas_.end(), "a task's space has an arena");
                 return arena->second;
               },
               [this](TaskDone done) {
                 if (!puts_.copied(done)) emit(std::move(done));
               },
               [this] { return ready(); }},
              counters),
      puts_({[this](CopyTask task) { copies_.add(std::move(task)); },
             [this](DeriveTask task) { copies_.add(std::move(task)); },
             [this](DataEvent event) { emit(std::move(event)); }}) {
  DataCounters::set(counters_.device_bytes_budget, pool_.budget_bytes());
}

DataCore::~DataCore() {
  for (auto& [id, window] : windows_) prefetches_.abort(*window, ErrorCode::kOk);
}

void DataCore::handle(DataCommand command) {
  std::visit([this](auto& each) { on(each); }, command);
}

uint64_t DataCore::step() {
  const uint64_t slice_ns = uint64_t{options_.slice_us} * 1000;
  const uint64_t copy_slice_ns = uint64_t{options_.copy_slice_us} * 1000;
  poll_pool();
  bool more = take_submissions();
  const bool feeding = feed_slice(now_ns() + slice_ns);
  more |= feeding;
  // Copies that wait take every other turn.
  const bool copies_wait = copies_.count() > 0;
  bool prefetching = prefetches_.run(now_ns() + (copies_wait ? PrefetchRunner::kTurnNs : slice_ns));
  // Each look around costs 2 us and more: ranking leaves nothing of this thread's in the caches.
  for (uint32_t slices = 1; prefetching && slices < kSlicesAlone; ++slices) {
    if (feeding || copies_wait || !alone()) break;
    prefetching = prefetches_.run(now_ns() + slice_ns);
  }
  more |= prefetching;
  fills_.run();
  more |= copies_.run(now_ns() + copy_slice_ns);
  answer_loop();
  finish_closing();
  return next_wake_ns(more);
}

uint64_t DataCore::next_wake_ns(bool more) const {
  if (more) return 0;
  if (pool_.has_slabs() && pool_.wake_descriptor() < 0 &&
      (prefetches_.count() > 0 || !creating_.empty())) {
    return 0;  // an inline pool has no other way to tell
  }
  uint64_t next = std::min(prefetches_.next_deadline_ns(), fills_.next_deadline_ns());
  if (ranking_clients_ > 0) next = std::min(next, collected_ns_ + kCollectNs);
  if (residency_.withdrawals_wait()) next = std::min(next, now_ns() + kReadersPollNs);
  for (const auto& [id, feed] : feeds_) {
    if (!feed->has_touched()) continue;
    next = std::min(next, touched_sent_ns_ + options_.touch_interval_ns);
  }
  return next;
}

// ---- spaces, feeds, chunks ----------------------------------------------------------------------

void DataCore::on(MapArena& command) {
  arenas_[command.space] = {command.base, command.bytes};
  vector_spaces_[command.space] = {command.vectors_bytes, nullptr};
  if (Result<void> mapped = pool_.map_arena(command.space, command.arena.get(), command.bytes);
      !mapped.ok()) {
    // Its moves fail, and say so.
    emit(DeviceLost{mapped.error().message, {}});
  }
}

void DataCore::on(UnmapArena& command) {
  arenas_.erase(command.space);
  vector_spaces_.erase(command.space);
  pool_.unmap_arena(command.space);
  emit(ArenaUnmapped{command.space});
}

void DataCore::on(OpenFeed& command) {
  const FeedId id = command.feed;
  std::shared_ptr<VectorArena> arena = vector_arena(command.space);
  const bool added =
      feeds_.emplace(id, std::make_shared<Feed>(std::move(command), residency_, std::move(arena)))
          .second;
  SKV_CHECK(added, "a feed's id is new");
  DataCounters::set(counters_.feeds, feeds_.size());
}

// Made with the first feed of the space. Null: the system refused the memory, tried again for the
// next feed.
std::shared_ptr<VectorArena> DataCore::vector_arena(SpaceId space) {
  const auto found = vector_spaces_.find(space);
  if (found == vector_spaces_.end()) return nullptr;
  VectorSpace& vectors = found->second;
  if (vectors.arena == nullptr) {
    Result<std::shared_ptr<VectorArena>> made = VectorArena::create(vectors.bytes, warmer_);
    if (made.ok()) vectors.arena = std::move(made).value();
  }
  return vectors.arena;
}

void DataCore::on(ShareFeed& command) {
  const auto feed = feeds_.find(command.feed);
  SKV_CHECK(feed != feeds_.end(), "a shared feed is open");
  feed->second->share(std::move(command.map));
}

void DataCore::on(CloseFeed& command) {
  feeds_.erase(command.feed);  // a window that still closes keeps it
  DataCounters::set(counters_.feeds, feeds_.size());
}

void DataCore::on(FeedSentences& command) {
  const auto feed = feeds_.find(command.feed);
  SKV_CHECK(feed != feeds_.end(), "sentences for an open feed");
  SKV_CHECK(command.first_index == feed->second->queued_count(), "a feed grows at its end");
  feed->second->queue(std::move(command.sentences));
}

bool DataCore::feed_slice(uint64_t end_ns) {
  for (const auto& [id, feed] : feeds_) {
    while (feed->pending()) {
      feed->append_next();
      if (now_ns() >= end_ns) return true;
    }
  }
  uint64_t pages = 0;
  for (const auto& [space, vectors] : vector_spaces_) {
    if (vectors.arena) pages += vectors.arena->charged_bytes();
  }
  DataCounters::set(counters_.vector_pages_bytes, pages);
  return false;
}

void DataCore::on(ChunkArrived& command) {
  if (!residency_.arrived(command.chunk, command.offset, command.origin)) return;
  prefetches_.chunk_arrived(command.chunk);
  fills_.chunk_arrived(command.chunk);
}

void DataCore::on(ChunkFailed& command) {
  residency_.failed(command.chunk);
  prefetches_.chunk_failed(command.chunk);
  fills_.chunk_failed(command.chunk);
}

void DataCore::on(Withdraw& command) {
  Hidden hidden;
  if (ranking_clients_ > 0) {
    for (const auto& [id, window] : windows_) {
      if (!window->client_ranks() || !window->slots_in_host()) continue;
      Feed& feed = window->feed();
      const auto index = residency_.shown_as(command.chunk.uid, feed.map().get());
      if (!index) continue;
      hidden.readers.push_back({window, 0});
      hidden.bytes = feed.layout().chunk_bytes(command.chunk.chunk, feed.span(*index).block_count);
    }
    // Keeps the extent until the readers are done.
    if (!hidden.readers.empty()) hidden.lease = residency_.lease(command.chunk);
  }
  residency_.withdraw(command.chunk);
  if (!hidden.lease) return;
  // A client sets `making`, then looks; we hide, then look at `making`: one of the two sees the
  // other.
  for (Hidden::Reader& reader : hidden.readers) reader.making = reader.window.lock()->making();
  hidden_.push_back(std::move(hidden));
}

void DataCore::on(FillTask& command) {
  const auto found = windows_.find(command.window);
  if (found == windows_.end() || found->second->options().session != command.session ||
      found->second->closing || !found->second->client_ranks() || !found->second->slots_in_host()) {
    TaskDone done;
    done.task = command.task;
    done.session = command.session;
    done.status = Error{ErrorCode::kUnknownHandle, "no window of this session that ranks in place"};
    return emit(std::move(done));
  }
  const uint32_t wanted_us =
      command.deadline_us == 0 ? options_.wait_deadline_us : command.deadline_us;
  const uint64_t deadline_us = std::min(wanted_us, options_.wait_deadline_us_max);
  fills_.add(command, found->second, now_ns() + deadline_us * 1000);
}

void DataCore::collect_marks() {
  if (now_ns() - collected_ns_ < kCollectNs) return;
  collected_ns_ = now_ns();
  for (const auto& [id, window] : windows_) {
    if (window->client_ranks()) window->collect(counters_);
  }
}

void DataCore::release_hidden() {
  std::erase_if(hidden_, [](Hidden& hidden) {
    std::erase_if(hidden.readers, [&](const Hidden::Reader& reader) {
      const std::shared_ptr<Window> window = reader.window.lock();
      return window == nullptr || !window->may_read(reader.making, *hidden.lease, hidden.bytes);
    });
    return hidden.readers.empty();
  });
}

void DataCore::ask(SpaceId space, const ChunkRef& chunk, bool urgent) {
  if (residency_.ask(chunk, urgent)) needed_[{space, urgent}].push_back(chunk);
}

// ---- channels -----------------------------------------------------------------------------------

void DataCore::on(OpenChannel& command) {
  ChannelParts parts;
  Result<DaemonChannel> ring = DaemonChannel::create(command.argument_area_bytes, parts);
  if (!ring.ok()) {
    emit(ChannelOpened{command.session, command.channel, ring.error()});
    return;
  }
  const uint64_t argument_bytes_max = 2 * (parts.bytes - parts.argument_area_offset);
  Channel channel{.session = command.session,
                  .ring = std::move(ring).value(),
                  .argument_bytes_max = argument_bytes_max,
                  .submissions = std::vector<Submission>(kChannelEntries)};
  if (watch_) watch_(channel.ring.doorbell_fd(), true);
  const bool added = channels_.emplace(command.channel, std::move(channel)).second;
  SKV_CHECK(added, "a channel's id is new");
  DataCounters::set(counters_.channels, channels_.size());
  emit(ChannelOpened{command.session, command.channel, std::move(parts)});
}

void DataCore::on(CloseChannel& command) {
  if (const auto found = channels_.find(command.channel); found != channels_.end()) {
    remove_channel(found);
  }
}

void DataCore::remove_channel(std::map<ChannelId, Channel>::iterator channel) {
  if (watch_) watch_(channel->second.ring.doorbell_fd(), false);
  channels_.erase(channel);
  DataCounters::set(counters_.channels, channels_.size());
}

bool DataCore::take_submissions() {
  if (channels_.empty()) return false;
  bool more = false;
  // A different channel first each time, so that all see the same queue in front of them.
  auto at = channels_.upper_bound(next_channel_);
  if (at == channels_.end()) at = channels_.begin();
  next_channel_ = at->first;
  for (size_t i = 0; i < channels_.size(); ++i) {
    more |= take_from(at->first, at->second);
    if (++at == channels_.end()) at = channels_.begin();
  }
  return more;
}

bool DataCore::take_from(ChannelId id, Channel& channel) {
  for (uint32_t taken = 0; taken < kEntriesPerTurn; ++taken) {
    if (channel.stopped || channel.argument_bytes >= channel.argument_bytes_max) return false;
    const Result<std::optional<SubmissionEntry>> next = channel.ring.next();
    if (!next.ok()) {
      protocol_error(channel, next.error().message);
      return false;
    }
    if (!next.value()) return false;
    accept(id, channel, *next.value());
  }
  return true;
}

// From here on the private copy of the entry only.
void DataCore::accept(ChannelId id, Channel& channel, const SubmissionEntry& entry) {
  const auto place = static_cast<uint32_t>(std::countr_one(channel.places_used));
  SKV_CHECK(place < kChannelEntries, "the ring takes no more than it has entries");
  channel.places_used |= uint64_t{1} << place;
  Submission& submission = channel.submissions[place];
  submission.entry = entry;
  submission.result = {};
  submission.result.ticket = entry.ticket;
  submission.result.taken_ns = now_ns();
  submission.rows.clear();
  submission.rows_left = 0;
  const uint64_t number = uint64_t{++submission.use} << 8 | place;
  channel.argument_bytes += entry.argument_bytes;
  const Result<void> accepted = [&]() -> Result<void> {
    const bool reserved_is_zero = std::all_of(std::begin(entry.reserved), std::end(entry.reserved),
                                              [](uint32_t word) { return word == 0; });
    if (!reserved_is_zero) return Error{ErrorCode::kInvalidArgument, "reserved"};
    if (Result<void> inside = channel.ring.check_argument(entry); !inside.ok()) return inside;
    switch (static_cast<ChannelVerb>(entry.verb)) {
      case ChannelVerb::kRequest:
        return accept_request(id, channel, number);
      case ChannelVerb::kPrefetch:
      case ChannelVerb::kGuess:
        return accept_rows(id, channel, number);
    }
    return Error{ErrorCode::kUnsupported, "verb"};
  }();
  if (accepted.ok()) return;
  submission.rows.clear();
  submission.result.status = static_cast<int32_t>(accepted.error().code);
  complete(channel, submission);
}

Result<void> DataCore::accept_request(ChannelId id, Channel& channel, uint64_t number) {
  const SubmissionEntry& entry = channel.submissions[number & 0xFF].entry;
  if (entry.argument_bytes < sizeof(FrameHeader) || entry.argument_bytes > kMessageBytesMax) {
    return Error{ErrorCode::kInvalidArgument, "argument_bytes"};
  }
  ChannelRequest request{channel.session, id, number, {}};
  request.frame.resize(entry.argument_bytes);
  channel.ring.copy_argument(entry, 0, std::as_writable_bytes(std::span(request.frame)));
  if (!write(id, channel, number, request.frame)) emit(std::move(request));
  return {};
}

bool DataCore::write(ChannelId id,
                     const Channel& channel,
                     uint64_t number,
                     std::span<const uint8_t> frame) {
  const Result<FrameHeader> header = decode_header(frame);
  if (!header.ok() || header.value().verb != static_cast<uint16_t>(Verb::kPutWrite) ||
      header.value().is_reply != 0 || header.value().fd_count != 0) {
    return false;
  }
  const Result<PutWrite> message = decode_body<PutWrite>(frame.subspan(sizeof(FrameHeader)));
  if (!message.ok() || !puts_.knows(channel.session, message.value())) return false;
  puts_.write(channel.session, message.value(),
              [this, id, number, request = header.value()](const Result<void>& status) {
                reply(id, number,
                      status.ok() ? encode_reply(request, Empty{})
                                  : encode_error_reply(request, status.error()));
              });
  return true;
}

void DataCore::on(WritePuts& command) {
  puts_.write(command.session, command.message,
              [this, task = command.task, session = command.session](const Result<void>& status) {
                TaskDone done;
                done.task = task;
                done.session = session;
                done.status = status;
                emit(std::move(done));
              });
}

void DataCore::on(ChannelReply& command) { reply(command.channel, command.request, command.frame); }

void DataCore::reply(ChannelId id, uint64_t number, std::span<const uint8_t> frame) {
  const auto found = channels_.find(id);
  if (found == channels_.end()) return;  // closed meanwhile
  Channel& channel = found->second;
  const uint64_t place = number & 0xFF;
  Submission& submission = channel.submissions[place];
  SKV_CHECK((channel.places_used >> place & 1) != 0 && submission.use == number >> 8,
            "a request by channel is answered once");
  if (frame.size() > submission.entry.reply_bytes_max) {
    submission.result.status = static_cast<int32_t>(ErrorCode::kTooLarge);
  } else {
    channel.ring.write_argument(submission.entry, std::as_bytes(frame));
    submission.result.reply_bytes = static_cast<uint32_t>(frame.size());
  }
  complete(channel, submission);
}

Result<std::shared_ptr<Window>> DataCore::window_of_row(const Channel& channel,
                                                        const SubmissionEntry& entry,
                                                        const PrefetchRow& row) const {
  const auto found = windows_.find(WindowId{row.window});
  if (found == windows_.end() || found->second->options().session != channel.session ||
      found->second->closing || found->second->state == Window::State::kCreating) {
    return Error{ErrorCode::kUnknownHandle, "window"};
  }
  const std::shared_ptr<Window>& window = found->second;
  if (window->state == Window::State::kLost) return Error{ErrorCode::kStale, "window"};
  if (window->client_ranks()) {
    return Error{ErrorCode::kInvalidArgument, "the client of this window ranks"};
  }
  const uint32_t layer_count = window->feed().layout().layer_count();
  if (entry.layer_count == 0 || entry.layer_count > layer_count ||
      entry.first_layer > layer_count - entry.layer_count) {
    return Error{ErrorCode::kInvalidArgument, "layers"};
  }
  return window;
}

// Rows are of one shape, so that the query of each is found without believing any of them; a row
// that cannot be served says so and does not keep the others from it.
Result<void> DataCore::accept_rows(ChannelId id, Channel& channel, uint64_t number) {
  Submission& submission = channel.submissions[number & 0xFF];
  const SubmissionEntry& entry = submission.entry;
  const uint64_t rows_bytes = uint64_t{entry.row_count} * sizeof(PrefetchRow);
  if (entry.row_count == 0 || entry.row_count > kPrefetchRowsMax ||
      entry.argument_bytes < rows_bytes ||
      (entry.argument_bytes - rows_bytes) % (entry.row_count * sizeof(float)) != 0) {
    return Error{ErrorCode::kInvalidArgument, "row_count and argument_bytes"};
  }
  if (entry.reply_bytes_max != 0 || entry.cold > static_cast<uint32_t>(ColdMode::kWait)) {
    return Error{ErrorCode::kInvalidArgument, "cold or reply_bytes_max"};
  }
  const uint64_t query_size = (entry.argument_bytes - rows_bytes) / entry.row_count;
  submission.rows.resize(entry.row_count);
  channel.ring.copy_argument(entry, 0, std::as_writable_bytes(std::span(submission.rows)));
  const uint32_t wanted_us = entry.deadline_us == 0 ? options_.wait_deadline_us : entry.deadline_us;
  const uint64_t deadline_us = std::min(wanted_us, options_.wait_deadline_us_max);
  for (uint32_t i = 0; i < entry.row_count; ++i) {
    PrefetchRow& row = submission.rows[i];
    const uint32_t named = row.window;
    row = {};
    row.window = named;
    const LayerRange layers{entry.first_layer, entry.layer_count};
    Result<std::shared_ptr<Window>> window = window_of_row(channel, entry, row);
    if (window.ok() &&
        query_size != query_bytes(window.value()->feed().model()->descriptor, layers)) {
      window = Error{ErrorCode::kInvalidArgument, "argument_bytes"};
    }
    if (!window.ok()) {
      row.status = static_cast<int32_t>(window.error().code);
      DataCounters::add(counters_.prefetches_failed, 1);
      continue;
    }
    PrefetchRequest& request =
        prefetches_.add(std::move(window).value(), submission.result.taken_ns + deadline_us * 1000);
    request.channel = id;
    request.submission = number;
    request.row = i;
    request.layers = layers;
    request.waits = entry.cold == static_cast<uint32_t>(ColdMode::kWait);
    request.guesses = entry.verb == static_cast<uint32_t>(ChannelVerb::kGuess);
    request.taken_ns = submission.result.taken_ns;
    request.query.resize(query_size / sizeof(float));
    channel.ring.copy_argument(entry, static_cast<uint32_t>(rows_bytes + i * query_size),
                               std::as_writable_bytes(std::span(request.query)));
    ++submission.rows_left;
  }
  if (submission.rows_left == 0) complete(channel, submission);
  return {};
}

// A row is done; with the last one the submission is.
void DataCore::complete(const Prefetch& prefetch) {
  const PrefetchRequest& request = prefetch.request;
  const auto found = channels_.find(request.channel);
  if (found == channels_.end()) return;  // closed meanwhile
  Submission& submission = found->second.submissions[request.submission & 0xFF];
  const uint32_t window = submission.rows[request.row].window;
  submission.rows[request.row] = prefetch.result;
  submission.rows[request.row].window = window;
  const auto sum = [](uint32_t& to, uint64_t ns) {
    to = static_cast<uint32_t>(std::min<uint64_t>(to + ns, UINT32_MAX));
  };
  sum(submission.result.rank_ns, prefetch.rank_ns);
  sum(submission.result.cut_ns, prefetch.cut_ns);
  sum(submission.result.write_ns, prefetch.write_ns);
  if (--submission.rows_left == 0) complete(found->second, submission);
}

void DataCore::complete(Channel& channel, Submission& submission) {
  const auto place = static_cast<uint64_t>(&submission - channel.submissions.data());
  channel.places_used &= ~(uint64_t{1} << place);
  channel.argument_bytes -= submission.entry.argument_bytes;
  if (channel.stopped) return;
  CompletionEntry& result = submission.result;
  for (const PrefetchRow& row : submission.rows) {
    if (result.status == 0) result.status = row.status;
  }
  if (!submission.rows.empty()) {
    channel.ring.write_argument(submission.entry, std::as_bytes(std::span(submission.rows)));
  }
  const uint64_t elapsed_ns = now_ns() - result.taken_ns;
  result.daemon_ns = static_cast<uint32_t>(std::min<uint64_t>(elapsed_ns, UINT32_MAX));
  if (Result<void> told = channel.ring.complete(result); !told.ok()) {
    protocol_error(channel, told.error().message);
  }
}

void DataCore::protocol_error(Channel& channel, const std::string& message) {
  channel.stopped = true;
  DataCounters::add(counters_.protocol_errors, 1);
  emit(ProtocolError{channel.session, message});
}

bool DataCore::ready() {
  return std::any_of(channels_.begin(), channels_.end(), [](auto& each) {
    Channel& channel = each.second;
    return !channel.stopped && channel.argument_bytes < channel.argument_bytes_max &&
           channel.ring.ready();
  });
}

bool DataCore::called() {
  return !needed_.empty() || !events_.empty() || (options_.called && options_.called()) || ready();
}

bool DataCore::alone() {
  return !prefetches_.moving() && hidden_.empty() && !residency_.withdrawals_wait() && !called();
}

bool DataCore::prepare_sleep() {
  bool may_sleep = true;
  for (auto& [id, channel] : channels_) {
    // One that is not consumed now is no reason to stay awake: its prefetches wake us.
    if (channel.stopped || channel.argument_bytes >= channel.argument_bytes_max) continue;
    const Result<bool> quiet = channel.ring.prepare_sleep();
    if (!quiet.ok()) {
      protocol_error(channel, quiet.error().message);
      may_sleep = false;  // the loop has to hear of it
    } else if (!quiet.value()) {
      may_sleep = false;
    }
  }
  return may_sleep;
}

void DataCore::awake() {
  for (auto& [id, channel] : channels_) channel.ring.awake();
}

}  // namespace skv
