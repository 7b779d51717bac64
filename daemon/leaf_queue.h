#pragma once

#include <cstdint>
#include <set>
#include <utility>

#include "daemon/directory.h"
#include "ipc/types/ids.h"

namespace skv {

// Which sentence leaves the last tier first: S3-FIFO over all stored sentences, of which only those
// that nothing stored hangs on (Directory::removable) may go.
//
// A sentence keeps the place that it had when it was stored, so a chain that was put long ago goes
// from its leaf towards its root before younger chains are touched. Only leaves are kept in order;
// queue, place and touches are in the Sentence.
//
// Units   bytes of bodies (storage).
// Thread  loop.
// Owns    nothing; a sentence must be removed() before it dies.
class LeafQueue {
 public:
  void stored(Sentence& sentence);   // once, when it becomes stored
  void removed(Sentence& sentence);  // once, when a stored sentence leaves the directory
  void update(Sentence& sentence);   // its removability may have changed

  static void touch(Sentence& sentence) {
    if (sentence.frequency < 3) ++sentence.frequency;
  }

  // The next leaf for which may_go() holds, null if there is none. It stays queued: the caller
  // removes it from the directory.
  template <typename MayGo>
  Sentence* next(MayGo&& may_go) {
    // A spared leaf used up a touch, so this ends.
    for (spared_ = true; spared_;) {
      spared_ = false;
      const bool small_first = small_bytes_ * 10 > small_bytes_ + main_bytes_;
      if (Sentence* found = scan(small_first ? small_ : main_, may_go)) return found;
      if (Sentence* found = scan(small_first ? main_ : small_, may_go)) return found;
    }
    return nullptr;
  }

  size_t leaf_count() const { return small_.size() + main_.size(); }

 private:
  using Queue = std::set<std::pair<uint64_t, Sentence*>>;  // by Sentence::order

  template <typename MayGo>
  Sentence* scan(Queue& queue, MayGo&& may_go) {
    for (auto at = queue.begin(); at != queue.end();) {
      Sentence& sentence = *at->second;
      ++at;
      const bool spared = sentence.main_queue ? sentence.frequency > 0 : sentence.frequency > 1;
      if (spared) {
        spare(sentence);
      } else if (may_go(sentence)) {
        return &sentence;
      }
    }
    return nullptr;
  }
  // A touched leaf goes to the end of the main queue, with the touches it has left.
  void spare(Sentence& sentence);
  Queue& queue_of(const Sentence& sentence) { return sentence.main_queue ? main_ : small_; }

  bool spared_ = false;
  uint64_t next_order_ = 1;
  uint64_t small_bytes_ = 0;
  uint64_t main_bytes_ = 0;
  Queue small_;
  Queue main_;
};

}  // namespace skv
