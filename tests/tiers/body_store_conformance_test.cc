#include "tests/conformance/body_store_conformance.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <string>

#include "ipc/types/check.h"
#include "tests/tiers/simulated_disk.h"
#include "tests/tiers/temporary_file.h"
#include "tiers/host_body_store.h"
#include "tiers/host_store.h"
#include "tiers/nvme_store.h"

namespace skv {
namespace {

constexpr uint64_t kFileBytes = 14u << 20;  // the front, and ten segments of 1 MiB

NvmeStore::Options small_options() {
  NvmeStore::Options options;
  options.file_bytes = kFileBytes;
  options.segment_bytes = 1u << 20;
  options.transfers_max = 64;
  return options;
}

std::unique_ptr<NvmeStore> ready(Result<std::unique_ptr<NvmeStore>> opened) {
  SKV_CHECK(opened.ok(), opened.error().message.c_str());
  SKV_CHECK(opened.value()->space_salt(1000).ok(), "salt");
  return std::move(opened).value();
}

class HostHarness {
 public:
  HostHarness()
      : host_(HostStore::create({.budget_bytes = 8u << 20, .slab_bytes = 256u << 10}).value()),
        store_(make_host_body_store(*host_, 64)) {}
  BodyStore& store() { return *store_; }
  void flip_byte(std::span<const std::byte> content) {
    const std::span<std::byte> memory = host_->arena(SpaceId{1000}).value().memory;
    const auto at = std::search(memory.begin(), memory.end(), content.begin(), content.end());
    SKV_CHECK(at != memory.end(), "not there");
    at[static_cast<std::ptrdiff_t>(content.size() / 2)] ^= std::byte{4};
  }

 private:
  std::unique_ptr<HostStore> host_;
  std::unique_ptr<BodyStore> store_;
};

template <NvmeStore::Backend kBackend>
class FileHarness {
 public:
  FileHarness() { open(); }
  BodyStore& store() { return *store_; }
  void reopen() {
    store_.reset();
    open();
  }
  void flip_byte(std::span<const std::byte> content) {
    std::vector<std::byte> file(kFileBytes);
    const int fd = ::open(file_.path().c_str(), O_RDWR | O_CLOEXEC);
    SKV_CHECK(fd >= 0 && pread(fd, file.data(), file.size(), 0) == ssize_t{kFileBytes}, "read");
    const auto at = std::search(file.begin(), file.end(), content.begin(), content.end());
    SKV_CHECK(at != file.end(), "not there");
    const auto middle = at + static_cast<std::ptrdiff_t>(content.size() / 2);
    *middle ^= std::byte{4};
    SKV_CHECK(pwrite(fd, &*middle, 1, middle - file.begin()) == 1, "write");
    SKV_CHECK(fsync(fd) == 0, "fsync");
    close(fd);
  }

 private:
  void open() {
    NvmeStore::Options options = small_options();
    options.backend = kBackend;
    store_ = ready(NvmeStore::open(file_.path(), options));
  }

  TemporaryFile file_;
  std::unique_ptr<NvmeStore> store_;
};

// The thread pool's code, and faults below it: a simulated disk, from seed 1. A quarter of the
// requests is late, one in ten short or interrupted: none of that may show.
class SimulatedHarness {
 public:
  SimulatedHarness() : media_(std::make_shared<SimulatedMedia>(kFileBytes)) { open(); }
  BodyStore& store() { return *store_; }
  void reopen() {
    store_.reset();
    open();
  }
  void tear_next_write(uint64_t bytes) { disk_->tear_next_write(bytes); }
  void flip_byte(std::span<const std::byte> content) {
    const std::span<std::byte> view = media_->view();
    const auto at = std::search(view.begin(), view.end(), content.begin(), content.end());
    SKV_CHECK(at != view.end(), "not there");
    at[static_cast<std::ptrdiff_t>(content.size() / 2)] ^= std::byte{4};
  }

 private:
  void open() {
    auto disk = std::make_unique<SimulatedDisk>(media_, /*seed=*/1);
    disk->set_faults({.shorter = 100, .late = 250, .interrupted = 100, .full = 100});
    disk_ = disk.get();
    store_ = ready(NvmeStore::open(std::move(disk), small_options()));
  }

  std::shared_ptr<SimulatedMedia> media_;
  SimulatedDisk* disk_ = nullptr;
  std::unique_ptr<NvmeStore> store_;
};

using UringHarness = FileHarness<NvmeStore::Backend::kAuto>;
using ThreadsHarness = FileHarness<NvmeStore::Backend::kThreads>;

INSTANTIATE_TYPED_TEST_SUITE_P(Host, BodyStoreConformance, HostHarness);
INSTANTIATE_TYPED_TEST_SUITE_P(NvmeUring, BodyStoreConformance, UringHarness);
INSTANTIATE_TYPED_TEST_SUITE_P(NvmeUring, DurableBodyStoreConformance, UringHarness);
INSTANTIATE_TYPED_TEST_SUITE_P(NvmeThreads, BodyStoreConformance, ThreadsHarness);
INSTANTIATE_TYPED_TEST_SUITE_P(NvmeThreads, DurableBodyStoreConformance, ThreadsHarness);
INSTANTIATE_TYPED_TEST_SUITE_P(NvmeSimulated, BodyStoreConformance, SimulatedHarness);
INSTANTIATE_TYPED_TEST_SUITE_P(NvmeSimulated, DurableBodyStoreConformance, SimulatedHarness);
INSTANTIATE_TYPED_TEST_SUITE_P(NvmeSimulated, TornBodyStoreConformance, SimulatedHarness);

}  // namespace
}  // namespace skv
