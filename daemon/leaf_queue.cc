#include "daemon/leaf_queue.h"

namespace skv {

void LeafQueue::stored(Sentence& sentence) {
  sentence.order = next_order_++;
  sentence.main_queue = false;
  sentence.frequency = 0;
  small_bytes_ += sentence.shape->storage_bytes();
}

void LeafQueue::removed(Sentence& sentence) {
  queue_of(sentence).erase({sentence.order, &sentence});
  (sentence.main_queue ? main_bytes_ : small_bytes_) -= sentence.shape->storage_bytes();
}

void LeafQueue::update(Sentence& sentence) {
  if (Directory::removable(sentence)) {
    queue_of(sentence).insert({sentence.order, &sentence});
  } else {
    queue_of(sentence).erase({sentence.order, &sentence});
  }
}

void LeafQueue::spare(Sentence& sentence) {
  spared_ = true;
  queue_of(sentence).erase({sentence.order, &sentence});
  const uint64_t bytes = sentence.shape->storage_bytes();
  (sentence.main_queue ? main_bytes_ : small_bytes_) -= bytes;
  sentence.frequency = sentence.main_queue ? sentence.frequency - 1 : 0;
  sentence.main_queue = true;
  sentence.order = next_order_++;
  main_bytes_ += bytes;
  main_.insert({sentence.order, &sentence});
}

}  // namespace skv
