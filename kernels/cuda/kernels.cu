#include <cuda_runtime_api.h>

#include "kernels/cuda/block.cuh"
#include "kernels/cuda/cut_body.h"
#include "kernels/cuda/difference_body.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/rank_body.h"

namespace skv::cuda {
namespace {

constexpr uint32_t kScanThreads = 256;    // coarse: 64 sentences x up to 4 queries at once
constexpr uint32_t kFineThreads = 64;     // one sentence: 16..64 runs
constexpr uint32_t kChooseThreads = 512;  // one job
constexpr uint32_t kGatherThreads = 256;

#define SKV_DEVICE_BLOCK(block)             \
  __shared__ BlockShared block##_shared;    \
  __shared__ uint32_t block##_partials[32]; \
  __shared__ uint64_t block##_word;         \
  DeviceBlock block(block##_shared, block##_partials, &block##_word)

__global__ void __launch_bounds__(kScanThreads) coarse_kernel(const RankJob* jobs) {
  SKV_DEVICE_BLOCK(block);
  scan_coarse(block, jobs[blockIdx.y], blockIdx.x);
}

__global__ void __launch_bounds__(kChooseThreads) choose_kernel(const RankJob* jobs) {
  SKV_DEVICE_BLOCK(block);
  choose(block, jobs[blockIdx.x]);
}

__global__ void __launch_bounds__(kFineThreads) fine_kernel(const RankJob* jobs) {
  SKV_DEVICE_BLOCK(block);
  scan_fine(block, jobs[blockIdx.y], blockIdx.x);
}

__global__ void __launch_bounds__(kChooseThreads) score_kernel(const RankJob* jobs) {
  SKV_DEVICE_BLOCK(block);
  score(block, jobs[blockIdx.x]);
}

__global__ void __launch_bounds__(kChooseThreads) cut_kernel(const RankJob* jobs) {
  SKV_DEVICE_BLOCK(block);
  cut(block, jobs[blockIdx.x]);
}

__global__ void __launch_bounds__(kChooseThreads) difference_kernel(const DifferenceJob* jobs) {
  SKV_DEVICE_BLOCK(block);
  difference(block, jobs[blockIdx.x]);
}

// A warp per move, 16 bytes per thread and step. Host memory is read once: past the caches.
__global__ void __launch_bounds__(kGatherThreads) gather_kernel(GatherJob job) {
  const uint32_t warp = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
  const uint32_t warp_count = gridDim.x * blockDim.x / 32;
  const uint32_t lane = threadIdx.x % 32;
  for (uint32_t i = warp; i < job.move_count; i += warp_count) {
    const GatherMove move = job.moves[i];
    const auto* from = reinterpret_cast<const uint4*>(job.from + move.from);
    auto* to = reinterpret_cast<uint4*>(job.to + move.to);
    const uint32_t words = move.bytes / sizeof(uint4);
    uint32_t at = lane;
    // Four loads in flight per thread: bandwidth over the bus is bytes in flight by round trip.
    for (; at + 96 < words; at += 128) {
      const uint4 a = __ldcs(from + at);
      const uint4 b = __ldcs(from + at + 32);
      const uint4 c = __ldcs(from + at + 64);
      const uint4 d = __ldcs(from + at + 96);
      to[at] = a;
      to[at + 32] = b;
      to[at + 64] = c;
      to[at + 96] = d;
    }
    for (; at < words; at += 32) to[at] = __ldcs(from + at);
  }
}

}  // namespace

const char* error_text(Status status) {
  return cudaGetErrorString(static_cast<cudaError_t>(status));
}

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    (void)cudaGetLastError();
    return 0;
  }
  return count;
}

Status launch_rank(const RankJob* jobs,
                   uint32_t job_count,
                   uint32_t sentences_max,
                   CUstream_st* stream) {
  if (job_count == 0) return cudaSuccess;
  if (job_count > 65535) return cudaErrorInvalidValue;
  const uint32_t pages = (sentences_max + kPageSentences - 1) / kPageSentences;
  if (pages != 0) coarse_kernel<<<dim3(pages, job_count), kScanThreads, 0, stream>>>(jobs);
  choose_kernel<<<job_count, kChooseThreads, 0, stream>>>(jobs);
  if (pages != 0) fine_kernel<<<dim3(sentences_max, job_count), kFineThreads, 0, stream>>>(jobs);
  score_kernel<<<job_count, kChooseThreads, 0, stream>>>(jobs);
  return cudaGetLastError();
}

Status launch_cut(const RankJob* jobs, uint32_t job_count, CUstream_st* stream) {
  if (job_count == 0) return cudaSuccess;
  cut_kernel<<<job_count, kChooseThreads, 0, stream>>>(jobs);
  return cudaGetLastError();
}

Status launch_difference(const DifferenceJob* jobs, uint32_t job_count, CUstream_st* stream) {
  if (job_count == 0) return cudaSuccess;
  difference_kernel<<<job_count, kChooseThreads, 0, stream>>>(jobs);
  return cudaGetLastError();
}

Status launch_gather(const GatherJob& job, CUstream_st* stream) {
  if (job.move_count == 0) return cudaSuccess;
  const uint32_t warps_per_block = kGatherThreads / 32;
  const uint32_t wanted = (job.move_count + warps_per_block - 1) / warps_per_block;
  const uint32_t blocks = wanted < job.block_max ? wanted : job.block_max;
  gather_kernel<<<blocks == 0 ? 1 : blocks, kGatherThreads, 0, stream>>>(job);
  return cudaGetLastError();
}

}  // namespace skv::cuda
