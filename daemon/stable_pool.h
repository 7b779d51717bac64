#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "ipc/types/check.h"

namespace skv {

// Objects named by a 32-bit index (0: none), in blocks that never move: a pointer stays valid until
// its object is given back. Memory of the peak stays with the pool.
//
// Thread  its owner's.
// Limits  2^32 - 1 objects.
template <typename T>
class StablePool {
 public:
  // An object as it was left (a new one: value-initialised).
  uint32_t take() {
    if (!free_.empty()) {
      const uint32_t index = free_.back();
      free_.pop_back();
      return index;
    }
    SKV_CHECK(end_ != 0, "a pool of 2^32 objects is full");
    if (end_ / kBlockObjects == blocks_.size()) {
      blocks_.push_back(std::make_unique<T[]>(kBlockObjects));
    }
    return end_++;
  }
  void give_back(uint32_t index) { free_.push_back(index); }

  // As a pointer does, a const pool gives objects that are not const.
  T& operator[](uint32_t index) const {
    return blocks_[index / kBlockObjects][index % kBlockObjects];
  }
  // All indices ever taken are below it.
  uint32_t end() const { return end_; }

 private:
  static constexpr uint32_t kBlockObjects = 512;

  std::vector<std::unique_ptr<T[]>> blocks_;
  std::vector<uint32_t> free_;
  uint32_t end_ = 1;
};

}  // namespace skv
