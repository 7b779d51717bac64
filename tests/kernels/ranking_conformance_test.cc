#include "tests/conformance/ranking_conformance.h"

#include <hwy/targets.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "ipc/layout/half.h"
#include "kernels/vectors.h"
#include "tests/conformance/ranking_compare.h"
#include "tests/kernels/synthetic.h"

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

// Goal: kBf16 is the same on every instruction set where products and sums are subnormal, which
// the instruction that one of them has flushes whatever the environment says.
// Method: keys and queries of all magnitudes that bf16 has, small ones above all; the logits'
// maximum and the blocks' scores, bit by bit.
TEST(RankTargets, FlushSubnormalsAlike) {
  const synthetic::Shape shape{64, 8, 1, IndexKind::kBf16};
  synthetic::Noise noise(11);
  const auto any = [&noise](int lowest, int highest) {
    return std::ldexp(
        noise.normal(),
        lowest + static_cast<int>(noise.below(static_cast<uint32_t>(highest - lowest))));
  };
  for (const int highest : {-126, -100, 0}) {
    synthetic::Context context = synthetic::random_context(shape, 0, 3);
    for (uint32_t i = 0; i < 20; ++i) {
      std::vector<float> keys(size_t{64} * 64);
      for (float& key : keys) key = any(-135, highest);
      synthetic::append(context, 8, keys);
    }
    std::vector<float> queries(size_t{4} * 64);
    for (float& query : queries) query = any(-30, 4);
    const RankQuery query{queries.data(), 4, 1.0F};
    RankScratch plain_scratch;
    const RankResult plain = rank_reference(context.view(), query, {}, plain_scratch);
    for (const RankBackend& backend : backends()) {
      choose_target(backend.target);
      RankScratch scratch;
      const RankResult got = rank_simd(context.view(), query, {}, scratch);
      SCOPED_TRACE(backend.name + " below 2^" + std::to_string(highest));
      ranking_conformance::expect_same(got, plain);
      any_target();
    }
  }
}

// Goal: the same keys give the same vectors on every instruction set, so that whoever derived them
// does not show.
// Method: shapes with and without whole vectors of 16 channels, every dtype, a mask, and keys that
// are huge, subnormal or not finite.
TEST(DeriveTargets, WriteTheSame) {
  std::vector<std::byte> first;
  for (int64_t left = hwy::SupportedTargets(); left != 0; left &= left - 1) {
    const int64_t target = left & -left;
    choose_target(target);
    std::vector<std::byte> records;
    synthetic::Noise noise(6);
    for (const uint32_t k_dim : {8U, 24U, 128U}) {
      for (const BodyDtype dtype : {BodyDtype::kFp32, BodyDtype::kFp16, BodyDtype::kBf16}) {
        std::vector<uint8_t> mask(40, 1);
        mask[3] = mask[4] = mask[5] = 0;
        std::vector<std::byte> bytes(size_t{40} * k_dim * dtype_bytes(dtype));
        for (size_t i = 0; i < size_t{40} * k_dim; ++i) {
          float key = noise.normal();
          if (i % 97 == 0) key *= 1e30F;
          if (i % 89 == 0) key *= 1e-6F;
          if (i == 5) key = std::numeric_limits<float>::infinity();
          if (i == 6) key = std::numeric_limits<float>::quiet_NaN();
          const uint16_t small =
              dtype == BodyDtype::kFp16 ? float_to_half(key) : float_to_bfloat(key);
          std::memcpy(bytes.data() + i * dtype_bytes(dtype),
                      dtype == BodyDtype::kFp32 ? static_cast<const void*>(&key) : &small,
                      dtype_bytes(dtype));
        }
        KeyRows rows;
        rows.blocks = bytes.data();
        rows.row_stride = size_t{k_dim} * dtype_bytes(dtype);
        rows.block_stride = 8 * rows.row_stride;
        rows.dtype = dtype;
        rows.block_count = 5;
        rows.block_tokens = 8;
        rows.k_dim = k_dim;
        std::vector<std::byte> record(
            VectorRecordLayout::of(IndexKind::kMeanSpreadRuns, k_dim, 20).bytes);
        DeriveScratch scratch;
        derive_record(rows, {IndexKind::kMeanSpreadRuns, 2}, mask.data(), record, scratch);
        records.insert(records.end(), record.begin(), record.end());
      }
    }
    if (first.empty()) first = records;
    EXPECT_TRUE(records == first) << hwy::TargetName(target);
  }
  any_target();
}

}  // namespace
}  // namespace skv
