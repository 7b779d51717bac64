#include "client/model.h"

#include <cstring>
#include <limits>
#include <utility>

#include "client/abi.h"

namespace skv::client {
namespace {

// `T` narrower than the ABI's u32: what does not fit is refused, never cut.
template <typename T>
Result<T> narrow(uint32_t value, const char* name) {
  if (value > std::numeric_limits<T>::max()) {
    return invalid(std::string(name) + " is " + std::to_string(value) + ", the limit is " +
                   std::to_string(std::numeric_limits<T>::max()));
  }
  return static_cast<T>(value);
}

template <typename E>
Result<E> enumerator(uint32_t value, uint32_t max, const char* name) {
  if (value > max) {
    return invalid(std::string(name) + " is " + std::to_string(value) + ", allowed are 0 to " +
                   std::to_string(max));
  }
  return static_cast<E>(value);
}

Result<RotaryTable> read_rotary(const skv_rotary_table* given) {
  SKV_TRY(from, read_struct(given, "skv_rotary_table"));
  if (from.frequency_count > kHeadDimMax || (from.frequency_count > 0 && !from.frequencies)) {
    return invalid("skv_rotary_table::frequencies: " + std::to_string(from.frequency_count) +
                   " values, the limit is " + std::to_string(kHeadDimMax));
  }
  SKV_TRY(pairing, enumerator<RotaryPairing>(from.pairing, 2, "skv_rotary_table::pairing"));
  RotaryTable table;
  table.dims = from.dims;
  table.offset = from.offset;
  table.pairing = pairing;
  table.attention_factor = from.attention_factor;
  table.frequencies.assign(from.frequencies, from.frequencies + from.frequency_count);
  return table;
}

Result<LayerDescriptor> read_layer(const skv_layer* given) {
  SKV_TRY(from, read_struct(given, "skv_layer"));
  SKV_TRY(layer_class, enumerator<LayerClass>(from.layer_class, 4, "skv_layer::layer_class"));
  SKV_TRY(kv_heads, narrow<uint16_t>(from.kv_heads, "skv_layer::kv_heads"));
  SKV_TRY(queries, narrow<uint16_t>(from.queries_per_kv_head, "skv_layer::queries_per_kv_head"));
  SKV_TRY(k_dim, narrow<uint16_t>(from.k_dim, "skv_layer::k_dim"));
  SKV_TRY(v_dim, narrow<uint16_t>(from.v_dim, "skv_layer::v_dim"));
  SKV_TRY(shared_layer, narrow<uint16_t>(from.shared_layer, "skv_layer::shared_layer"));
  SKV_TRY(rotary_index, narrow<uint16_t>(from.rotary_index, "skv_layer::rotary_index"));
  LayerDescriptor layer;
  layer.layer_class = layer_class;
  layer.kv_heads = kv_heads;
  layer.queries_per_kv_head = queries;
  layer.k_dim = k_dim;
  layer.v_dim = v_dim;
  layer.shared_layer = shared_layer;
  layer.sliding_window = from.sliding_window;
  layer.softmax_scale = from.softmax_scale;
  layer.logit_cap = from.logit_cap;
  layer.rotary_index = rotary_index;
  return layer;
}

// Elements of an array of size-prefixed structs are as far apart as the first one says.
template <typename T>
const T* element(const T* items, uint32_t index) {
  return reinterpret_cast<const T*>(reinterpret_cast<const char*>(items) +
                                    static_cast<size_t>(index) * items->size);
}

}  // namespace

Result<ModelDescriptor> read_descriptor(const skv_model_descriptor* given) {
  SKV_TRY(from, read_struct(given, "skv_model_descriptor"));
  if (from.weights_id == nullptr) return invalid("skv_model_descriptor::weights_id is NULL");
  if (from.layer_count == 0 || from.layer_count > kLayersMax || from.layers == nullptr) {
    return invalid("skv_model_descriptor::layers: " + std::to_string(from.layer_count) +
                   " given, allowed are 1 to " + std::to_string(kLayersMax));
  }
  if (from.rotary_table_count > kRotaryTablesMax ||
      (from.rotary_table_count > 0 && from.rotary_tables == nullptr)) {
    return invalid(
        "skv_model_descriptor::rotary_tables: " + std::to_string(from.rotary_table_count) +
        " given, the limit is " + std::to_string(kRotaryTablesMax));
  }
  ModelDescriptor to;
  to.weights_id = from.weights_id;
  SKV_TRY(dtype, enumerator<BodyDtype>(from.dtype, 4, "skv_model_descriptor::dtype"));
  SKV_TRY(k_state, enumerator<KState>(from.k_state, 2, "skv_model_descriptor::k_state"));
  SKV_TRY(block_tokens, narrow<uint16_t>(from.block_tokens, "skv_model_descriptor::block_tokens"));
  SKV_TRY(tp_rank, narrow<uint16_t>(from.tp_rank, "skv_model_descriptor::tp_rank"));
  SKV_TRY(tp_size, narrow<uint16_t>(from.tp_size, "skv_model_descriptor::tp_size"));
  SKV_TRY(first_kv_head,
          narrow<uint16_t>(from.first_kv_head, "skv_model_descriptor::first_kv_head"));
  to.dtype = dtype;
  to.k_state = k_state;
  to.block_tokens = block_tokens;
  to.tp_rank = tp_rank;
  to.tp_size = tp_size;
  to.first_kv_head = first_kv_head;
  to.v_is_view_of_k = from.v_is_view_of_k != 0;
  for (uint32_t i = 0; i < from.rotary_table_count; ++i) {
    SKV_TRY(table, read_rotary(element(from.rotary_tables, i)));
    to.rotary_tables.push_back(std::move(table));
  }
  for (uint32_t i = 0; i < from.layer_count; ++i) {
    SKV_TRY(layer, read_layer(element(from.layers, i)));
    to.layers.push_back(layer);
  }
  SKV_CHECK_OK(validate(to));
  return to;
}

Model::Model(std::shared_ptr<Session> session, ModelDescriptor descriptor)
    : Object(session->owner),
      session_(std::move(session)),
      descriptor_(std::move(descriptor)),
      layout_(descriptor_),
      fingerprint_(skv::fingerprint(descriptor_)) {}

Result<std::shared_ptr<Model>> Model::open(std::shared_ptr<Session> session,
                                           ModelDescriptor descriptor) {
  auto model = std::make_shared<Model>(std::move(session), std::move(descriptor));
  const Deadline deadline = model->session_->call_deadline();
  SKV_TRY(connection, model->session_->connection(deadline));
  auto id = model->remote(*connection, deadline);
  if (!id.ok()) return id.error();
  return model;
}

Result<uint32_t> Model::remote(Connection& connection, Deadline deadline) {
  const std::lock_guard lock(mutex_);
  if (serial_ == connection.serial()) return id_;
  SKV_TRY(reply, connection.call<ModelOpenReply>(Verb::kModelOpen, ModelOpen{encode(descriptor_)},
                                                 deadline));
  if (reply.fingerprint != fingerprint_ || reply.chunk_count != layout_.chunk_count()) {
    const Error differs{ErrorCode::kProtocol,
                        "the daemon sees another model in the descriptor (fingerprint or chunks)"};
    connection.end(differs);
    return differs;
  }
  id_ = reply.model;
  serial_ = connection.serial();
  return id_;
}

Result<uint64_t> Model::query_bytes(uint32_t first_layer, uint32_t layer_count) const {
  const size_t layers = descriptor_.layers.size();
  if (first_layer >= layers || layer_count == 0 || layer_count > layers - first_layer) {
    return invalid("layers [" + std::to_string(first_layer) + ", + " + std::to_string(layer_count) +
                   ") of a model that has " + std::to_string(layers));
  }
  uint64_t bytes = 0;
  for (uint32_t i = first_layer; i < first_layer + layer_count; ++i) {
    const LayerDescriptor& layer = descriptor_.layers[i];
    bytes += uint64_t{layer.kv_heads} * layer.queries_per_kv_head * layer.k_dim * sizeof(float);
  }
  return bytes;
}

}  // namespace skv::client
