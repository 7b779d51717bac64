#include "ipc/identity/sentence_cut.h"

#include <algorithm>
#include <string>

#include "ipc/identity/model.h"

namespace skv {

Result<std::vector<SentenceSpan>> SentenceCut::extend(std::span<const uint32_t> ends,
                                                      uint32_t ends_final_to,
                                                      uint32_t token_count) {
  // All checks before the first change: a refused call leaves no trace.
  if (token_count < token_count_) {
    return Error{ErrorCode::kInvalidArgument, "token_count " + std::to_string(token_count) +
                                                  " is below the " + std::to_string(token_count_) +
                                                  " tokens already known"};
  }
  uint32_t previous = 0;
  for (const uint32_t end : ends) {
    if (end <= previous) {
      return Error{ErrorCode::kInvalidArgument, "ends must ascend from 1: " + std::to_string(end) +
                                                    " follows " + std::to_string(previous)};
    }
    previous = end;
  }
  if (!ends.empty() && ends.front() <= ends_final_to_) {
    return Error{ErrorCode::kInvalidArgument, "end " + std::to_string(ends.front()) +
                                                  " lies in the " + std::to_string(ends_final_to_) +
                                                  " tokens whose ends are final"};
  }

  token_count_ = token_count;
  ends_final_to_ = std::max(ends_final_to_, ends_final_to);
  // Ends beyond what is final may come in any order over several calls.
  const size_t old_count = ends_.size();
  ends_.insert(ends_.end(), ends.begin(), ends.end());
  std::inplace_merge(ends_.begin(), ends_.begin() + static_cast<ptrdiff_t>(old_count), ends_.end());
  ends_.erase(std::unique(ends_.begin(), ends_.end()), ends_.end());
  return close_known();
}

std::vector<SentenceSpan> SentenceCut::restart_at(uint32_t first_block) {
  next_first_block_ = first_block;
  return close_known();
}

std::vector<SentenceSpan> SentenceCut::close_known() {
  std::vector<SentenceSpan> closed;
  const uint64_t half = block_tokens_ / 2;
  const uint64_t known = std::min(token_count_, ends_final_to_);
  for (;;) {
    const uint64_t start = static_cast<uint64_t>(next_first_block_) * block_tokens_;
    uint64_t end = 0;
    for (uint64_t edge = start + kSentenceTokensMin;; edge += block_tokens_) {
      if (edge + half > known) return closed;  // not decided yet, nor is anything after it
      // The first declared end in (edge - half, edge + half].
      const auto near = std::upper_bound(ends_.begin(), ends_.end(), edge - half);
      const bool has_end = near != ends_.end() && *near <= edge + half;
      if (has_end || edge - start >= kSentenceTokensMax) {
        end = edge;
        break;
      }
    }
    const auto block_count = static_cast<uint32_t>((end - start) / block_tokens_);
    closed.push_back(SentenceSpan{next_first_block_, block_count});
    next_first_block_ += block_count;
  }
}

}  // namespace skv
