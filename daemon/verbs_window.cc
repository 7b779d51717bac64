#include <algorithm>
#include <utility>

#include "daemon/limits.h"
#include "daemon/verbs.h"
#include "ipc/layout/window.h"

namespace skv {
namespace {

Result<void> check_head_budgets(const WindowOpen& message, const BodyLayout& layout) {
  if (message.head_budgets.empty()) return {};
  size_t heads = 0;
  for (uint32_t layer = 0; layer < layout.layer_count(); ++layer) heads += layout.kv_heads(layer);
  if (message.head_budgets.size() != heads) {
    return Error{ErrorCode::kInvalidArgument,
                 std::to_string(message.head_budgets.size()) + " head_budgets for a model of " +
                     std::to_string(heads) +
                     " kv heads over all layers; allowed are none or one for each"};
  }
  for (size_t i = 0; i < heads; ++i) {
    if (message.head_budgets[i] > message.budget_blocks) {
      return Error{ErrorCode::kInvalidArgument, "head_budgets[" + std::to_string(i) + "] is " +
                                                    std::to_string(message.head_budgets[i]) +
                                                    ", budget_blocks allows " +
                                                    std::to_string(message.budget_blocks)};
    }
  }
  return {};
}

// Relative scores say nothing of mass, and not all blocks of a sentence may have one.
Result<void> check_scores(const WindowOpen& message) {
  if (message.scores > static_cast<uint8_t>(ScoresKind::kRelative)) {
    return Error{ErrorCode::kInvalidArgument,
                 "scores is " + std::to_string(message.scores) + ", allowed are 0 and 1"};
  }
  if (message.scores == static_cast<uint8_t>(ScoresKind::kShares)) return {};
  if (message.mass > 0.0F) {
    return Error{ErrorCode::kInvalidArgument, "mass is " + std::to_string(message.mass) +
                                                  " with scores 1 (relative), which allow only 0"};
  }
  if (message.cut != static_cast<uint8_t>(CutKind::kBlock)) {
    return Error{ErrorCode::kInvalidArgument, "cut is " + std::to_string(message.cut) +
                                                  " with scores 1 (relative), which allow only 0 "
                                                  "(block)"};
  }
  return {};
}

// The counts a client asked for, in 64 bits so that no sum wraps.
Result<void> check_blocks(const WindowOpen& message, const BodyLayout& layout) {
  const uint64_t width =
      static_cast<uint64_t>(message.budget_blocks) + message.sink_blocks + message.recent_blocks;
  if (width == 0) {
    return Error{ErrorCode::kInvalidArgument,
                 "budget_blocks, sink_blocks and recent_blocks are all 0"};
  }
  if (message.resident_blocks < width) {
    return Error{ErrorCode::kInvalidArgument, "resident_blocks is " +
                                                  std::to_string(message.resident_blocks) +
                                                  ", allowed is from " + std::to_string(width) +
                                                  ", the sum of budget, sink and recent blocks"};
  }
  if (message.cut > static_cast<uint8_t>(CutKind::kSentence)) {
    return Error{ErrorCode::kUnsupported,
                 "cut " + std::to_string(message.cut) +
                     " is not served; served are 0 (block) and 1 (sentence)"};
  }
  if (message.rank_in > static_cast<uint8_t>(RankIn::kEither)) {
    return Error{ErrorCode::kInvalidArgument,
                 "rank_in is " + std::to_string(message.rank_in) + ", allowed are 0 to 2"};
  }
  if (!(message.mass >= 0.0F && message.mass <= 1.0F)) {  // NaN too
    return Error{ErrorCode::kInvalidArgument,
                 "mass is " + std::to_string(message.mass) + ", allowed is 0 to 1"};
  }
  if (!(message.query_cosine >= 0.0F && message.query_cosine <= 1.0F)) {
    return Error{ErrorCode::kInvalidArgument,
                 "query_cosine is " + std::to_string(message.query_cosine) + ", allowed is 0 to 1"};
  }
  if (Result<void> budgets = check_head_budgets(message, layout); !budgets.ok()) return budgets;
  if (Result<void> scores = check_scores(message); !scores.ok()) return scores;
  uint64_t tables = kWindowHeaderBytes;
  for (uint32_t layer = 0; layer < layout.layer_count(); ++layer) {
    // 17 bytes per entry and buffer; TableLayout rounds each array up.
    tables += 2 * (static_cast<uint64_t>(layout.kv_heads(layer)) * width * 17 + 1024);
    if (tables > kWindowTablesBytesMax) {
      return Error{ErrorCode::kTooLarge, "the window's tables would take more than " +
                                             std::to_string(kWindowTablesBytesMax) +
                                             " bytes at a width of " + std::to_string(width) +
                                             " blocks"};
    }
  }
  return {};
}

}  // namespace

void window_open(Core& core, Session& session, const WindowOpen& message, const ReplyPtr& reply) {
  const std::shared_ptr<Context> context = context_of(session, message.context, reply);
  if (context == nullptr) {
    return;
  }
  if (session.windows.size() >= core.config.session_windows_max) {
    reply->error(
        limit_error("sessions.windows", session.windows.size(), core.config.session_windows_max));
    return;
  }
  if (const Result<void> fits = check_blocks(message, context->model()->layout()); !fits.ok()) {
    reply->error(fits.error());
    return;
  }
  context->mark_used();
  const auto id = core.next_id<WindowId>();
  session.windows.emplace(id, OpenedWindow{context->id(), false, false});
  core.windows_opening.emplace(id, reply);

  Feeds::WindowRequest request;
  request.context = context;
  request.model = context->model()->data;
  request.window.session = session.id;
  request.window.window = id;
  request.window.shape = {message.budget_blocks,
                          message.sink_blocks,
                          message.recent_blocks,
                          message.resident_blocks,
                          static_cast<CutUnit>(message.cut),
                          message.coarse_blocks,
                          message.mass,
                          message.head_budgets,
                          message.query_cosine,
                          static_cast<Scores>(message.scores)};
  request.window.rank_in = static_cast<RankIn>(message.rank_in);
  request.sentences_max = core.config.session_context_tokens_max / kSentenceTokensMin + 1;
  core.feeds.open_window(std::move(request));
}

void window_close(Core& core, Session& session, const WindowClose& message, const ReplyPtr& reply) {
  const auto window = session.windows.find(WindowId{message.window});
  if (window == session.windows.end()) {
    reply->error({ErrorCode::kUnknownHandle,
                  "window " + std::to_string(message.window) + " is not one of this session"});
    return;
  }
  if (!window->second.open || core.windows_closing.contains(window->first)) {
    reply->error({ErrorCode::kBusy,
                  "window " + std::to_string(message.window) + " is being opened or closed"});
    return;
  }
  close_window(core, session, window->first, [reply] { reply->ok(); });
}

void window_fill(Core& core, Session& session, const WindowFill& message, const ReplyPtr& reply) {
  const auto window = session.windows.find(WindowId{message.window});
  if (window == session.windows.end() || !window->second.open) {
    reply->error({ErrorCode::kUnknownHandle,
                  "window " + std::to_string(message.window) + " is not one of this session"});
    return;
  }
  const size_t count = message.sentences.size();
  if (count == 0 || count > kFillChunksMax || message.chunks.size() != count) {
    reply->error({ErrorCode::kInvalidArgument, std::to_string(count) + " sentences and " +
                                                   std::to_string(message.chunks.size()) +
                                                   " chunks; they must be as many, 1 to " +
                                                   std::to_string(kFillChunksMax)});
    return;
  }
  FillTask task;
  task.session = session.id;
  task.window = window->first;
  task.waits = message.wait != 0;
  task.version = message.version;
  task.deadline_us = message.deadline_us;
  for (size_t i = 0; i < count; ++i) {
    task.chunks.push_back({message.sentences[i], message.chunks[i]});
  }
  task.task = core.tasks.begin(session.id, {}, [reply](TaskDone& done) {
    if (!done.status.ok()) {
      reply->error(done.status.error());
      return;
    }
    WindowFillReply answer;
    for (const TaskDone::Filled& each : done.filled) {
      answer.host_pages.push_back(each.host_page);
      answer.origins.push_back(static_cast<uint8_t>(each.origin));
    }
    reply->ok(answer);
  });
  core.data.post(std::move(task));
}

void close_window(Core& core, Session& session, WindowId window, std::function<void()> closed) {
  if (!session.windows.contains(window)) {
    closed();
    return;
  }
  std::function<void()>& waiting = core.windows_closing[window];
  if (waiting) {  // somebody closes it already: both hear of it
    waiting = [first = std::move(waiting), second = std::move(closed)] {
      first();
      second();
    };
    return;
  }
  waiting = std::move(closed);
  core.data.post(CloseWindow{session.id, window});
}

}  // namespace skv
