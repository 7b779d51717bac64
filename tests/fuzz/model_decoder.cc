// Goal: no bytes make decoding, validating or fingerprinting a model crash, and each descriptor has
// one encoding.

#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "ipc/identity/model.h"
#include "ipc/layout/body_layout.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const skv::Result<skv::ModelDescriptor> model = skv::decode_model(data, size);
  if (!model.ok()) return 0;
  const std::vector<uint8_t> again = skv::encode(model.value());
  if (!std::equal(again.begin(), again.end(), data, data + size)) std::abort();
  (void)skv::fingerprint(model.value());
  if (!skv::validate(model.value()).ok()) return 0;
  const skv::BodyLayout layout(model.value());
  if (layout.body_storage_bytes(4) < layout.body_bytes(4)) std::abort();
  return 0;
}
