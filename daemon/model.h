#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "daemon/data/data_messages.h"
#include "ipc/identity/model.h"
#include "ipc/layout/body_layout.h"
#include "ipc/types/ids.h"
#include "tiers/body_store.h"

namespace skv {

// One declared model, shared by every context and window that was opened with it.
struct Model {
  explicit Model(ModelDescriptor descriptor)  // Requires: validate(descriptor).ok()
      : data(std::make_shared<const DataModel>(std::move(descriptor))),
        fingerprint(skv::fingerprint(data->descriptor)) {}

  const DataModelPtr data;  // as the data thread shares it
  const Digest fingerprint;

  const ModelDescriptor& descriptor() const { return data->descriptor; }
  const BodyLayout& layout() const { return data->layout; }
};

// What the daemon knows of the bodies of all sentences of one fingerprint and one length: enough to
// place, store and read them. It comes from a model, or, after a restart and before any engine
// declared that model, from the records of the NVMe store. Interned by Directory::shape().
struct BodyShape {
  Digest fingerprint;
  uint32_t block_tokens = 0;
  uint32_t token_count = 0;
  std::vector<uint64_t> chunk_bytes;  // what a checksum covers; storage is rounded up to 4 KiB

  uint32_t block_count() const { return token_count / block_tokens; }
  uint32_t chunk_count() const { return static_cast<uint32_t>(chunk_bytes.size()); }
  uint64_t chunk_storage_bytes(uint32_t chunk) const {
    return skv::storage_bytes(chunk_bytes[chunk]);
  }
  uint64_t storage_bytes() const {
    uint64_t bytes = 0;
    for (uint32_t chunk = 0; chunk < chunk_count(); ++chunk) bytes += chunk_storage_bytes(chunk);
    return bytes;
  }
};

}  // namespace skv
