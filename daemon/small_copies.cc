#include "daemon/small_copies.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <utility>

#include "daemon/core.h"
#include "daemon/tasks.h"
#include "ipc/types/check.h"

namespace skv {
namespace {

uint64_t bytes_of(const CopyTask& task) {
  const BodyLayout& layout = task.model->layout;
  uint64_t bytes = 0;
  for (const SentenceExtents& sentence : task.sentences) {
    for (uint32_t layer = task.layers.first; layer < task.layers.end(); ++layer) {
      bytes +=
          uint64_t{layout.kv_heads(layer)} * sentence.span.block_count * layout.block_bytes(layer);
    }
  }
  return bytes;
}

}  // namespace

SmallCopies::SmallCopies(Loop& loop, HostStore& host)
    : loop_(loop),
      host_(host),
      runner_({[] { return uint64_t{0}; },
               [this](SpaceId space) {
                 const Result<HostStore::Arena> arena = host_.arena(space);
                 SKV_CHECK(arena.ok(), "a task's space has an arena");
                 return ArenaView{arena.value().memory.data(), arena.value().memory.size()};
               },
               [this](TaskDone done) { done_ = std::move(done); }},
              counters_) {}

bool SmallCopies::has_pages(const CopyTask& task) const {
  const Result<HostStore::Arena> arena = host_.arena(task.space);
  if (!arena.ok()) return false;
  const BodyLayout& layout = task.model->layout;
  const uint32_t first = layout.chunk_of(task.layers.first);
  // A chunk may be longer than the layers of it that are copied.
  std::array<unsigned char, 2 * kBytesMax / kPageBytes> pages;
  for (const SentenceExtents& sentence : task.sentences) {
    for (size_t i = 0; i < sentence.extents.size(); ++i) {
      const uint64_t bytes =
          layout.chunk_storage_bytes(first + static_cast<uint32_t>(i), sentence.span.block_count);
      const uint64_t count = bytes / kPageBytes;
      if (count > pages.size()) return false;
      if (::mincore(arena.value().memory.data() + sentence.extents[i], bytes, pages.data()) != 0 ||
          !std::all_of(pages.begin(), pages.begin() + static_cast<ptrdiff_t>(count),
                       [](unsigned char page) { return (page & 1) != 0; })) {
        return false;
      }
    }
  }
  return true;
}

std::optional<TaskDone> SmallCopies::run(CopyTask& task) {
  const uint64_t bytes = bytes_of(task);
  if (bytes > kBytesMax) return std::nullopt;
  const uint64_t now_ns = loop_.now_ns();
  if (now_ns - window_ns_ > kWindowNs) {
    window_ns_ = now_ns;
    window_bytes_ = 0;
  }
  if (window_bytes_ + bytes > kWindowBytes || !has_pages(task)) return std::nullopt;
  window_bytes_ += bytes;
  runner_.add(std::move(task));
  (void)runner_.run(/*slice_end_ns=*/1);  // its clock stands: to the end
  return std::exchange(done_, std::nullopt);
}

void start_copy(Core& core, CopyTask copy, bool here) {
  std::optional<TaskDone> done;
  if (here) done = core.small_copies.run(copy);
  if (done) {
    core.tasks.finish(std::move(*done), Tasks::Session::kLives);
  } else {
    core.data.post(std::move(copy));
  }
}

}  // namespace skv
