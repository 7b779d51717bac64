#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace skv {

// A hash table of 32-bit indices (never 0) into a pool that has the keys: 4 bytes per place, 4.6 to
// 9.2 per entry. Linear probing; an erased place is filled from behind it, so there are no
// tombstones.
//
// Traits  size_t hash(uint32_t index) const, of the key of an entry; Key and
//         bool is(uint32_t index, const Key&) const.
// Thread  its owner's.
template <typename Traits>
class IndexTable {
 public:
  explicit IndexTable(Traits traits) : traits_(std::move(traits)) {}

  // 0: there is none.
  template <typename Key>
  uint32_t find(size_t hash, const Key& key) const {
    if (count_ == 0) return 0;
    for (size_t at = hash & mask();; at = (at + 1) & mask()) {
      if (places_[at] == 0 || traits_.is(places_[at], key)) return places_[at];
    }
  }
  // Requires: its key is not in the table.
  void insert(size_t hash, uint32_t index) {
    if ((count_ + 1) * 8 > places_.size() * 7) grow();
    place(hash, index);
    ++count_;
  }
  // Requires: it is in the table.
  void erase(size_t hash, uint32_t index) {
    size_t hole = hash & mask();
    while (places_[hole] != index) hole = (hole + 1) & mask();
    for (size_t at = (hole + 1) & mask(); places_[at] != 0; at = (at + 1) & mask()) {
      // It may move up if the hole is not before the place it belongs to.
      const size_t wanted = traits_.hash(places_[at]) & mask();
      if (((at - wanted) & mask()) < ((at - hole) & mask())) continue;
      places_[hole] = places_[at];
      hole = at;
    }
    places_[hole] = 0;
    --count_;
  }
  size_t size() const { return count_; }

 private:
  size_t mask() const { return places_.size() - 1; }
  void place(size_t hash, uint32_t index) {
    size_t at = hash & mask();
    while (places_[at] != 0) at = (at + 1) & mask();
    places_[at] = index;
  }
  void grow() {
    std::vector<uint32_t> old(places_.empty() ? 16 : places_.size() * 2);
    old.swap(places_);
    for (const uint32_t index : old) {
      if (index != 0) place(traits_.hash(index), index);
    }
  }

  Traits traits_;
  size_t count_ = 0;
  std::vector<uint32_t> places_;
};

}  // namespace skv
