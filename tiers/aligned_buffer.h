#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>

#include "ipc/types/check.h"

namespace skv {

// Memory at a multiple of 4 KiB, in whole 4 KiB, as O_DIRECT wants it. Zeroed.
//
// Thread  the owner's; move only.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(uint64_t bytes) : bytes_((bytes + 4095) / 4096 * 4096) {
    if (bytes_ > 0) {
      data_.reset(static_cast<std::byte*>(std::aligned_alloc(4096, bytes_)));
      SKV_CHECK(data_ != nullptr, "out of memory");
      std::memset(data_.get(), 0, bytes_);
    }
  }

  std::byte* data() const { return data_.get(); }
  uint64_t size() const { return bytes_; }
  std::span<std::byte> span() const { return {data_.get(), bytes_}; }

 private:
  struct Free {
    void operator()(std::byte* data) const { std::free(data); }
  };
  std::unique_ptr<std::byte, Free> data_;
  uint64_t bytes_ = 0;
};

}  // namespace skv
