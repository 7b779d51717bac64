#include "tests/tiers/simulated_disk.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "ipc/types/check.h"

namespace skv {
namespace {

constexpr uint64_t kSector = 512;

std::vector<std::byte> gather(const DiskRequest& request, uint64_t bytes) {
  std::vector<std::byte> data;
  for (const iovec& part : request.buffers) {
    const uint64_t take = std::min<uint64_t>(part.iov_len, bytes - data.size());
    const auto* const from = static_cast<const std::byte*>(part.iov_base);
    data.insert(data.end(), from, from + take);
  }
  return data;
}

uint64_t total(const DiskRequest& request) {
  uint64_t bytes = 0;
  for (const iovec& part : request.buffers) {
    SKV_CHECK(part.iov_len % 4096 == 0 && reinterpret_cast<uintptr_t>(part.iov_base) % 4096 == 0,
              "O_DIRECT would refuse this buffer");
    bytes += part.iov_len;
  }
  SKV_CHECK(request.offset % 4096 == 0, "O_DIRECT would refuse this offset");
  return bytes;
}

}  // namespace

void SimulatedMedia::write(uint64_t offset, std::span<const std::byte> bytes) {
  if (bytes.empty()) {
    return;
  }
  const auto at = view_.begin() + static_cast<std::ptrdiff_t>(offset);
  unsynced_.push_back({offset, {at, at + static_cast<std::ptrdiff_t>(bytes.size())}});
  std::copy(bytes.begin(), bytes.end(), at);
}

void SimulatedMedia::power_cut(std::mt19937_64& random) {
  for (auto write = unsynced_.rbegin(); write != unsynced_.rend(); ++write) {
    for (uint64_t at = 0; at < write->before.size(); at += kSector) {
      if (random() % 2 == 0) {
        const uint64_t bytes = std::min<uint64_t>(kSector, write->before.size() - at);
        std::memcpy(view_.data() + write->offset + at, write->before.data() + at, bytes);
      }
    }
  }
  unsynced_.clear();
}

bool SimulatedDisk::submit(DiskRequest& request) {
  // Of an empty queue it would be a lie, and nothing would ever come back from wait().
  if (!waiting_.empty() && chance(faults_.full)) {
    return false;
  }
  const uint32_t polls = chance(faults_.late) ? 1 + static_cast<uint32_t>(random_() % 20) : 0;
  waiting_.push_back({&request, polls});
  return true;
}

void SimulatedDisk::wait(bool block, std::vector<DiskRequest*>& completed) {
  const size_t before = completed.size();
  do {
    std::deque<Waiting> still;
    for (Waiting& waiting : waiting_) {
      if (waiting.polls > 0) {
        --waiting.polls;
        still.push_back(waiting);
      } else {
        waiting.request->result = run(*waiting.request);
        completed.push_back(waiting.request);
      }
    }
    waiting_.swap(still);
  } while (block && completed.size() == before && !waiting_.empty());
}

int64_t SimulatedDisk::run(DiskRequest& request) {
  if (dead_) {
    return -EIO;
  }
  if (chance(faults_.interrupted)) {
    return random_() % 2 == 0 ? -EINTR : -EAGAIN;
  }
  if (request.kind == DiskRequest::Kind::kSync) {
    if (chance(faults_.sync_error)) {
      return -EIO;
    }
    media_->sync();
    return 0;
  }
  uint64_t asked = total(request);
  if (request.offset + asked > media_->bytes()) {
    return -EINVAL;
  }
  if (chance(faults_.shorter)) {
    asked = random_() % asked / kSector * kSector;
  }
  if (request.kind == DiskRequest::Kind::kWrite) {
    return run_write(request, asked);
  }
  if (chance(faults_.read_error)) {
    return -EIO;
  }
  uint64_t done = 0;
  for (const iovec& part : request.buffers) {
    const uint64_t take = std::min<uint64_t>(part.iov_len, asked - done);
    std::memcpy(part.iov_base, media_->view().data() + request.offset + done, take);
    done += take;
  }
  if (done > 0 && chance(faults_.read_flip)) {
    static_cast<std::byte*>(
        request.buffers[0]
            .iov_base)[random_() % std::min<uint64_t>(done, request.buffers[0].iov_len)] ^=
        std::byte{0x10};
  }
  return static_cast<int64_t>(done);
}

int64_t SimulatedDisk::run_write(const DiskRequest& request, uint64_t asked) {
  ++writes_seen_;
  std::vector<std::byte> data = gather(request, asked);
  if (tear_ >= 0) {
    if (tear_skip_ > 0) {
      --tear_skip_;
    } else {
      data.resize(std::min<uint64_t>(data.size(), static_cast<uint64_t>(tear_)));
      media_->write(request.offset, data);
      tear_ = -1;
      return -EIO;
    }
  }
  if (chance(faults_.write_error)) {
    data.resize(data.empty() ? 0 : random_() % data.size() / kSector * kSector);
    media_->write(request.offset, data);
    return -EIO;
  }
  if (chance(faults_.lost_write)) {
    return static_cast<int64_t>(asked);
  }
  if (!data.empty() && chance(faults_.media_flip)) {
    data[random_() % data.size()] ^= std::byte{0x08};
  }
  media_->write(request.offset, data);
  return static_cast<int64_t>(asked);
}

Result<void> SimulatedDisk::read_now(uint64_t offset, std::span<std::byte> bytes) {
  if (dead_ || offset + bytes.size() > media_->bytes()) {
    return Error{ErrorCode::kIo, "simulated read error"};
  }
  std::memcpy(bytes.data(), media_->view().data() + offset, bytes.size());
  return {};
}

Result<void> SimulatedDisk::write_now(uint64_t offset, std::span<const std::byte> bytes) {
  if (dead_ || offset + bytes.size() > media_->bytes()) {
    return Error{ErrorCode::kIo, "simulated write error"};
  }
  media_->write(offset, bytes);
  return {};
}

Result<void> SimulatedDisk::sync_now() {
  if (dead_) {
    return Error{ErrorCode::kIo, "simulated sync error"};
  }
  media_->sync();
  return {};
}

}  // namespace skv
