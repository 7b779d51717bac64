#include "tests/conformance/ranking_conformance.h"
#include "tests/kernels/device_backend.h"

// The source of the CUDA kernels passes the ranking suite on this CPU (kernels/cuda/host_block.h).
namespace skv {
namespace {

using Host = device_backend::Backend<device_backend::HostMachine>;

INSTANTIATE_TEST_SUITE_P(
    DeviceBodies,
    RankingConformance,
    testing::Values(RankBackend{"device_bodies", [](int64_t) { return std::string(); }, [] {}, 0,
                                Host::rank, Host::cut, Host::difference, false}),
    [](const testing::TestParamInfo<RankBackend>& backend) { return backend.param.name; });

// Goal: what the device kernels do not do is refused by name, all else is not.
TEST(DeviceBodies, RefuseByName) {
  cuda::RankJob job{};
  for (uint32_t kind = 0; kind <= static_cast<uint32_t>(kIndexKindLast); ++kind) {
    job.view.kind = static_cast<IndexKind>(kind);
    const char* why = cuda::refusal(job);
    EXPECT_EQ(why == nullptr, kind <= static_cast<uint32_t>(IndexKind::kMean)) << kind;
    if (why != nullptr) {
      EXPECT_NE(std::string(why).find("index kind"), std::string::npos);
    }
  }
  job.view.kind = IndexKind::kMeanSpreadRuns;
  job.cut.mass = 0.9F;
  EXPECT_NE(std::string(cuda::refusal(job)).find("mass"), std::string::npos);
}

}  // namespace
}  // namespace skv
