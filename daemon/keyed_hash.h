#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "ipc/types/ids.h"

namespace skv {

__extension__ using WideProduct = unsigned __int128;  // of two 64-bit words

// Hash of a digest for tables whose keys a client can choose (by choosing tokens): a multiply and
// fold of 16 of its bytes under a seed of this process, so that nobody can aim keys at one bucket.
struct KeyedDigestHash {
  uint64_t seed = 0;

  size_t operator()(const Digest& digest) const {
    uint64_t low = 0;
    uint64_t high = 0;
    std::memcpy(&low, digest.bytes.data(), sizeof low);
    std::memcpy(&high, digest.bytes.data() + sizeof low, sizeof high);
    const auto product = static_cast<WideProduct>(low ^ seed) *
                         (high ^ (seed * 0x9E3779B97F4A7C15ULL) ^ 0xD1B54A32D192ED03ULL);
    return static_cast<size_t>(product) ^ static_cast<size_t>(product >> 64);
  }
};

}  // namespace skv
