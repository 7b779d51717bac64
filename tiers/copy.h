#pragma once

#include <cstddef>

namespace skv {

// memcpy with stores that go around the caches: for bytes that this core does not read again soon.
// A plain copy first reads every line that it is about to overwrite; this one does not, which about
// doubles it above the size of the caches (docs/performance.md). Ends and what is not aligned to a
// vector are stored plainly. With a checksum in the same pass: ChecksumStream::copy().
//
// Order   such stores become visible after stores_done(), which comes before anyone is told.
// Thread  any. Requires: no overlap.
void copy_around_caches(std::byte* to, const std::byte* from, size_t bytes);
void stores_done();

// memcpy of a run of some KiB among others that lie apart, from memory that is in no cache: the
// string instruction knows how long the run is and asks for all of it at once, where a loop of
// loads waits while the hardware finds each stream anew.
void copy_run(std::byte* to, const std::byte* from, size_t bytes);

}  // namespace skv
