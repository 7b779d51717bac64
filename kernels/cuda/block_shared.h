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

// What the threads of a block share, in every kernel: 13 KiB.
struct BlockShared {
  uint32_t histogram[kHistogramBuckets];
  float scaled[kHeadDimMax];  // one query times the residual scales of one sentence
  int8_t steps[kHeadDimMax];  // the same in steps
  float lanes[kSumLanes];
};
static_assert(sizeof(BlockShared) <= 16 * 1024);

}  // namespace skv::cuda
