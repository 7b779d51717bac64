#pragma once

#include <cstdint>

#include "kernels/cuda/difference_body.h"
#include "kernels/cuda/rank_work.h"

struct CUstream_st;

// Host launchers of the kernels. Each enqueues on `stream` and returns at once: no allocation, no
// synchronisation, no copy; jobs and all they point to must stay until the stream has passed them.
// Capturable into a CUDA graph: grids depend on capacities, kernels look at the live sizes.
namespace skv::cuda {

// cudaError_t as a number, 0 is success; names from error_text.
using Status = int;
const char* error_text(Status status);

// Devices that answer; 0 without a driver.
int device_count();

// Coarse, choose, fine and score for all jobs (device memory), none of which has a refusal().
// `sentences_max`: the largest sentence_count of any job now or at replay.
Status launch_rank(const RankJob* jobs,
                   uint32_t job_count,
                   uint32_t sentences_max,
                   CUstream_st* stream);

// cut alone, of jobs that were ranked.
Status launch_cut(const RankJob* jobs, uint32_t job_count, CUstream_st* stream);

Status launch_difference(const DifferenceJob* jobs, uint32_t job_count, CUstream_st* stream);

// A piece of a gather: host arena (mapped, pinned) to a device slab. Offsets and bytes are
// multiples of 16.
struct GatherMove {
  uint64_t from;
  uint64_t to;
  uint32_t bytes;
  uint32_t reserved;
};
struct GatherJob {
  const std::byte* from = nullptr;  // device address of the mapped arena
  std::byte* to = nullptr;
  const GatherMove* moves = nullptr;  // device or mapped memory
  uint32_t move_count = 0;
  uint32_t block_max = 32;  // thread blocks at most: a capped grid leaves the engine's kernels room
};
Status launch_gather(const GatherJob& job, CUstream_st* stream);

}  // namespace skv::cuda
