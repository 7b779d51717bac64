#pragma once

#include <cstdint>

#include "kernels/cuda/block_shared.h"

namespace skv::cuda {

// A thread block of a GPU, as the kernels' bodies see it (host_block.h is its twin on a CPU).
//
// Every member is called by all threads of the block, with the same arguments but for what lambdas
// capture per thread, and ends with a barrier. blockDim.x is a multiple of 32, at most 1024.
class DeviceBlock {
 public:
  __device__ DeviceBlock(BlockShared& shared, uint32_t* partials, uint64_t* word)
      : shared_(shared), partials_(partials), word_(word) {}

  __device__ BlockShared& shared() { return shared_; }

  template <typename F>
  __device__ void for_each(uint32_t count, F f) {
    for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) f(i);
    __syncthreads();
  }

  // f() in one thread, its result (at most 8 bytes) in all.
  template <typename F>
  __device__ auto broadcast(F f) {
    using T = decltype(f());
    static_assert(sizeof(T) <= sizeof(uint64_t));
    if (threadIdx.x == 0) *reinterpret_cast<T*>(word_) = f();
    __syncthreads();
    const T result = *reinterpret_cast<const T*>(word_);
    __syncthreads();
    return result;
  }

  // Largest of `least` and value(0..count); no value is NaN.
  template <typename F>
  __device__ float max_of(uint32_t count, float least, F value) {
    float mine = least;
    for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) mine = fmaxf(mine, value(i));
    for (int offset = 16; offset > 0; offset /= 2) {
      mine = fmaxf(mine, __shfl_xor_sync(0xFFFFFFFFU, mine, offset));
    }
    if (threadIdx.x % 32 == 0) partials_[threadIdx.x / 32] = __float_as_uint(mine);
    __syncthreads();
    float all = least;
    for (uint32_t warp = 0; warp < blockDim.x / 32; ++warp) {
      all = fmaxf(all, __uint_as_float(partials_[warp]));
    }
    __syncthreads();
    return all;
  }

  // sink(i, value(0) + .. + value(i - 1)) for each i; returns the sum of all.
  template <typename Value, typename Sink>
  __device__ uint32_t scan(uint32_t count, Value value, Sink sink) {
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t warp = threadIdx.x / 32;
    uint32_t before = 0;
    for (uint32_t base = 0; base < count; base += blockDim.x) {
      const uint32_t i = base + threadIdx.x;
      const uint32_t own = i < count ? value(i) : 0;
      uint32_t sum = own;
      for (uint32_t offset = 1; offset < 32; offset *= 2) {
        const uint32_t other = __shfl_up_sync(0xFFFFFFFFU, sum, offset);
        if (lane >= offset) sum += other;
      }
      if (lane == 31) partials_[warp] = sum;
      __syncthreads();
      uint32_t before_warp = 0;
      uint32_t chunk = 0;
      for (uint32_t w = 0; w < blockDim.x / 32; ++w) {
        if (w < warp) before_warp += partials_[w];
        chunk += partials_[w];
      }
      if (i < count) sink(i, before + before_warp + sum - own);
      before += chunk;
      __syncthreads();
    }
    return before;
  }

  __device__ static void add(uint32_t& to, uint32_t value) { atomicAdd(&to, value); }

 private:
  BlockShared& shared_;
  uint32_t* partials_;  // shared, 32 words
  uint64_t* word_;      // shared
};

}  // namespace skv::cuda
