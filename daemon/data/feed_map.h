#pragma once

#include <cstdint>
#include <memory>

#include "ipc/layout/feed.h"
#include "ipc/shared_memory.h"
#include "ipc/types/result.h"
#include "ipc/unique_fd.h"

namespace skv {

// A feed as a client that ranks for itself reads it (ipc/layout/feed.h): this side writes. Nothing
// is ever read back, and clients cannot write.
//
// Thread  made on the loop, which calls promise(); everything else is the data thread's.
// Owns    the memory, and a read-only descriptor of it for window_open's replies.
class FeedMap {
 public:
  static Result<std::shared_ptr<FeedMap>> create(uint32_t sentence_capacity, uint32_t chunk_count);

  int read_only_fd() const { return read_only_.get(); }
  uint64_t bytes() const { return memory_.bytes(); }
  uint32_t sentence_capacity() const { return capacity_; }

  // Replies to the client from now on say that so many sentences are there.
  void promise(uint32_t sentence_count);

  void set_page_bytes(uint64_t bytes) { header().page_bytes = bytes; }
  void set_page(uint32_t page_index, uint64_t offset);
  void set_sentence(uint32_t sentence_index, const FeedSentenceEntry& entry);
  // What was set before is there for readers that see the count.
  void publish(uint32_t sentence_count);
  void end();

  // A multiple of 4 KiB.
  void show_chunk(uint32_t sentence_index, uint32_t chunk, uint64_t host_offset);
  // Clients that look from now on do not find it. Those that looked before: Window::done_with.
  void hide_chunk(uint32_t sentence_index, uint32_t chunk);

 private:
  FeedMap() = default;
  FeedHeader& header() const;
  std::atomic<uint32_t>& host_page(uint32_t sentence_index, uint32_t chunk) const;

  UniqueFd read_only_;
  MappedMemory memory_;
  FeedLayout at_{};
  uint32_t capacity_ = 0;
  uint32_t chunk_count_ = 0;
};

}  // namespace skv
