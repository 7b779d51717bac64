#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "ipc/doorbell.h"
#include "ipc/layout/channel.h"
#include "ipc/ring.h"
#include "ipc/shared_memory.h"
#include "ipc/types/result.h"
#include "ipc/unique_fd.h"

namespace skv {

inline constexpr uint64_t kArgumentAreaBytesMax = 256ULL * 1024 * 1024;

// What the reply to channel_open carries, in the order of its descriptors.
struct ChannelParts {
  UniqueFd memory;           // [0]
  UniqueFd daemon_doorbell;  // [1] the client rings
  UniqueFd client_doorbell;  // [2] the client sleeps on
  uint64_t bytes = 0;
  uint64_t argument_area_offset = 0;
};

// The daemon's side of the rings of one client thread (ipc/layout/channel.h). Everything in the
// memory is the client's word: indices are checked, entries and arguments are copied before they
// are looked at, and the geometry is this object's own.
//
// Thread  the data thread that serves it. create() anywhere.
// Owns    the mapping and its ends of the doorbells (3 descriptors).
// Errors  kProtocol: the client broke a rule of the ring; close its session.
class DaemonChannel {
 public:
  // `argument_area_bytes` is rounded up to whole pages; 1 to kArgumentAreaBytesMax. `parts` gets
  // what the client is to be sent.
  static Result<DaemonChannel> create(uint64_t argument_area_bytes, ChannelParts& parts);

  // The next submission, as a private copy; nullopt: none, or no room for one more completion
  // (entries in flight and completions the client has not taken fill the ring). Every entry taken
  // is answered by exactly one complete().
  Result<std::optional<SubmissionEntry>> next();

  // Publishes a completion and wakes the client if it sleeps.
  Result<void> complete(const CompletionEntry& completion);

  // What an entry that next() gave refers to: [offset, + bytes) of its argument, as a private copy.
  // kInvalidArgument: it is not inside the argument area (an error of this request, not of the
  // channel). The client may write while this copies: what comes out is then garbage, and nobody's
  // but the client's. Requires: `to` has room for exactly as many bytes as are asked for.
  Result<void> check_argument(const SubmissionEntry& entry) const;
  void copy_argument(const SubmissionEntry& entry, uint32_t offset, std::span<std::byte> to) const;
  // Over an entry's argument, before its complete(). Requires: check_argument(entry) was ok, and
  // `from` fits argument_bytes or reply_bytes_max.
  void write_argument(const SubmissionEntry& entry, std::span<const std::byte> from);

  uint32_t in_flight() const { return in_flight_; }

  // Something can be taken. Looks at the memory only, for a waiter that does not sleep yet.
  bool ready();
  // Sleeping: poll doorbell_fd() only if prepare_sleep() said true; awake() afterwards either way.
  // Watched for edges (EPOLLET) the doorbell need never be read; a level-triggered poll drains it.
  int doorbell_fd() const { return daemon_doorbell_.get(); }
  Result<bool> prepare_sleep();
  void awake();
  void drain() { drain_doorbell(daemon_doorbell_.get()); }

 private:
  DaemonChannel() = default;
  ChannelHeader& header() const;

  MappedMemory memory_;
  uint64_t argument_area_bytes_ = 0;
  UniqueFd daemon_doorbell_;
  PipeDoorbell client_doorbell_;
  RingConsumer<SubmissionEntry> submissions_;
  RingProducer<CompletionEntry> completions_;
  uint32_t in_flight_ = 0;
};

enum class ChannelWait : uint8_t {
  kReady,  // a completion is there
  kTimeout,
  kSocket,  // the control socket has something to say: a reply, an event, or its end
};

// The client's side. Trusts the daemon's geometry no further than the size of the memory.
//
// Thread  the one client thread it was opened for.
// Owns    the mapping and its ends of the doorbells.
class ClientChannel {
 public:
  static Result<ClientChannel> attach(ChannelParts parts);

  // Where arguments are written before submit() and answers are read: a place may be reused when
  // its completion is there.
  std::span<std::byte> argument_area() const;

  // False: kChannelEntries submissions are in flight; take completions first.
  Result<bool> submit(const SubmissionEntry& entry);
  Result<std::optional<CompletionEntry>> next_completion();
  uint32_t in_flight() const { return in_flight_; }

  // Until a completion is there. Looks for `spin` without sleeping first (0 where cores are
  // scarce). `socket`: the control socket, or -1.
  Result<ChannelWait> wait(std::chrono::nanoseconds timeout,
                           int socket,
                           std::chrono::nanoseconds spin = {});

  int doorbell_fd() const { return client_doorbell_.get(); }

 private:
  ClientChannel() = default;
  ChannelHeader& header() const;

  MappedMemory memory_;
  uint64_t argument_area_offset_ = 0;
  UniqueFd daemon_doorbell_;
  UniqueFd client_doorbell_;
  RingProducer<SubmissionEntry> submissions_;
  RingConsumer<CompletionEntry> completions_;
  uint32_t in_flight_ = 0;
};

}  // namespace skv
