#pragma once

#include <cstdint>

#include "ipc/identity/model.h"

#if defined(__CUDACC__)
#define SKV_BODY __host__ __device__
#else
#define SKV_BODY
#endif

namespace skv::cuda {

inline constexpr uint32_t kHistogramBuckets = 2048;  // one digit of 11 bits
inline constexpr uint32_t kSumLanes = 16;
inline constexpr uint32_t kQueriesMax = 64;  // of a job

// What the threads of a block share, in every kernel: 14 KiB.
struct BlockShared {
  uint32_t histogram[kHistogramBuckets];
  float scaled[kHeadDimMax];    // one query times the residual scales of one sentence
  int8_t steps[kHeadDimMax];    // the same in steps
  float per_step[kQueriesMax];  // of the squares of each query
  float square_values[kQueriesMax];
  float lanes[kSumLanes];
};
static_assert(sizeof(BlockShared) <= 16 * 1024);

}  // namespace skv::cuda
