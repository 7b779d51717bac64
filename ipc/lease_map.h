#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "ipc/layout/lease_map.h"
#include "ipc/shared_memory.h"
#include "ipc/types/result.h"
#include "ipc/unique_fd.h"

namespace skv {

// The daemon's side of one context's lease map (ipc/layout/lease_map.h): says where chunks are, and
// hears from the words who reads them. What it reads there is hostile: a word says "in use" or not,
// and nothing else follows from it.
//
// Thread  one (loop).
// Owns    both memories.
class LeaseMapWriter {
 public:
  static Result<std::unique_ptr<LeaseMapWriter>> create(uint32_t sentence_capacity,
                                                        uint32_t chunk_count);

  // For the client, once: places can only be read, words be written.
  UniqueFd take_places() { return std::move(places_fd_); }
  UniqueFd take_words() { return std::move(words_fd_); }
  uint64_t bytes() const { return at_.bytes; }  // of each of the two
  uint32_t sentence_capacity() const { return capacity_; }
  uint32_t chunk_count() const { return at_.chunk_count; }

  // `host_offset` is a multiple of 4 KiB. Bytes written there before are there for who finds it.
  void show(uint32_t sentence, uint32_t chunk, uint64_t host_offset);
  // Who looks from now on does not find it; held() says of those who looked before.
  void hide(uint32_t sentence, uint32_t chunk);
  bool held(uint32_t sentence, uint32_t chunk) const;
  // Whether it was leased since this was last asked.
  bool take_touched(uint32_t sentence, uint32_t chunk);
  uint64_t leases() const;  // the client's word

 private:
  LeaseMapWriter() = default;
  std::atomic<uint32_t>& place(uint32_t sentence, uint32_t chunk) const;
  std::atomic<uint32_t>& word(uint32_t sentence, uint32_t chunk) const;

  UniqueFd places_fd_;
  UniqueFd words_fd_;
  MappedMemory places_;
  MappedMemory words_;
  LeaseMapLayout at_{};
  uint32_t capacity_ = 0;
};

// The client's side. No system call, no lock, no allocation but the caller's vector.
//
// Thread  any, several at once.
// Owns    its mappings.
class LeaseMapReader {
 public:
  // kProtocol: not the memories of a lease map with `chunk_count` chunks per sentence.
  static Result<LeaseMapReader> open(MappedMemory places, MappedMemory words, uint32_t chunk_count);

  struct Range {
    uint32_t first_sentence = 0;
    uint32_t sentence_count = 0;
    uint32_t first_chunk = 0;
    uint32_t chunk_count = 0;  // of each sentence
  };
  // Leases all chunks of the range, or none: then false. Appends where each begins in the host
  // memory, [sentence][chunk]. Chunks beyond the map are not there.
  bool take(const Range& range, std::vector<uint64_t>& offsets) const;
  // What one take() leased.
  void give_back(const Range& range) const;

 private:
  LeaseMapReader(MappedMemory places, MappedMemory words);
  const std::atomic<uint32_t>* places(const Range& range, uint32_t sentence) const;
  std::atomic<uint32_t>* words(const Range& range, uint32_t sentence) const;
  bool take_sentence(const Range& range, uint32_t sentence, std::vector<uint64_t>& offsets) const;

  MappedMemory places_;
  MappedMemory words_;
  LeaseMapLayout at_{};
  uint32_t capacity_ = 0;
};

}  // namespace skv
