#include "tiers/arena_warmer.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <atomic>
#include <cstdint>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>

#include "tiers/host_arena.h"

namespace skv {
namespace {

constexpr uint64_t kBytes = 8 * kHugePageBytes;

uint64_t file_bytes(const HostArena& arena) {
  struct stat status {};
  EXPECT_EQ(::fstat(arena.fd(), &status), 0);
  return static_cast<uint64_t>(status.st_blocks) * 512;
}

// Of the mapping that begins at `begin`: what huge pages map of it.
uint64_t huge_bytes(const std::byte* begin) {
  std::ostringstream range;
  range << std::hex << reinterpret_cast<uintptr_t>(begin) << "-";
  std::ifstream smaps("/proc/self/smaps");
  bool is_here = false;
  for (std::string line; std::getline(smaps, line);) {
    if (line.find('-') < 20 && line.find(" /memfd:") != std::string::npos) {
      is_here = line.starts_with(range.str());
    }
    if (is_here && line.starts_with("ShmemPmdMapped:")) return 1024 * std::stoull(line.substr(15));
  }
  return 0;
}

// Whether this system makes huge pages of shared memory when it is asked to.
bool can_be_huge() {
  const std::unique_ptr<HostArena> arena = HostArena::create(kBytes, kHugePageBytes).value();
  arena->memory()[0] = std::byte{1};
  return ::madvise(arena->memory().data(), kHugePageBytes, 25) == 0;
}

TEST(ArenaWarmer, MemoryHasItsPages) {
  ArenaWarmer warmer;
  for (const uint64_t step : {uint64_t{65536}, kHugePageBytes, 2 * kHugePageBytes}) {
    const std::unique_ptr<HostArena> arena = HostArena::create(kBytes, step).value();
    EXPECT_EQ(file_bytes(*arena), 0U);
    warmer.add(arena->memory().subspan(0, step));
    warmer.add(arena->memory().subspan(step, step));
    warmer.settle();
    EXPECT_EQ(file_bytes(*arena), 2 * step);
  }
}

// Goal: huge pages, here and for a reader that had mapped the memory in small ones before.
TEST(ArenaWarmer, WholeHugePagesAreSuch) {
  if (!can_be_huge()) GTEST_SKIP() << "this system has no huge pages for shared memory";
  ArenaWarmer warmer;
  const std::unique_ptr<HostArena> arena = HostArena::create(kBytes, kHugePageBytes).value();
  const MappedMemory reader =
      MappedMemory::map(arena->read_only_fd(), kBytes, MappedMemory::Access::kReadOnly).value();
  arena->memory()[kHugePageBytes / 2] = std::byte{5};
  EXPECT_EQ(reader.data()[kHugePageBytes / 2], std::byte{5});
  warmer.add(arena->memory());
  warmer.settle();
  EXPECT_EQ(huge_bytes(arena->memory().data()), kBytes);
  for (uint64_t at = 0; at < kBytes; at += kHugePageBytes / 2) {
    EXPECT_EQ(reader.data()[at], at == kHugePageBytes / 2 ? std::byte{5} : std::byte{0});
  }
  EXPECT_EQ(huge_bytes(reader.data()), kBytes);
}

// Goal: nothing that is written while pages are made is lost.
TEST(ArenaWarmer, WhatIsWrittenMeanwhileStays) {
  ArenaWarmer warmer;
  const std::unique_ptr<HostArena> arena = HostArena::create(kBytes, kHugePageBytes).value();
  const std::span<std::byte> memory = arena->memory();
  for (int round = 1; round <= 20; ++round) {
    std::thread writer([&] {
      for (uint64_t at = 0; at < kBytes; at += 512) memory[at] = static_cast<std::byte>(round);
    });
    for (uint64_t at = 0; at < kBytes; at += kHugePageBytes) {
      warmer.add(memory.subspan(at, kHugePageBytes));
    }
    writer.join();
    warmer.settle();
    uint64_t lost = 0;
    for (uint64_t at = 0; at < kBytes; at += 512) {
      lost += memory[at] == static_cast<std::byte>(round) ? 0 : 1;
    }
    ASSERT_EQ(lost, 0U) << round;
    ASSERT_TRUE(arena->punch(0, kBytes).ok());
  }
}

// Goal: memory that was dropped can be punched, and stays without pages.
TEST(ArenaWarmer, WhatIsDroppedGetsNoPages) {
  ArenaWarmer warmer;
  const std::unique_ptr<HostArena> arena = HostArena::create(kBytes, kHugePageBytes).value();
  for (int round = 0; round < 50; ++round) {
    for (uint64_t at = 0; at < kBytes; at += kHugePageBytes) {
      warmer.add(arena->memory().subspan(at, kHugePageBytes));
    }
    while (round % 2 == 0 && file_bytes(*arena) == 0) std::this_thread::yield();
    for (uint64_t at = 0; at < kBytes; at += kHugePageBytes) {
      warmer.drop(arena->memory().subspan(at, kHugePageBytes));
      ASSERT_TRUE(arena->punch(at, kHugePageBytes).ok());
    }
    warmer.settle();
    ASSERT_EQ(file_bytes(*arena), 0U) << round;
  }
}

}  // namespace
}  // namespace skv
