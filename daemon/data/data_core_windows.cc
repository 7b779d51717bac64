// DataCore: windows, their slabs, the device, and how sessions end.
#include <fcntl.h>

#include <algorithm>
#include <string>
#include <utility>

#include "daemon/data/data_core.h"
#include "ipc/types/check.h"

namespace skv {

void DataCore::on(OpenWindow& command) {
  const auto feed = feeds_.find(command.feed);
  SKV_CHECK(feed != feeds_.end(), "a window's feed is open");
  const bool in_host = !pool_.has_slabs();
  const auto refused = [&](Error error) {
    emit(WindowOpened{command.session, command.window, std::move(error)});
  };
  const WindowShape& shape = command.shape;
  const uint64_t width = uint64_t{shape.sink_blocks} + shape.budget_blocks + shape.recent_blocks;
  if (width == 0 || width > shape.resident_blocks) {
    return refused(Error{ErrorCode::kInvalidArgument,
                         "resident_blocks is " + std::to_string(shape.resident_blocks) +
                             ", a read set has 1 to " + std::to_string(width)});
  }
  const auto arena = arenas_.find(feed->second->space());
  if (in_host && arena == arenas_.end()) {
    return refused(Error{ErrorCode::kInternal, "the space of the window has no host arena"});
  }
  const bool can_share = in_host && feed->second->map() && feed->second->arena();
  if (command.rank_in == RankIn::kClient && !can_share) {
    return refused(Error{ErrorCode::kUnsupported,
                         in_host ? "ranking in the client: the system refuses memory to share"
                                 : "ranking in the client where windows have device slots"});
  }
  if (command.rank_in == RankIn::kEither) {
    command.rank_in = can_share ? RankIn::kClient : RankIn::kDaemon;
  }
  UniqueFd tables;
  Result<std::unique_ptr<Window>> made =
      Window::create(command, feed->second, in_host, in_host ? arena->second.bytes : 0, tables);
  if (!made.ok()) return refused(made.error());
  std::shared_ptr<Window> window = std::move(made).value();
  window->set_recall_every(options_.recall_every);
  tables_to_send_[command.window] = std::move(tables);
  if (in_host) {
    window->state = Window::State::kOpen;
    opened(*window, WindowOpened::Parts{});
  } else {
    const PoolTicket ticket{next_ticket_++};
    if (Result<void> asked = pool_.create_slab(ticket, window->slots_bytes()); !asked.ok()) {
      tables_to_send_.erase(command.window);
      return refused(asked.error());
    }
    creating_.emplace(raw(ticket), command.window);
  }
  const bool added = windows_.emplace(command.window, std::move(window)).second;
  SKV_CHECK(added, "a window's id is new");
  ranking_clients_ += command.rank_in == RankIn::kClient ? 1 : 0;
  DataCounters::set(counters_.windows, windows_.size());
}

void DataCore::opened(Window& window, Result<WindowOpened::Parts> parts) {
  const OpenWindow& options = window.options();
  if (parts.ok()) {
    parts.value().tables = std::move(tables_to_send_[options.window]);
    parts.value().tables_bytes = window.tables_bytes();
    parts.value().slots_bytes = window.slots_bytes();
    parts.value().slot_unit_bytes = window.slot_unit_bytes();
    parts.value().width = window.width();
    parts.value().slots_in_host = window.slots_in_host();
    parts.value().rank_in = options.rank_in;
  }
  if (parts.ok() && window.client_ranks()) {
    const Feed& feed = window.feed();
    parts.value().feed = UniqueFd(::fcntl(feed.map()->read_only_fd(), F_DUPFD_CLOEXEC, 3));
    parts.value().vectors = UniqueFd(::fcntl(feed.arena()->read_only_fd(), F_DUPFD_CLOEXEC, 3));
    parts.value().feed_bytes = feed.map()->bytes();
    parts.value().vectors_bytes = feed.arena()->bytes();
  }
  tables_to_send_.erase(options.window);
  if (!closing_sessions_.contains(options.session)) {
    emit(WindowOpened{options.session, options.window, std::move(parts)});
  }
}

void DataCore::poll_pool() {
  SlotPool::Poll polled = pool_.poll();
  for (SlotPool::Completion& each : polled.completions) {
    if (const auto created = creating_.find(raw(each.ticket)); created != creating_.end()) {
      const WindowId id = created->second;
      creating_.erase(created);
      slab_created(id, each);
    } else {
      const bool known = prefetches_.batch_done(each.ticket, each.status);
      SKV_CHECK(known, "the pool answers what it was given");
    }
  }
  if (polled.lost) device_lost(*polled.lost);
  DataCounters::set(counters_.device_bytes_used, pool_.used_bytes());
}

void DataCore::slab_created(WindowId id, SlotPool::Completion& completion) {
  Window& window = *windows_.at(id);
  if (!completion.status.ok()) {
    const OpenWindow options = window.options();
    const bool answer_close = window.closing && !closing_sessions_.contains(options.session);
    opened(window, completion.status.error());
    ranking_clients_ -= window.client_ranks() ? 1 : 0;
    windows_.erase(id);
    if (answer_close) emit(WindowClosed{options.session, id});
    DataCounters::set(counters_.windows, windows_.size());
    return;
  }
  window.slab = completion.slab->id;
  window.state = Window::State::kOpen;
  WindowOpened::Parts parts;
  parts.slots = std::move(completion.slab->descriptor);
  opened(window, std::move(parts));
}

void DataCore::device_lost(const std::string& reason) {
  DataCounters::add(counters_.devices_lost, 1);
  DeviceLost event{reason, {}};
  for (auto& [id, window] : windows_) {
    if (window->state != Window::State::kOpen) continue;
    window->state = Window::State::kLost;
    prefetches_.abort(*window, ErrorCode::kStale);
    if (!window->closing) event.windows.push_back({window->options().session, id});
  }
  emit(std::move(event));
}

// ---- the end of windows and sessions ------------------------------------------------------------

void DataCore::on(CloseWindow& command) {
  const auto found = windows_.find(command.window);
  if (found == windows_.end()) {  // its opening failed
    emit(WindowClosed{command.session, command.window});
    return;
  }
  found->second->closing = true;
  prefetches_.abort(*found->second, ErrorCode::kCancelled);
  fills_.abort(*found->second, /*silent=*/false);
}

void DataCore::on(CloseSession& command) {
  closing_sessions_.insert(command.session);
  for (auto channel = channels_.begin(); channel != channels_.end();) {
    const auto next = std::next(channel);
    if (channel->second.session == command.session) remove_channel(channel);
    channel = next;
  }
  for (auto& [id, window] : windows_) {
    if (window->options().session != command.session) continue;
    window->closing = true;
    prefetches_.abort(*window, ErrorCode::kOk);
    fills_.abort(*window, /*silent=*/true);
  }
  copies_.drop(command.session);
  puts_.drop(command.session);
}

void DataCore::finish_closing() {
  for (auto at = windows_.begin(); at != windows_.end();) {
    Window& window = *at->second;
    if (!window.closing || window.state == Window::State::kCreating || !prefetches_.idle(window)) {
      ++at;
      continue;
    }
    const OpenWindow options = window.options();
    if (window.state == Window::State::kOpen && !window.slots_in_host()) {
      pool_.destroy_slab(window.slab);
    }
    if (window.client_ranks()) {
      window.collect(counters_);
      --ranking_clients_;
    }
    at = windows_.erase(at);
    if (!closing_sessions_.contains(options.session)) {
      emit(WindowClosed{options.session, options.window});
    }
    DataCounters::set(counters_.windows, windows_.size());
  }
  for (auto at = closing_sessions_.begin(); at != closing_sessions_.end();) {
    const bool has_window = std::any_of(windows_.begin(), windows_.end(), [&](const auto& each) {
      return each.second->options().session == *at;
    });
    if (has_window) {
      ++at;
      continue;
    }
    emit(SessionClosed{*at});
    at = closing_sessions_.erase(at);
  }
}

void DataCore::answer_loop() {
  if (!hidden_.empty()) release_hidden();
  if (ranking_clients_ > 0) collect_marks();
  if (residency_.withdrawals_wait()) {
    for (auto& [id, window] : windows_) window->release_read();
  }
  for (const ChunkRef& chunk : residency_.take_withdrawn()) emit(WithdrawDone{chunk});
  for (auto& [key, chunks] : needed_) {
    emit(NeedChunks{key.first, key.second, std::move(chunks)});
  }
  needed_.clear();
  if (std::vector<ChunkRef> ahead = prefetches_.take_ahead(); !ahead.empty()) {
    DataCounters::add(counters_.read_ahead_asked, ahead.size());
    emit(ReadAheadChunks{std::move(ahead)});
  }
  const Residency::AheadCounts& counts = residency_.ahead_counts();
  DataCounters::set(counters_.read_ahead_used, counts.used);
  DataCounters::set(counters_.read_ahead_late, counts.late);
  DataCounters::set(counters_.read_ahead_wasted, counts.wasted);
  if (now_ns() - touched_sent_ns_ < options_.touch_interval_ns) return;
  Touched touched;
  for (auto& [id, feed] : feeds_) {
    if (!feed->has_touched()) continue;
    const std::vector<SentenceUid> uids = feed->take_touched();
    touched.sentences.insert(touched.sentences.end(), uids.begin(), uids.end());
  }
  if (touched.sentences.empty()) return;
  touched_sent_ns_ = now_ns();
  emit(std::move(touched));
}

}  // namespace skv
