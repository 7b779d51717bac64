#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <span>
#include <thread>

namespace skv {

// Gives memory its pages before anybody writes to it: the first touch of a page costs more than
// copying into it does, and a copy would pay it page by page (docs/performance.md).
//
// Thread  add, forget: the owner's. The work is done on a thread of its own, at low priority.
// Owns    the thread and the queue; memory is borrowed until it was worked on or forgotten.
class ArenaWarmer {
 public:
  ArenaWarmer();
  ~ArenaWarmer();
  ArenaWarmer(const ArenaWarmer&) = delete;
  ArenaWarmer& operator=(const ArenaWarmer&) = delete;

  void add(std::span<std::byte> memory);
  // False: it is being worked on just now, and gets all its pages.
  bool forget(std::span<std::byte> memory);
  // Waits until the queue is empty and nothing is worked on. For tests.
  void settle();

 private:
  void run();

  // A mutex, because an item has to leave the queue in one step with its being forgotten; held for
  // a few instructions, never while memory is worked on.
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::span<std::byte>> queue_;
  std::span<std::byte> current_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace skv
