#include "daemon/chunk_queue.h"

namespace skv {

void ChunkQueue::push(const Entry& entry, ChunkQueueNode& node) {
  forget(node, entry.bytes);
  node.in_main = false;
  node.frequency = 0;
  if (++last_stamp_ == 0) ++last_stamp_;
  node.stamp = last_stamp_;
  small_bytes_ += entry.bytes;
  small_.push_back(entry);
  small_.back().stamp = node.stamp;
}

void ChunkQueue::push_front(const Entry& entry, ChunkQueueNode& node) {
  push(entry, node);
  const Entry queued = small_.back();
  small_.pop_back();
  small_.push_front(queued);
}

void ChunkQueue::forget(ChunkQueueNode& node, uint32_t bytes) {
  if (node.stamp == 0) return;
  bytes_of(node) -= bytes;
  node.stamp = 0;
}

void ChunkQueue::move(const Entry& entry, ChunkQueueNode& node, bool to_main) {
  bytes_of(node) -= entry.bytes;
  node.in_main = to_main;
  bytes_of(node) += entry.bytes;
  (to_main ? main_ : small_).push_back(entry);
}

}  // namespace skv
