#pragma once

#include <cstdint>
#include <deque>

#include "ipc/types/ids.h"

namespace skv {

// Place of one resident chunk in the ChunkQueue; lives with the chunk.
struct ChunkQueueNode {
  uint32_t stamp = 0;  // of the entry that stands for it; 0: it is in no queue
  uint8_t frequency = 0;
  bool in_main = false;
};

// Which chunk leaves host memory first: S3-FIFO over (sentence, chunk), in bytes.
//
// New chunks enter a small queue and leave from there, unless they were touched more than once;
// those go on to the main queue, which gives one more round per touch. Entries are never searched:
// a chunk that leaves makes its stamp stale, and stale entries are dropped when they come up.
//
// Units   bytes of extents.
// Thread  loop.
class ChunkQueue {
 public:
  struct Entry {
    SentenceUid uid{};
    uint32_t chunk = 0;
    uint32_t stamp = 0;
    uint32_t bytes = 0;
  };

  void push(const Entry& entry, ChunkQueueNode& node);  // entry.stamp is set here
  // It goes next, whatever it did before.
  void push_front(const Entry& entry, ChunkQueueNode& node);
  void forget(ChunkQueueNode& node, uint32_t bytes);
  static void touch(ChunkQueueNode& node) {
    if (node.frequency < 3) ++node.frequency;
  }

  enum class Verdict : uint8_t {
    kGo = 0,
    kStay = 1,  // leased or in use: stays, behind the others
    kStop = 2,  // no more is wanted
  };
  // The next chunk to go; false: none. lookup(entry) returns the node of a live entry, null if it
  // is gone. The chosen one is forgotten.
  template <typename Lookup, typename Judge>
  bool next(Lookup&& lookup, Judge&& judge, Entry& chosen) {
    // Each live entry is passed over at most 4 times before its frequency is used up.
    for (uint64_t looks = 4 * (small_.size() + main_.size()) + 1; looks > 0; --looks) {
      const bool from_small =
          !small_.empty() && (main_.empty() || small_bytes_ * 10 > small_bytes_ + main_bytes_);
      std::deque<Entry>& queue = from_small ? small_ : main_;
      if (queue.empty()) return false;
      Entry entry = queue.front();
      queue.pop_front();
      ChunkQueueNode* node = lookup(entry);
      if (node == nullptr || node->stamp != entry.stamp) continue;
      if (from_small ? node->frequency > 1 : node->frequency > 0) {
        node->frequency = from_small ? 0 : node->frequency - 1;
        move(entry, *node, /*to_main=*/true);
        continue;
      }
      const Verdict verdict = judge(entry);
      if (verdict == Verdict::kGo) {
        forget(*node, entry.bytes);
        chosen = entry;
        return true;
      }
      if (verdict == Verdict::kStop) {
        queue.push_front(entry);
        return false;
      }
      queue.push_back(entry);
    }
    return false;
  }

  // The front of the small queue, if it was not touched since it came and may_go(entry): for what
  // must not cost anybody a second chance. Forgotten as next() does.
  template <typename Lookup, typename MayGo>
  bool next_untouched(Lookup&& lookup, MayGo&& may_go, Entry& chosen) {
    for (; !small_.empty(); small_.pop_front()) {
      const Entry entry = small_.front();
      ChunkQueueNode* node = lookup(entry);
      if (node == nullptr || node->stamp != entry.stamp) continue;
      if (node->frequency > 0 || !may_go(entry)) return false;
      small_.pop_front();
      forget(*node, entry.bytes);
      chosen = entry;
      return true;
    }
    return false;
  }

  uint64_t bytes() const { return small_bytes_ + main_bytes_; }

 private:
  void move(const Entry& entry, ChunkQueueNode& node, bool to_main);
  uint64_t& bytes_of(const ChunkQueueNode& node) {
    return node.in_main ? main_bytes_ : small_bytes_;
  }

  uint32_t last_stamp_ = 0;
  uint64_t small_bytes_ = 0;
  uint64_t main_bytes_ = 0;
  std::deque<Entry> small_;
  std::deque<Entry> main_;
};

}  // namespace skv
