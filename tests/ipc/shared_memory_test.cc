#include "ipc/shared_memory.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "ipc/types/ids.h"

namespace skv {
namespace {

using Access = MappedMemory::Access;

UniqueFd client_memfd(uint64_t bytes, int seals, unsigned flags = 0) {
  UniqueFd fd(::memfd_create("client", MFD_CLOEXEC | MFD_ALLOW_SEALING | flags));
  EXPECT_TRUE(fd.valid());
  EXPECT_EQ(::ftruncate(fd.get(), static_cast<off_t>(bytes)), 0);
  EXPECT_EQ(::fcntl(fd.get(), F_ADD_SEALS, seals), 0);
  return fd;
}

TEST(UniqueFd, ClosesOnce) {
  int raw_fd = -1;
  {
    UniqueFd first(::memfd_create("once", MFD_CLOEXEC));
    raw_fd = first.get();
    UniqueFd second(std::move(first));
    EXPECT_FALSE(first.valid());  // NOLINT(bugprone-use-after-move): that is the question
    first = std::move(second);
    EXPECT_EQ(first.get(), raw_fd);
  }
  EXPECT_EQ(::fcntl(raw_fd, F_GETFD), -1);
  UniqueFd released(::memfd_create("kept", MFD_CLOEXEC));
  raw_fd = released.release();
  EXPECT_FALSE(released.valid());
  EXPECT_EQ(::close(raw_fd), 0);
}

TEST(SharedMemory, IsSealedPrivateAndZero) {
  const UniqueFd fd = create_shared_memory("test", 8192).value();
  EXPECT_EQ(::fcntl(fd.get(), F_GET_SEALS) & (F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL),
            F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL);
  struct stat status {};
  ASSERT_EQ(::fstat(fd.get(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600U);
  EXPECT_EQ(::fcntl(fd.get(), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
  EXPECT_EQ(shared_memory_bytes(fd.get()).value(), 8192U);
  EXPECT_EQ(::ftruncate(fd.get(), 4096), -1);
  EXPECT_EQ(::ftruncate(fd.get(), 16384), -1);
  const MappedMemory memory = MappedMemory::map(fd.get(), 8192, Access::kReadWrite).value();
  EXPECT_EQ(memory.data()[8191], std::byte{0});
}

// Goal: where a huge page could be mapped as one, and no addresses lost beside it.
TEST(SharedMemory, LargeMappingsBeginWhereAHugePageMay) {
  const auto mapped_kib = [] {
    std::ifstream file("/proc/self/statm");
    uint64_t pages = 0;
    file >> pages;
    return pages * 4;
  };
  const uint64_t before = mapped_kib();
  for (const uint64_t bytes : {kHugePageBytes, kHugePageBytes + 1, 5 * kHugePageBytes + 12345}) {
    const UniqueFd fd = create_shared_memory("test", bytes).value();
    std::vector<MappedMemory> mappings;
    for (int i = 0; i < 20; ++i) {
      mappings.push_back(MappedMemory::map(fd.get(), bytes, Access::kReadWrite).value());
      EXPECT_EQ(reinterpret_cast<uintptr_t>(mappings.back().data()) % kHugePageBytes, 0U);
      mappings.back().data()[bytes - 1] = std::byte{7};
    }
    EXPECT_EQ(mappings.front().data()[bytes - 1], std::byte{7});
    EXPECT_LT(mapped_kib() - before, 20 * (bytes + 8192) / 1024 + 1024);
  }
  EXPECT_LT(mapped_kib(), before + 1024);
}

TEST(SharedMemory, NoSizeIsAnError) {
  EXPECT_FALSE(create_shared_memory("none", 0).ok());
  EXPECT_FALSE(create_shared_memory("wraps", ~uint64_t{0}).ok());
}

// Goal: the descriptor that clients get can never become a way to write.
TEST(SharedMemory, ReadOnlyDescriptorStaysReadOnly) {
  const UniqueFd fd = create_shared_memory("test", 4096).value();
  const MappedMemory writer = MappedMemory::map(fd.get(), 4096, Access::kReadWrite).value();
  const UniqueFd read_only = reopen_read_only(fd.get()).value();
  const MappedMemory reader = MappedMemory::map(read_only.get(), 4096, Access::kReadOnly).value();

  writer.data()[100] = std::byte{42};
  EXPECT_EQ(reader.data()[100], std::byte{42});
  EXPECT_FALSE(MappedMemory::map(read_only.get(), 4096, Access::kReadWrite).ok());
  EXPECT_EQ(::mprotect(reader.data(), 4096, PROT_READ | PROT_WRITE), -1);
  EXPECT_FALSE(punch_hole(read_only.get(), 0, 4096).ok());
  EXPECT_EQ(::fcntl(read_only.get(), F_ADD_SEALS, F_SEAL_WRITE), -1);
}

TEST(SharedMemory, MappingIsHeldAgainstTheLength) {
  const UniqueFd fd = create_shared_memory("test", 4096).value();
  EXPECT_FALSE(MappedMemory::map(fd.get(), 8192, Access::kReadWrite).ok());
  EXPECT_FALSE(MappedMemory::map(fd.get(), 0, Access::kReadWrite).ok());
  EXPECT_FALSE(MappedMemory::map(-1, 4096, Access::kReadWrite).ok());
}

TEST(SharedMemory, MappingOutlivesDescriptorAndMoves) {
  UniqueFd fd = create_shared_memory("test", 4096).value();
  MappedMemory memory = MappedMemory::map(fd.get(), 4096, Access::kReadWrite).value();
  fd.reset();
  memory.data()[0] = std::byte{7};
  const MappedMemory moved = std::move(memory);
  EXPECT_EQ(moved.data()[0], std::byte{7});
  EXPECT_FALSE(memory.valid());  // NOLINT(bugprone-use-after-move): that is the question
}

TEST(SharedMemory, PunchedPagesReadAsZero) {
  const UniqueFd fd = create_shared_memory("test", 12288).value();
  const MappedMemory memory = MappedMemory::map(fd.get(), 12288, Access::kReadWrite).value();
  for (std::byte& byte : memory.span()) byte = std::byte{1};
  ASSERT_TRUE(punch_hole(fd.get(), 4096, 4096).ok());
  EXPECT_EQ(memory.data()[4095], std::byte{1});
  EXPECT_EQ(memory.data()[4096], std::byte{0});
  EXPECT_EQ(memory.data()[8192], std::byte{1});
}

std::string refusal(int fd, uint64_t bytes) {
  const Result<void> checked = check_client_memfd(fd, bytes);
  return checked.ok() ? "accepted" : checked.error().message;
}

TEST(ClientMemfd, SealedMemfdOfTheDeclaredLengthIsAccepted) {
  const UniqueFd fd = client_memfd(8192, F_SEAL_SHRINK | F_SEAL_GROW);
  EXPECT_EQ(refusal(fd.get(), 8192), "accepted");
  const UniqueFd sealed = client_memfd(8192, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
  EXPECT_EQ(refusal(sealed.get(), 8192), "accepted");
}

TEST(ClientMemfd, WrongSealsAreRefused) {
  EXPECT_EQ(refusal(client_memfd(4096, F_SEAL_SHRINK).get(), 4096),
            "registered memory: seals must contain F_SEAL_SHRINK and F_SEAL_GROW, they are 2");
  EXPECT_EQ(refusal(client_memfd(4096, F_SEAL_GROW).get(), 4096),
            "registered memory: seals must contain F_SEAL_SHRINK and F_SEAL_GROW, they are 4");
  // Made without MFD_ALLOW_SEALING: sealed SEAL only, so its owner can still truncate it.
  const UniqueFd unsealable(::memfd_create("client", MFD_CLOEXEC));
  ASSERT_EQ(::ftruncate(unsealable.get(), 4096), 0);
  EXPECT_EQ(refusal(unsealable.get(), 4096),
            "registered memory: seals must contain F_SEAL_SHRINK and F_SEAL_GROW, they are 1");
}

TEST(ClientMemfd, WrongLengthIsRefused) {
  const UniqueFd fd = client_memfd(8192, F_SEAL_SHRINK | F_SEAL_GROW);
  EXPECT_EQ(refusal(fd.get(), 4096),
            "registered memory: its length is 8192 bytes, declared are 4096");
  EXPECT_EQ(refusal(fd.get(), 16384),
            "registered memory: its length is 8192 bytes, declared are 16384");
  const UniqueFd empty = client_memfd(0, F_SEAL_SHRINK | F_SEAL_GROW);
  EXPECT_NE(refusal(empty.get(), 0), "accepted");
}

TEST(ClientMemfd, WhatIsNoMemfdIsRefused) {
  std::string path = ::testing::TempDir() + "skv_regular_XXXXXX";
  const UniqueFd regular(::mkstemp(path.data()));
  ASSERT_TRUE(regular.valid());
  ::unlink(path.c_str());
  ASSERT_EQ(::ftruncate(regular.get(), 4096), 0);
  EXPECT_NE(refusal(regular.get(), 4096), "accepted");
  const UniqueFd device(::open("/dev/null", O_RDWR | O_CLOEXEC));
  EXPECT_EQ(refusal(device.get(), 4096),
            "registered memory: the descriptor is not a memfd (it has no seals)");
  EXPECT_NE(refusal(-1, 4096), "accepted");
}

TEST(ClientMemfd, HugePagesAreRefused) {
  const UniqueFd fd(::memfd_create("huge", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB));
  if (!fd.valid()) GTEST_SKIP() << "this kernel has no huge page memfd";
  ASSERT_EQ(::ftruncate(fd.get(), 2 * 1024 * 1024), 0);
  ASSERT_EQ(::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
  EXPECT_EQ(refusal(fd.get(), 2 * 1024 * 1024),
            "registered memory: it is not on tmpfs (huge pages of hugetlbfs are not supported)");
}

}  // namespace
}  // namespace skv
