#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "tiers/body_store.h"
#include "tiers/host_store.h"

namespace skv {

// A BodyStore over a HostStore: whole bodies in host memory, copied in and out. The daemon itself
// works on extents (its data thread writes and reads them in place); this is the host tier behind
// the seam, for a node without NVMe file and as the peer that the conformance suite holds the
// others against.
//
// Thread  loop. Copies happen inside drain().
// Owns    nothing of `host`, which must outlive it; sentences here take uids from 2^63 up.
std::unique_ptr<BodyStore> make_host_body_store(HostStore& host, uint32_t transfers_max);

}  // namespace skv
