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

}  // namespace
}  // namespace skv
