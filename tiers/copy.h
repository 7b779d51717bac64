#pragma once

#include <cstddef>

#include "tiers/checksum.h"

namespace skv {

// memcpy with stores that go around the caches: for bytes that this core does not read again soon.
// A plain copy first reads every line that it is about to overwrite; this one does not, which about
// doubles it above the size of the caches (docs/performance.md). Ends and what is not aligned to a
// vector are stored plainly.
//
// Order   such stores become visible after stores_done(), which comes before anyone is told.
// Thread  any. Requires: no overlap.
void copy_around_caches(std::byte* to, const std::byte* from, size_t bytes);
void stores_done();

// memcpy of a run of some KiB among others that lie apart, from memory that is in no cache: the
// string instruction knows how long the run is and asks for all of it at once, where a loop of
// loads waits while the hardware finds each stream anew.
void copy_run(std::byte* to, const std::byte* from, size_t bytes);

// One pass from memory that somebody else may be writing into memory of ours, with the checksum of
// what was written: the source is read once, into a page on this stack of work, and the sum and the
// destination both come from that page.
//
//   SummedCopy copy(extent, &stream);
//   for (row : rows) copy.append(row, row_bytes);
//   copy.finish();
//
// Thread  one. Owns nothing: destination and stream (may be null: no sum) are the caller's.
class SummedCopy {
 public:
  SummedCopy(std::byte* to, ChecksumStream* stream) : to_(to), stream_(stream) {}
  SummedCopy(const SummedCopy&) = delete;
  SummedCopy& operator=(const SummedCopy&) = delete;

  // The next `bytes` of the destination.
  void append(const std::byte* from, size_t bytes);
  // What is still in the page; before stores_done().
  void finish();

 private:
  // With the source's lines and the stream's state it stays in the first level cache.
  static constexpr size_t kPageBytes = 4096;
  alignas(64) std::byte page_[kPageBytes];
  size_t filled_ = 0;
  std::byte* to_;
  ChecksumStream* stream_;
};

}  // namespace skv
