#include "daemon/data/fill_runner.h"

#include <algorithm>
#include <string>
#include <utility>

#include "ipc/layout/feed.h"

namespace skv {
namespace {

TaskDone::Filled filled_with(const Extent& extent) {
  const uint64_t page = extent.offset / kFeedHostUnit + 1;
  if (page > UINT32_MAX) return {};
  return {static_cast<uint32_t>(page), extent.origin};
}

}  // namespace

void FillRunner::add(const FillTask& task, std::shared_ptr<Window> window, uint64_t deadline_ns) {
  Feed& feed = window->feed();
  const auto refused = [&](ErrorCode code, const std::string& why) {
    TaskDone done;
    done.task = task.task;
    done.session = task.session;
    done.status = Error{code, why};
    hooks_.done(std::move(done));
  };
  for (const FillTask::Chunk& each : task.chunks) {
    if (each.sentence >= feed.sentence_count() || each.chunk >= feed.layout().chunk_count()) {
      return refused(ErrorCode::kInvalidArgument,
                     "sentence " + std::to_string(each.sentence) + ", chunk " +
                         std::to_string(each.chunk) + ": the window covers " +
                         std::to_string(feed.sentence_count()) + " sentences of " +
                         std::to_string(feed.layout().chunk_count()) + " chunks");
    }
  }
  // What readers are through with goes back first; a client that never is would hold ever more.
  window->release_read();
  const size_t held_max =
      4 * size_t{feed.sentence_count()} * feed.layout().chunk_count() + task.chunks.size();
  if (task.waits && window->held_count() + task.chunks.size() > held_max) {
    return refused(ErrorCode::kBusy, "readers_done is too far behind");
  }
  Fill fill;
  fill.task = task.task;
  fill.session = task.session;
  fill.version = task.version;
  fill.deadline_ns = deadline_ns;
  fill.filled.resize(task.chunks.size());
  for (uint32_t i = 0; i < task.chunks.size(); ++i) {
    const ChunkRef chunk{feed.uid(task.chunks[i].sentence), task.chunks[i].chunk};
    feed.touch(task.chunks[i].sentence);
    if (ExtentLease lease = residency_.lease(chunk); lease) {
      fill.filled[i] = filled_with(*lease);
      if (task.waits) fill.leases.push_back(std::move(lease));
      continue;
    }
    hooks_.ask(feed.space(), chunk, task.waits);
    if (task.waits) fill.waiting[chunk].push_back(i);
  }
  fill.window = std::move(window);
  fills_.push_back(std::move(fill));
  finish_ready();
}

void FillRunner::chunk_arrived(const ChunkRef& chunk) {
  for (Fill& fill : fills_) {
    auto waiting = fill.waiting.extract(chunk);
    if (waiting.empty()) continue;
    ExtentLease lease = residency_.lease(chunk);
    for (const uint32_t index : waiting.mapped()) fill.filled[index] = filled_with(*lease);
    fill.leases.push_back(std::move(lease));
  }
  finish_ready();
}

void FillRunner::chunk_failed(const ChunkRef& chunk) {
  for (Fill& fill : fills_) fill.waiting.erase(chunk);
  finish_ready();
}

void FillRunner::run() {
  if (fills_.empty()) return;
  const uint64_t now = hooks_.now_ns();
  for (Fill& fill : fills_) {
    if (now >= fill.deadline_ns) fill.waiting.clear();
  }
  finish_ready();
}

uint64_t FillRunner::next_deadline_ns() const {
  uint64_t next = UINT64_MAX;
  for (const Fill& fill : fills_) next = std::min(next, fill.deadline_ns);
  return next;
}

void FillRunner::finish_ready() {
  for (Fill& fill : fills_) {
    if (fill.waiting.empty()) finish(fill);
  }
  std::erase_if(fills_, [](const Fill& fill) { return fill.waiting.empty(); });
}

void FillRunner::finish(Fill& fill) {
  TaskDone done;
  done.task = fill.task;
  done.session = fill.session;
  done.filled = std::move(fill.filled);
  for (const ExtentLease& lease : fill.leases) {
    // Read once from NVMe: the next use is a hit of the host.
    if (lease->origin == Origin::kNvme) residency_.settle(lease->chunk);
  }
  fill.window->hold(fill.version, std::move(fill.leases));
  hooks_.done(std::move(done));
}

void FillRunner::abort(const Window& window, bool silent) {
  std::erase_if(fills_, [&](const Fill& fill) {
    if (fill.window.get() != &window) return false;
    if (!silent) {
      TaskDone done;
      done.task = fill.task;
      done.session = fill.session;
      done.status = Error{ErrorCode::kCancelled, "the window was closed"};
      hooks_.done(std::move(done));
    }
    return true;
  });
}

}  // namespace skv
