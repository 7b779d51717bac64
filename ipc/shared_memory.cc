#include "ipc/shared_memory.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <boost/interprocess/mapped_region.hpp>
#include <exception>
#include <limits>
#include <utility>

#include "ipc/os_error.h"

namespace skv {
namespace {

namespace bip = boost::interprocess;

#ifndef MFD_NOEXEC_SEAL
constexpr unsigned kMfdNoExecSeal = 0x0008U;  // Linux 6.3; the headers of Debian 12 lack it
#else
constexpr unsigned kMfdNoExecSeal = MFD_NOEXEC_SEAL;
#endif

// What mapped_region wants instead of a descriptor.
class MappableFd {
 public:
  MappableFd(int fd, bip::mode_t mode) : handle_{fd, false}, mode_(mode) {}
  bip::mapping_handle_t get_mapping_handle() const { return handle_; }
  bip::mode_t get_mode() const { return mode_; }

 private:
  bip::mapping_handle_t handle_;
  bip::mode_t mode_;
};

}  // namespace

Result<UniqueFd> create_shared_memory(const std::string& name, uint64_t bytes) {
  if (bytes == 0 || bytes > static_cast<uint64_t>(std::numeric_limits<off_t>::max())) {
    return Error{ErrorCode::kInvalidArgument,
                 "shared memory '" + name + "' of " + std::to_string(bytes) + " bytes"};
  }
  const unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
  UniqueFd fd(::memfd_create(name.c_str(), flags | kMfdNoExecSeal));
  if (!fd.valid() && errno == EINVAL) fd.reset(::memfd_create(name.c_str(), flags));
  if (!fd.valid()) return os_error("memfd_create '" + name + "'");
  if (::fchmod(fd.get(), 0600) != 0) return os_error("fchmod of memfd '" + name + "'");
  if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) {
    return os_error("ftruncate of memfd '" + name + "' to " + std::to_string(bytes) + " bytes");
  }
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) != 0) {
    return os_error("F_ADD_SEALS on memfd '" + name + "'");
  }
  return fd;
}

Result<UniqueFd> reopen_read_only(int fd) {
  const std::string path = "/proc/self/fd/" + std::to_string(fd);
  UniqueFd reopened(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!reopened.valid()) return os_error("open " + path + " read-only");
  return reopened;
}

Result<uint64_t> shared_memory_bytes(int fd) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) return os_error("fstat of shared memory");
  return static_cast<uint64_t>(status.st_size);
}

Result<void> punch_hole(int fd, uint64_t offset, uint64_t bytes) {
  if (::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                  static_cast<off_t>(bytes)) != 0) {
    return os_error("punch hole of " + std::to_string(bytes) + " bytes at " +
                    std::to_string(offset));
  }
  return {};
}

Result<void> check_client_memfd(int fd, uint64_t bytes) {
  const auto refuse = [](std::string why) {
    return Error{ErrorCode::kInvalidArgument, "registered memory: " + std::move(why)};
  };
  // Seals first: the calls after it could block on a file system of the client's making.
  const int seals = ::fcntl(fd, F_GET_SEALS);
  if (seals < 0) return refuse("the descriptor is not a memfd (it has no seals)");
  struct statfs system {};
  if (::fstatfs(fd, &system) != 0) return os_error("fstatfs of registered memory");
  if (system.f_type != TMPFS_MAGIC) {
    return refuse("it is not on tmpfs (huge pages of hugetlbfs are not supported)");
  }
  constexpr int kNeeded = F_SEAL_SHRINK | F_SEAL_GROW;
  if ((seals & kNeeded) != kNeeded) {
    return refuse("seals must contain F_SEAL_SHRINK and F_SEAL_GROW, they are " +
                  std::to_string(seals));
  }
  Result<uint64_t> length = shared_memory_bytes(fd);
  if (!length.ok()) return length.error();
  if (length.value() != bytes || bytes == 0) {
    return refuse("its length is " + std::to_string(length.value()) + " bytes, declared are " +
                  std::to_string(bytes));
  }
  return {};
}

namespace {

// Addresses for a mapping, held until it is there. None for one smaller than a huge page, or where
// there is no room.
class AlignedPlace {
 public:
  explicit AlignedPlace(uint64_t bytes) {
    if (bytes < kHugePageBytes) return;
    bytes_ = (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
    void* const all = ::mmap(nullptr, bytes_ + kHugePageBytes, PROT_NONE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED) return;
    auto* const begin = static_cast<std::byte*>(all);
    const uint64_t before =
        (kHugePageBytes - reinterpret_cast<uintptr_t>(begin) % kHugePageBytes) % kHugePageBytes;
    at_ = begin + before;
    if (before != 0) ::munmap(begin, before);
    ::munmap(at_ + bytes_, kHugePageBytes - before);
  }
  ~AlignedPlace() {
    if (at_ != nullptr && !is_taken_) ::munmap(at_, bytes_);
  }
  AlignedPlace(const AlignedPlace&) = delete;
  AlignedPlace& operator=(const AlignedPlace&) = delete;

  std::byte* at() const { return at_; }
  void taken() { is_taken_ = true; }  // by a mapping, which unmaps them

 private:
  static constexpr uint64_t kPageBytes = 4096;
  uint64_t bytes_ = 0;
  std::byte* at_ = nullptr;
  bool is_taken_ = false;
};

}  // namespace

MappedMemory::MappedMemory() = default;
MappedMemory::~MappedMemory() = default;
MappedMemory::MappedMemory(MappedMemory&& other) noexcept
    : region_(std::move(other.region_)),
      data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}
MappedMemory& MappedMemory::operator=(MappedMemory&& other) noexcept {
  region_ = std::move(other.region_);
  data_ = std::exchange(other.data_, nullptr);
  bytes_ = std::exchange(other.bytes_, 0);
  return *this;
}

Result<MappedMemory> MappedMemory::map(int fd, uint64_t bytes, Access access) {
  // mapped_region takes 0 for "all of the file".
  if (bytes == 0 || bytes > std::numeric_limits<size_t>::max()) {
    return Error{ErrorCode::kInvalidArgument, "cannot map " + std::to_string(bytes) + " bytes"};
  }
  Result<uint64_t> length = shared_memory_bytes(fd);
  if (!length.ok()) return length.error();
  if (length.value() < bytes) {
    return Error{ErrorCode::kInvalidArgument, "cannot map " + std::to_string(bytes) +
                                                  " bytes of a memory of " +
                                                  std::to_string(length.value())};
  }
  const bip::mode_t mode = access == Access::kReadOnly ? bip::read_only : bip::read_write;
  MappedMemory mapped;
  AlignedPlace place(bytes);
  try {
    mapped.region_ = std::make_unique<bip::mapped_region>(
        MappableFd(fd, mode), mode, bip::offset_t{0}, static_cast<size_t>(bytes), place.at(),
        place.at() == nullptr ? bip::default_map_options : MAP_FIXED);
    place.taken();
  } catch (const std::exception& failure) {
    return Error{ErrorCode::kIo,
                 "map " + std::to_string(bytes) + " bytes of shared memory: " + failure.what()};
  }
  mapped.data_ = static_cast<std::byte*>(mapped.region_->get_address());
  mapped.bytes_ = bytes;
  return mapped;
}

}  // namespace skv
