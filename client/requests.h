#pragma once

#include <cstdint>
#include <memory>

#include "client/memory.h"
#include "client/session.h"
#include "client/skv.h"
#include "ipc/messages.h"
#include "ipc/types/result.h"

namespace skv::client {

// kInvalidArgument if the memory was registered by another session.
Result<void> check_session(const Memory& memory, const Session& session);

// skv_strided_kv, checked once, and as a message for whichever connection it goes over.
class StridedSource {
 public:
  static Result<StridedSource> read(const skv_strided_kv* given, const Session& session);
  Result<StridedKv> remote(Connection& connection, Deadline deadline) const;
  const std::shared_ptr<Memory>& memory() const { return memory_; }

 private:
  StridedKv strided_;
  std::shared_ptr<Memory> memory_;
};

// One byte per sentence, as many as were asked about. `to` may be null.
Result<void> copy_outcomes(const PutOutcomes& reply, uint32_t count, uint8_t* to);

}  // namespace skv::client
