#include "client/lease.h"

#include <algorithm>
#include <utility>

#include "client/abi.h"

namespace skv::client {
namespace {

// Extents of one reply: 8 bytes each, well below kMessageBytesMax.
constexpr uint32_t kExtentsPerMessage = 4096;

}  // namespace

Lease::Lease(std::shared_ptr<Context> context)
    : Object(context->owner), context_(std::move(context)) {}

Lease::~Lease() {
  give_back_in_place();
  if (!connection_ || !connection_->alive() || !connection_->in_own_process()) return;
  for (const uint64_t lease : leases_) connection_->post(Verb::kRelease, Release{lease});
}

Result<std::shared_ptr<Lease>> Lease::open(const std::shared_ptr<Context>& context,
                                           const Load& range,
                                           Deadline deadline,
                                           skv_load_result& loaded) {
  const BodyLayout& layout = context->model()->layout();
  const uint32_t layers = layout.layer_count();
  if (range.layer_count == 0 || range.first_layer >= layers ||
      range.layer_count > layers - range.first_layer) {
    return invalid("layers [" + std::to_string(range.first_layer) + ", + " +
                   std::to_string(range.layer_count) + ") of a model that has " +
                   std::to_string(layers));
  }
  if (range.sentence_count == 0) return invalid("sentence_count is 0");
  auto lease = std::make_shared<Lease>(context);
  lease->layers_ = LayerRange{range.first_layer, range.layer_count};
  lease->first_chunk_ = layout.chunk_of(range.first_layer);
  lease->chunk_count_ = layout.chunk_of(lease->layers_.end() - 1) - lease->first_chunk_ + 1;
  if (!lease->take_in_place(range, deadline, loaded)) {
    SKV_CHECK_OK(lease->ask(range, deadline, loaded));
  }
  SKV_CHECK_OK(lease->check_extents());
  return lease;
}

bool Lease::take_in_place(const Load& range, Deadline deadline, skv_load_result& loaded) {
  Context::InPlace place = context_->in_place(range.first_sentence, range.sentence_count, deadline);
  if (!place.map) return false;
  const Result<std::shared_ptr<MappedMemory>> host = place.map->connection()->host();
  in_place_ = {range.first_sentence, range.sentence_count, first_chunk_, chunk_count_};
  if (!host.ok() || !place.map->take(in_place_, extents_)) return false;
  map_ = std::move(place.map);
  connection_ = map_->connection();
  host_ = host.value();
  blocks_ = std::move(place.blocks);
  loaded.host_chunks += static_cast<uint32_t>(extents_.size());
  const BodyLayout& layout = context_->model()->layout();
  uint64_t block_bytes = 0;  // of one block of every head and layer
  for (uint32_t layer = layers_.first; layer < layers_.end(); ++layer) {
    block_bytes += uint64_t{layout.kv_heads(layer)} * layout.block_bytes(layer);
  }
  for (const uint32_t blocks : blocks_) loaded.bytes += block_bytes * blocks;
  return true;
}

Result<void> Lease::ask(const Load& range, Deadline deadline, skv_load_result& loaded) {
  const uint32_t step = std::max(1U, kExtentsPerMessage / chunk_count_);
  for (uint32_t done = 0; done < range.sentence_count;) {
    Load part = range;
    part.in_place = 1;
    part.first_sentence = range.first_sentence + done;
    part.sentence_count = std::min(step, range.sentence_count - done);
    SKV_TRY(loading,
            context_->perform(
                Verb::kLoad, deadline, [&](Connection& connection, uint32_t id) -> Result<Load> {
                  if (connection_ && connection_.get() != &connection) {
                    return Error{ErrorCode::kDisconnected, "the daemon went away during a load"};
                  }
                  part.context = id;
                  return part;
                }));
    SKV_CHECK_OK(take(loading, part.sentence_count, loaded));
    done += part.sentence_count;
  }
  blocks_ = context_->sentences(range.first_sentence, range.sentence_count);
  if (blocks_.size() != range.sentence_count) {
    return Error{ErrorCode::kProtocol, "the daemon leased sentences that the context has not"};
  }
  return {};
}

// Checked once, so that readers need not: every layer lies inside the mapping.
Result<void> Lease::check_extents() const {
  const BodyLayout& layout = context_->model()->layout();
  for (size_t sentence = 0; sentence < blocks_.size(); ++sentence) {
    for (uint32_t chunk = 0; chunk < chunk_count_; ++chunk) {
      const uint64_t at = extents_[sentence * chunk_count_ + chunk];
      const uint64_t bytes = layout.chunk_bytes(first_chunk_ + chunk, blocks_[sentence]);
      if (at > host_->bytes() || bytes > host_->bytes() - at) {
        return Error{ErrorCode::kProtocol, "a leased extent lies outside the host memory"};
      }
    }
  }
  return {};
}

Result<void> Lease::take(const Session::Done& done,
                         uint32_t sentence_count,
                         skv_load_result& loaded) {
  SKV_TRY(reply, done.connection->reply<LoadReply>(done.operation));
  connection_ = done.connection;
  SKV_TRY(host, done.connection->host());
  host_ = host;
  if (reply.lease != 0) leases_.push_back(reply.lease);
  if (reply.extents.size() != size_t{sentence_count} * chunk_count_) {
    return Error{ErrorCode::kProtocol, std::to_string(reply.extents.size()) + " extents for " +
                                           std::to_string(sentence_count) + " sentences of " +
                                           std::to_string(chunk_count_) + " chunks"};
  }
  extents_.insert(extents_.end(), reply.extents.begin(), reply.extents.end());
  loaded.host_chunks += reply.host_chunks;
  loaded.nvme_chunks += reply.nvme_chunks;
  loaded.bytes += reply.bytes;
  return {};
}

Result<skv_leased_layer> Lease::layer(uint32_t sentence, uint32_t layer) const {
  if (sentence >= blocks_.size() || layer < layers_.first || layer >= layers_.end()) {
    return invalid("sentence " + std::to_string(sentence) + ", layer " + std::to_string(layer) +
                   " of a lease on " + std::to_string(blocks_.size()) + " sentences, layers [" +
                   std::to_string(layers_.first) + ", " + std::to_string(layers_.end()) + ")");
  }
  if (!connection_->alive()) {
    return stale("the lease belongs to a connection that is gone: treat what was read as a miss");
  }
  const BodyLayout& layout = context_->model()->layout();
  const uint32_t blocks = blocks_[sentence];
  const uint64_t extent =
      extents_[size_t{sentence} * chunk_count_ + layout.chunk_of(layer) - first_chunk_];
  skv_leased_layer where{};
  where.kv_heads = layout.kv_heads(layer);
  where.blocks = blocks;
  where.block_bytes = layout.block_bytes(layer);
  where.pointer = host_->data() + extent + layout.block_offset(layer, 0, 0, blocks);
  return where;
}

void Lease::give_back_in_place() {
  if (const std::shared_ptr<LeaseMap> map = std::exchange(map_, nullptr)) map->give_back(in_place_);
}

Result<void> Lease::release() {
  give_back_in_place();
  if (leases_.empty()) return {};
  // Nobody waits for the answers: they could only say what the handle table knows already.
  const Deadline deadline = context_->session()->call_deadline();
  for (const uint64_t lease : std::exchange(leases_, {})) {
    if (!connection_->alive()) return {};
    const Result<OperationPtr> sent = connection_->submit(Verb::kRelease, Release{lease}, deadline);
    if (!sent.ok() && sent.error().code != ErrorCode::kDisconnected) return sent.error();
    if (sent.ok()) connection_->abandon(sent.value());
  }
  connection_->take_arrived();  // those that are there: the daemon keeps a bounded number for us
  return {};
}

}  // namespace skv::client
