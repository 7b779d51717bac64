#include "tests/conformance/ranking_conformance.h"

#include <hwy/targets.h>

namespace skv {
namespace {

Difference host_difference(ResidentSet& set,
                           std::span<const uint32_t> wanted,
                           uint64_t version,
                           uint64_t readers_done) {
  return set.difference(wanted, version, readers_done);
}

std::string choose_target(int64_t target) {
  if (target == 0) return {};
  hwy::SetSupportedTargetsForTest(target);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  return {};
}
void any_target() {
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

// The reference, the vectorised kernels on each instruction set that this CPU has and that was
// compiled, and one without fma, which has to take the reference.
std::vector<RankBackend> backends() {
  std::vector<RankBackend> list;
  list.push_back({"reference", choose_target, any_target, 0, rank_reference, cut, host_difference});
  bool fallback_listed = false;
  const int64_t targets = hwy::SupportedTargets();
  for (int64_t left = targets; left != 0; left &= left - 1) {
    const int64_t target = left & -left;
    choose_target(target);
    const bool fallback = std::string(rank_target()) == "reference";
    if (fallback && fallback_listed) continue;
    fallback_listed |= fallback;
    list.push_back({hwy::TargetName(target), choose_target, any_target, target, rank_simd, cut,
                    host_difference});
  }
  any_target();
  return list;
}

INSTANTIATE_TEST_SUITE_P(Cpu,
                         RankingConformance,
                         testing::ValuesIn(backends()),
                         [](const testing::TestParamInfo<RankBackend>& backend) {
                           return backend.param.name;
                         });

// Goal: the loop over targets above is not a loop over one. Prints what was covered.
TEST(RankTargets, AreSaid) {
  std::string names;
  for (const RankBackend& backend : backends()) {
    choose_target(backend.target);
    names += backend.name + "=" + rank_target() + " ";
  }
  any_target();
  std::printf("rank targets: %s; chosen: %s\n", names.c_str(), rank_target());
  EXPECT_GE(backends().size(), 2U);
}

}  // namespace
}  // namespace skv
