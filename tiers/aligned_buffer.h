#pragma once

#include <sys/mman.h>

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
      const uint64_t page = bytes_ < kHugePage ? 4096 : kHugePage;
      const uint64_t whole = (bytes_ + page - 1) / page * page;
      data_.reset(static_cast<std::byte*>(std::aligned_alloc(page, whole)));
      SKV_CHECK(data_ != nullptr, "out of memory");
      // Advice: a disk takes them faster than small ones.
      if (page == kHugePage) (void)madvise(data_.get(), whole, MADV_HUGEPAGE);
      std::memset(data_.get(), 0, bytes_);
    }
  }

  std::byte* data() const { return data_.get(); }
  uint64_t size() const { return bytes_; }
  std::span<std::byte> span() const { return {data_.get(), bytes_}; }

 private:
  static constexpr uint64_t kHugePage = 2u << 20;
  struct Free {
    void operator()(std::byte* data) const { std::free(data); }
  };
  std::unique_ptr<std::byte, Free> data_;
  uint64_t bytes_ = 0;
};

}  // namespace skv
