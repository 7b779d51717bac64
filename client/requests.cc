#include "client/requests.h"

#include <algorithm>

#include "client/abi_handles.h"

namespace skv::client {

Result<void> check_session(const Memory& memory, const Session& session) {
  if (memory.session().get() == &session) return {};
  return invalid("the memory belongs to another session");
}

Result<StridedSource> StridedSource::read(const skv_strided_kv* given, const Session& session) {
  SKV_TRY(from, read_struct(given, "skv_strided_kv"));
  SKV_TRY(memory, find<Memory>(from.memory));
  SKV_CHECK_OK(check_session(*memory, session));
  const uint64_t bytes = memory->mapped()->bytes();
  if (from.k_offset >= bytes || from.v_offset >= bytes) {
    return invalid("skv_strided_kv: offsets " + std::to_string(from.k_offset) + " (K) and " +
                   std::to_string(from.v_offset) + " (V) in a memory of " + std::to_string(bytes) +
                   " bytes");
  }
  StridedSource source;
  source.memory_ = memory;
  source.strided_.k_offset = from.k_offset;
  source.strided_.v_offset = from.v_offset;
  source.strided_.layer_stride = from.layer_stride;
  source.strided_.head_stride = from.head_stride;
  source.strided_.token_stride = from.token_stride;
  source.strided_.first_token = from.first_token;
  return source;
}

Result<StridedKv> StridedSource::remote(Connection& connection, Deadline deadline) const {
  SKV_TRY(id, memory_->remote(connection, deadline));
  StridedKv strided = strided_;
  strided.memory = id;
  return strided;
}

Result<void> copy_outcomes(const PutOutcomes& reply, uint32_t count, uint8_t* to) {
  if (reply.outcomes.size() != count) {
    return Error{ErrorCode::kProtocol, std::to_string(reply.outcomes.size()) + " outcomes for " +
                                           std::to_string(count) + " sentences"};
  }
  if (to != nullptr) std::copy(reply.outcomes.begin(), reply.outcomes.end(), to);
  return {};
}

}  // namespace skv::client
