#pragma once

#include <cstdint>
#include <ostream>
#include <span>
#include <string>

#include "kernels/cut.h"
#include "kernels/difference.h"
#include "kernels/rank.h"

namespace skv {

// One implementation of the ranking seam: from a query to the list of slots to fill. Every backend
// returns the bits of the reference (kernels/README.md), which ranking_conformance.cc checks.
//
// A backend for a device takes the same host structures and copies what it needs: the suite is
// about results, not about time.
struct RankBackend {
  std::string name;
  // Called before each test. Empty: go on; else why this machine cannot run it (a counted skip).
  std::string (*prepare)(int64_t target);
  void (*restore)();
  int64_t target = 0;  // of prepare
  RankResult (*rank)(const RankView&, const RankQuery&, const RankOptions&, RankScratch&);
  ReadSet (*cut)(const RankResult&, const CutOptions&, CutScratch&);
  Difference (*difference)(ResidentSet&,
                           std::span<const uint32_t> wanted,
                           uint64_t version,
                           uint64_t readers_done);
  bool flat_kinds = true;  // false: serves the default index and kMean, refuses the others by name
};

// The name that ctest shows.
inline void PrintTo(const RankBackend& backend, std::ostream* to) { *to << backend.name; }

}  // namespace skv
