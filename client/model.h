#pragma once

#include <memory>
#include <mutex>

#include "client/session.h"
#include "ipc/identity/model.h"
#include "ipc/layout/body_layout.h"
#include "ipc/types/result.h"

namespace skv::client {

Result<ModelDescriptor> read_descriptor(const skv_model_descriptor* given);

// A declared model, opened again on every connection that uses it. Thread: any.
class Model : public Object {
 public:
  static constexpr HandleKind kKind = HandleKind::kModel;

  static Result<std::shared_ptr<Model>> open(std::shared_ptr<Session> session,
                                             ModelDescriptor descriptor);
  Model(std::shared_ptr<Session> session, ModelDescriptor descriptor);

  Result<uint32_t> remote(Connection& connection, Deadline deadline);
  // Bytes of a query over these layers: fp32 [layer][query head][k_dim].
  Result<uint64_t> query_bytes(uint32_t first_layer, uint32_t layer_count) const;

  const std::shared_ptr<Session>& session() const { return session_; }
  const ModelDescriptor& descriptor() const { return descriptor_; }
  const BodyLayout& layout() const { return layout_; }
  const Digest& fingerprint() const { return fingerprint_; }

 private:
  const std::shared_ptr<Session> session_;
  const ModelDescriptor descriptor_;
  const BodyLayout layout_;
  const Digest fingerprint_;

  std::mutex mutex_;
  uint64_t serial_ = 0;
  uint32_t id_ = 0;
};

}  // namespace skv::client
