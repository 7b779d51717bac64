#include <cuda_runtime_api.h>

#include <random>

#include "kernels/cuda/launch.h"
#include "tests/conformance/ranking_conformance.h"
#include "tests/kernels/device_backend.h"

// The CUDA kernels on a GPU: the ranking suite, and the gather. Skipped, counted, where none
// answers.
namespace skv {
namespace {

void check(cudaError_t status) { SKV_CHECK(status == cudaSuccess, cudaGetErrorString(status)); }

class GpuMachine {
 public:
  GpuMachine() { check(cudaStreamCreate(&stream_)); }
  ~GpuMachine() {
    for (void* memory : memory_) check(cudaFree(memory));
    check(cudaStreamDestroy(stream_));
  }
  GpuMachine(const GpuMachine&) = delete;
  GpuMachine& operator=(const GpuMachine&) = delete;
  GpuMachine(GpuMachine&&) = delete;
  GpuMachine& operator=(GpuMachine&&) = delete;

  template <typename T>
  T* room(uint64_t count) {
    void* memory = nullptr;
    check(cudaMalloc(&memory, count * sizeof(T) + 256));
    check(cudaMemset(memory, 0xA5, count * sizeof(T) + 256));
    memory_.push_back(memory);
    return static_cast<T*>(memory);
  }
  template <typename T>
  T* put(const T* from, uint64_t count) {
    T* to = room<T>(count);
    if (count != 0) check(cudaMemcpy(to, from, count * sizeof(T), cudaMemcpyHostToDevice));
    return to;
  }
  template <typename T>
  std::vector<T> get(const T* from, uint64_t count) {
    std::vector<T> to(count);
    get_to(to.data(), from, count);
    return to;
  }
  template <typename T>
  void get_to(T* to, const T* from, uint64_t count) {
    if (count != 0) check(cudaMemcpy(to, from, count * sizeof(T), cudaMemcpyDeviceToHost));
  }

  void rank_all(cuda::RankJob& job) {
    const cuda::RankJob* jobs = put(&job, 1);
    check(static_cast<cudaError_t>(cuda::launch_rank(jobs, 1, job.view.sentence_count, stream_)));
    check(cudaStreamSynchronize(stream_));
  }
  void cut_one(cuda::RankJob& job) {
    const cuda::RankJob* jobs = put(&job, 1);
    check(static_cast<cudaError_t>(cuda::launch_cut(jobs, 1, stream_)));
    check(cudaStreamSynchronize(stream_));
  }
  void difference(const cuda::DifferenceJob& job) {
    const cuda::DifferenceJob* jobs = put(&job, 1);
    check(static_cast<cudaError_t>(cuda::launch_difference(jobs, 1, stream_)));
    check(cudaStreamSynchronize(stream_));
  }
  cudaStream_t stream() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
  std::vector<void*> memory_;
};

using Gpu = device_backend::Backend<GpuMachine>;

std::string need_gpu(int64_t) {
  return cuda::device_count() != 0 ? std::string() : "no CUDA device answers on this machine";
}

INSTANTIATE_TEST_SUITE_P(
    Cuda,
    RankingConformance,
    testing::Values(RankBackend{"cuda", need_gpu, [] {}, 0, Gpu::rank, Gpu::cut, Gpu::difference}),
    [](const testing::TestParamInfo<RankBackend>& backend) { return backend.param.name; });

// Goal: every move lands where it should and nothing else changes.
TEST(CudaGather, MovesBlocksAndNothingElse) {
  if (const std::string why = need_gpu(0); !why.empty()) GTEST_SKIP() << why;
  constexpr uint64_t kBytes = uint64_t{8} << 20;
  std::byte* arena = nullptr;
  check(cudaHostAlloc(reinterpret_cast<void**>(&arena), kBytes, cudaHostAllocMapped));
  std::mt19937_64 engine(7);
  for (uint64_t at = 0; at < kBytes; at += 8) {
    const uint64_t word = engine();
    std::memcpy(arena + at, &word, sizeof word);
  }
  GpuMachine gpu;
  for (const uint32_t bytes : {16U, 512U, 2048U, 4096U, 5120U}) {
    const uint32_t slots = 300;
    std::vector<std::byte> expected(uint64_t{slots} * bytes, std::byte{0xA5});
    std::vector<cuda::GatherMove> moves;
    for (uint32_t slot = 0; slot < slots; slot += 1 + engine() % 3) {
      const uint64_t from = engine() % (kBytes / bytes) * bytes;
      moves.push_back({from, uint64_t{slot} * bytes, bytes, 0});
      std::memcpy(expected.data() + uint64_t{slot} * bytes, arena + from, bytes);
    }
    auto* slab = gpu.room<std::byte>(expected.size());
    void* mapped = nullptr;
    check(cudaHostGetDevicePointer(&mapped, arena, 0));
    cuda::GatherJob job;
    job.from = static_cast<const std::byte*>(mapped);
    job.to = slab;
    job.moves = gpu.put(moves.data(), moves.size());
    job.move_count = static_cast<uint32_t>(moves.size());
    check(static_cast<cudaError_t>(cuda::launch_gather(job, gpu.stream())));
    check(cudaStreamSynchronize(gpu.stream()));
    EXPECT_EQ(gpu.get(slab, expected.size()), expected) << bytes;
  }
  check(cudaFreeHost(arena));
}

}  // namespace
}  // namespace skv
