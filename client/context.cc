#include "client/context.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "client/abi.h"

namespace skv::client {
namespace {

// Of one message: 16 KiB of tokens and at most twice that of ends keep it below kMessageBytesMax.
constexpr uint32_t kPieceTokens = 4096;
constexpr uint32_t kPieceEndsMax = 8192;
static_assert(kPieceTokens <= kAppendTokensMax &&
              4 * (kPieceTokens + kPieceEndsMax) + 256 <= kMessageBytesMax);

// Cuts one append into messages. Ends go with the piece that reaches them, so that none is declared
// before its turn; the last piece takes what is left.
std::vector<ContextAppend> cut_into_pieces(const Context::Append& append) {
  std::vector<ContextAppend> pieces;
  std::span<const uint32_t> tokens = append.tokens;
  std::span<const uint32_t> ends = append.ends;
  uint32_t position = append.first_position;
  do {
    const size_t count = std::min<size_t>(tokens.size(), kPieceTokens);
    const bool last = count == tokens.size();
    const uint32_t piece_end = position + static_cast<uint32_t>(count);
    const size_t end_count =
        last ? ends.size()
             : static_cast<size_t>(std::upper_bound(ends.begin(), ends.end(), piece_end) -
                                   ends.begin());
    ContextAppend piece;
    piece.first_position = position;
    piece.ends_final_to = last ? append.ends_final_to : std::min(append.ends_final_to, piece_end);
    piece.extra = append.extra;
    piece.tokens.assign(tokens.begin(), tokens.begin() + static_cast<ptrdiff_t>(count));
    piece.ends.assign(ends.begin(), ends.begin() + static_cast<ptrdiff_t>(end_count));
    pieces.push_back(std::move(piece));
    tokens = tokens.subspan(count);
    ends = ends.subspan(end_count);
    position = piece_end;
  } while (!tokens.empty());
  return pieces;
}

}  // namespace

Context::Context(std::shared_ptr<Model> model, IndexDescriptor index)
    : Object(model->owner), model_(std::move(model)), index_(index) {}

Result<std::shared_ptr<Context>> Context::open(std::shared_ptr<Model> model,
                                               IndexDescriptor index) {
  auto context = std::make_shared<Context>(std::move(model), index);
  const Deadline deadline = context->session()->call_deadline();
  SKV_TRY(connection, context->session()->connection(deadline));
  const std::lock_guard lock(context->mutex_);
  auto id = context->remote(*connection, deadline);
  if (!id.ok()) return id.error();
  return context;
}

Result<uint32_t> Context::remote(Connection& connection, Deadline deadline) {
  if (closed_) return Error{ErrorCode::kUnknownHandle, "the context was closed"};
  if (unsettled_) SKV_CHECK_OK(settle(deadline));
  if (serial_ != connection.serial()) SKV_CHECK_OK(replay(connection, deadline));
  return id_;
}

Result<void> Context::replay(Connection& connection, Deadline deadline) {
  SKV_TRY(model, model_->remote(connection, deadline));
  ContextOpen open;
  open.model = model;
  open.index_kind = static_cast<uint8_t>(index_.kind);
  open.run_tokens = index_.run_tokens;
  SKV_TRY(opened, connection.call<ContextOpenReply>(Verb::kContextOpen, open, deadline));

  std::vector<uint32_t> blocks;
  for (size_t i = 0; i < runs_.size(); ++i) {
    const Run& run = runs_[i];
    const uint32_t run_end = run.first + run.count;
    const bool last_run = i + 1 == runs_.size();
    const auto first = std::upper_bound(ends_.begin(), ends_.end(), i == 0 ? 0 : run.first);
    const auto last = last_run ? ends_.end() : std::upper_bound(first, ends_.end(), run_end);
    Append append;
    append.first_position = run.first;
    append.tokens = std::span(tokens_).subspan(run.first, run.count);
    append.ends = {first, last};
    append.ends_final_to = last_run ? ends_final_to_ : std::min(ends_final_to_, run_end);
    append.extra = run.extra;
    for (ContextAppend& piece : cut_into_pieces(append)) {
      piece.context = opened.context;
      SKV_TRY(reply, connection.call<ContextAppendReply>(Verb::kContextAppend, piece, deadline));
      SKV_CHECK_OK(take_closed(reply, blocks));
    }
  }
  if (adopted_ || stored_) {
    SKV_TRY(matched, connection.call<MatchReply>(Verb::kMatch, Match{opened.context, 1}, deadline));
    blocks.assign(matched.path_blocks.begin(), matched.path_blocks.end());
  }
  if (blocks != blocks_) {
    blocks_ = std::move(blocks);
    ++changes_;
    unacknowledged_ = true;
  }
  id_ = opened.context;
  serial_ = connection.serial();
  return {};
}

// The answer that did not come in time: by now it is there, or never will be.
Result<void> Context::settle(Deadline deadline) {
  const Session::Done& done = unsettled_->done;
  const Result<void> waited = done.connection->wait(done.operation, deadline);
  if (!waited.ok() && waited.error().code == ErrorCode::kTimeout) return waited.error();
  const Unsettled settled = std::move(*unsettled_);
  unsettled_.reset();
  if (!waited.ok()) return {};  // lost with its connection: not appended as far as we know
  auto reply = settled.done.connection->reply<ContextAppendReply>(settled.done.operation);
  if (!reply.ok()) return {};  // refused
  SKV_CHECK_OK(take_closed(reply.value(), blocks_));
  record(settled.piece);
  return {};
}

Result<void> Context::check_known() const {
  if (!unacknowledged_) return {};
  return stale(
      "the sentences of this context changed when it was opened again after a "
      "reconnection: read them again (context info) before using indices");
}

Result<void> Context::take_closed(const ContextAppendReply& reply, std::vector<uint32_t>& blocks) {
  if (!reply.closed_blocks.empty() && reply.first_sentence != blocks.size()) {
    return Error{ErrorCode::kProtocol, "the daemon closed sentence " +
                                           std::to_string(reply.first_sentence) + " where " +
                                           std::to_string(blocks.size()) + " comes next"};
  }
  blocks.insert(blocks.end(), reply.closed_blocks.begin(), reply.closed_blocks.end());
  return {};
}

void Context::record(const ContextAppend& piece) {
  const auto count = static_cast<uint32_t>(piece.tokens.size());
  tokens_.insert(tokens_.end(), piece.tokens.begin(), piece.tokens.end());
  ends_.insert(ends_.end(), piece.ends.begin(), piece.ends.end());
  ends_final_to_ = std::max(ends_final_to_, piece.ends_final_to);
  if (!runs_.empty() && runs_.back().extra == piece.extra) {
    runs_.back().count += count;
  } else if (count > 0) {
    runs_.push_back(Run{piece.first_position, count, piece.extra});
  }
}

Result<void> Context::append_piece(const ContextAppend& piece, Deadline deadline) {
  ContextAppend message = piece;
  SKV_TRY(done, session()->begin(deadline, [&](Connection& connection) -> Result<OperationPtr> {
    SKV_TRY(id, remote(connection, deadline));
    SKV_CHECK_OK(check_known());
    message.context = id;
    return connection.submit(Verb::kContextAppend, message, deadline);
  }));
  const Result<void> waited = done.connection->wait(done.operation, deadline);
  if (!waited.ok()) {
    if (waited.error().code == ErrorCode::kTimeout) unsettled_ = Unsettled{done, message};
    return waited.error();
  }
  SKV_TRY(reply, done.connection->reply<ContextAppendReply>(done.operation));
  SKV_CHECK_OK(take_closed(reply, blocks_));
  record(message);
  return {};
}

Result<skv_append_result> Context::append(const Append& given) {
  const Deadline deadline = session()->call_deadline();
  const std::lock_guard lock(mutex_);
  if (unsettled_) SKV_CHECK_OK(settle(deadline));
  Append append = given;
  const auto known = static_cast<uint32_t>(tokens_.size());
  if (append.first_position == SKV_AT_END) append.first_position = known;
  if (append.first_position > known) {
    return invalid("append at position " + std::to_string(append.first_position) +
                   " leaves a gap: the context has " + std::to_string(known) + " tokens");
  }
  if (append.ends.size() > kPieceEndsMax) {
    return Error{ErrorCode::kTooLarge, std::to_string(append.ends.size()) +
                                           " sentence ends in one append, the limit is " +
                                           std::to_string(kPieceEndsMax)};
  }
  if (!std::is_sorted(append.ends.begin(), append.ends.end(), std::less_equal<>())) {
    return invalid("sentence ends must ascend");
  }
  if (append.tokens.size() > UINT32_MAX - known) return invalid("positions exceed 32 bits");

  const size_t repeated = std::min<size_t>(known - append.first_position, append.tokens.size());
  if (!std::equal(append.tokens.begin(), append.tokens.begin() + static_cast<ptrdiff_t>(repeated),
                  tokens_.begin() + append.first_position)) {
    return invalid("tokens differ from those that the context has at these positions");
  }
  skv_append_result result{};
  result.first_sentence = static_cast<uint32_t>(blocks_.size());
  if (known > append.first_position) {
    // A repeated append: what arrived of its ends is not declared twice.
    append.tokens = append.tokens.subspan(repeated);
    append.first_position = known;
    const uint32_t declared = std::max(ends_final_to_, ends_.empty() ? 0 : ends_.back());
    append.ends = {std::upper_bound(append.ends.begin(), append.ends.end(), declared),
                   append.ends.end()};
    append.ends_final_to = std::max(append.ends_final_to, ends_final_to_);
  }
  for (const ContextAppend& piece : cut_into_pieces(append)) {
    SKV_CHECK_OK(append_piece(piece, deadline));
  }
  result.token_count = static_cast<uint32_t>(tokens_.size());
  result.closed_count = static_cast<uint32_t>(blocks_.size()) - result.first_sentence;
  return result;
}

Result<MatchReply> Context::match(bool adopt) {
  const Deadline deadline = session()->call_deadline();
  const std::lock_guard lock(mutex_);
  SKV_TRY(done, session()->begin(deadline, [&](Connection& connection) -> Result<OperationPtr> {
    SKV_TRY(id, remote(connection, deadline));
    return connection.submit(Verb::kMatch, Match{id, adopt ? uint8_t{1} : uint8_t{0}}, deadline);
  }));
  const Result<void> waited = done.connection->wait(done.operation, deadline);
  if (!waited.ok()) {
    done.connection->abandon(done.operation);
    if (adopt && waited.error().code == ErrorCode::kTimeout) {
      // Whether boundaries were adopted is unknown: open the context again when it is next used.
      done.connection->post(Verb::kContextClose, ContextClose{id_});
      serial_ = 0;
    }
    return waited.error();
  }
  SKV_TRY(reply, done.connection->reply<MatchReply>(done.operation));
  if (adopt) {
    adopted_ = adopted_ || reply.hit_tokens > 0;
    blocks_.assign(reply.path_blocks.begin(), reply.path_blocks.end());
    unacknowledged_ = false;  // the caller asked for other boundaries and is told
  }
  return reply;
}

Result<void> Context::close() {
  closed_ = true;
  const Deadline deadline = session()->call_deadline();
  const std::lock_guard lock(mutex_);
  unsettled_.reset();
  lease_map_ = nullptr;  // leases by it keep it
  const std::shared_ptr<Connection> connection = session()->last_connection();
  if (!connection->alive() || serial_ != connection->serial()) return {};
  const Result<Empty> reply =
      connection->call<Empty>(Verb::kContextClose, ContextClose{id_}, deadline);
  if (!reply.ok() && reply.error().code != ErrorCode::kDisconnected) return reply.error();
  return {};
}

Context::InPlace Context::in_place(uint32_t first, uint32_t count, Deadline deadline) {
  const std::shared_ptr<Connection> connection = session()->last_connection();
  if (!connection->in_own_process() || connection->peer_gone()) return {};
  const std::lock_guard lock(mutex_);
  if (closed_ || unsettled_ || unacknowledged_ || serial_ != connection->serial() ||
      first > blocks_.size() || count > blocks_.size() - first) {
    return {};
  }
  if (lease_map_serial_ != serial_) {
    lease_map_serial_ = serial_;  // asked once: without a map, messages do
    lease_map_ = nullptr;
    auto opened = LeaseMap::open(connection, id_, model_->layout().chunk_count(), deadline);
    if (opened.ok()) lease_map_ = std::move(opened).value();
  }
  if (!lease_map_) return {};
  const auto begin = blocks_.begin() + first;
  return {lease_map_, {begin, begin + count}};
}

void Context::note_stored() { stored_ = true; }

uint32_t Context::closed_blocks() const {
  return std::accumulate(blocks_.begin(), blocks_.end(), uint32_t{0});
}

Context::Known Context::acknowledge() {
  const std::lock_guard lock(mutex_);
  unacknowledged_ = false;
  return Known{static_cast<uint32_t>(tokens_.size()), static_cast<uint32_t>(blocks_.size()),
               closed_blocks(), changes_};
}

std::vector<uint32_t> Context::sentences(uint32_t first, uint32_t count_max) {
  const std::lock_guard lock(mutex_);
  if (first >= blocks_.size()) return {};
  const auto begin = blocks_.begin() + first;
  const size_t count = std::min<size_t>(count_max, blocks_.size() - first);
  return {begin, begin + static_cast<ptrdiff_t>(count)};
}

}  // namespace skv::client
