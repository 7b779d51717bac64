#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <span>
#include <thread>

namespace skv {

// Gives shared memory its pages before anybody writes to it: the first touch of a page costs more
// than copying into it does, and a copy would pay it page by page. Whole huge pages become such
// where the system can: who reads here and there spends a third of the time in the translation of
// addresses otherwise (docs/performance.md). What is written meanwhile stays.
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
  // Forgets it, or waits until it was worked on: no longer than that takes.
  void drop(std::span<std::byte> memory);
  // Waits until the queue is empty and nothing is worked on. For tests.
  void settle();

 private:
  bool forget_locked(std::span<std::byte> memory);
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
