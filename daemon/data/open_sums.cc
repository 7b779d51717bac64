#include "daemon/data/open_sums.h"

#include <algorithm>

namespace skv {

OpenSums::Sum* OpenSums::find(const Chunk& chunk) {
  if (chunk.uid == SentenceUid{}) return nullptr;
  const auto found = std::find_if(sums_.begin(), sums_.end(), [&](const auto& sum) {
    return sum->used != 0 && sum->uid == chunk.uid && sum->chunk == chunk.index;
  });
  return found == sums_.end() ? nullptr : found->get();
}

OpenSums::Sum& OpenSums::fresh() {
  Sum* oldest = nullptr;
  uint32_t waiting = 0;
  for (const auto& sum : sums_) {
    if (sum->used == 0) return *sum;
    if (sum->busy) continue;
    ++waiting;
    if (oldest == nullptr || sum->used < oldest->used) oldest = sum.get();
  }
  if (waiting >= kOpenSumsMax) return *oldest;
  return *sums_.emplace_back(std::make_unique<Sum>());
}

OpenSums::Sum* OpenSums::take(const Chunk& chunk, uint64_t offset) {
  Sum* sum = find(chunk);
  if (sum != nullptr && offset > sum->bytes) return nullptr;  // a gap: it may be filled later
  if (sum != nullptr && offset < sum->bytes && offset > 0) {  // what it has is overwritten
    free(*sum);
    return nullptr;
  }
  if (sum == nullptr && offset > 0) return nullptr;
  if (sum == nullptr) sum = &fresh();
  if (offset == 0) {
    sum->session = chunk.session;
    sum->uid = chunk.uid;
    sum->chunk = chunk.index;
    sum->bytes = 0;
    sum->stream.reset();
  }
  sum->used = ++clock_;
  sum->busy = true;
  return sum;
}

void OpenSums::give_back(Sum& sum) { sum.busy = false; }

void OpenSums::free(Sum& sum) {
  sum.used = 0;
  sum.busy = false;
}

void OpenSums::drop(SessionId session) {
  for (const auto& sum : sums_) {
    if (sum->session == session) free(*sum);
  }
}

size_t OpenSums::open() const {
  return static_cast<size_t>(
      std::count_if(sums_.begin(), sums_.end(), [](const auto& sum) { return sum->used != 0; }));
}

}  // namespace skv
