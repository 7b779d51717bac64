#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "daemon/connection.h"
#include "daemon/context.h"
#include "daemon/data/data_messages.h"
#include "daemon/model.h"
#include "daemon/placement.h"
#include "ipc/shared_memory.h"
#include "ipc/types/ids.h"
#include "ipc/types/result.h"

namespace skv {

// A sharing domain: one per uid. Lives as long as the daemon.
struct Space {
  SpaceId id{};
  uid_t uid = 0;
  Digest salt;
  int arena_read_only_fd = -1;  // the host store's
  uint64_t arena_bytes = 0;
  uint32_t sessions = 0;
};

// Memory that a client can write: nothing in it is trusted. Copies hold it by `mapping` until they
// are done, so unregistering is safe at any time.
struct ClientMemory {
  std::shared_ptr<MappedMemory> mapping;
  uint64_t bytes = 0;
  bool writable = false;  // by us: a load may write into it
};

// A sentence that this session is putting.
struct OpenPut {
  ContextId context{};
  std::vector<bool> layers;  // written, or being written by a copy that was posted
  uint32_t copies = 0;       // in flight
  bool in_parts = false;     // some write had less than a chunk: the data thread sums it
  bool committing = false;   // no more writes
  VectorsBlob vectors;       // of vectors_put before the commit
};

struct OpenedWindow {
  ContextId context{};
  bool open = false;  // the data thread has answered
  bool lost = false;  // its device is gone
};

// Chunk leases that are being collected for one request (gather.h).
struct Gather {
  std::vector<ChunkLease> leases;  // in the order asked for; valid where `came`
  std::vector<bool> came;
  size_t left = 0;
  Result<void> failure;  // the first
};

enum class SessionState : uint8_t {
  kGreeting = 0,  // no hello yet
  kOpen = 1,
  kClosing = 2,  // no more requests; the peer may still read what it leased
  kEnding = 3,   // the peer is gone; the data thread lets go of its memory
};

// One client connection and all that is charged to it. Every entry goes when the session ends
// (Sessions::finish), and the sums are checked to be zero.
//
// Thread  loop.
struct Session {
  SessionId id{};
  SessionState state = SessionState::kGreeting;
  std::unique_ptr<Connection> connection;
  Space* space = nullptr;
  std::string name;
  uint64_t opened_ns = 0;
  uint64_t requests_total = 0;
  uint32_t requests_in_flight = 0;
  uint64_t memory_bytes = 0;  // of `memories` without staging

  std::map<ModelId, std::shared_ptr<const Model>> models;
  std::map<ContextId, std::shared_ptr<Context>> contexts;
  std::map<MemoryId, ClientMemory> memories;  // [0] is the staging memory
  std::set<ChannelId> channels;
  std::map<WindowId, OpenedWindow> windows;
  std::map<LeaseId, std::vector<ChunkLease>> loans;
  std::unordered_map<SentenceUid, OpenPut> puts;
  std::set<std::shared_ptr<Gather>> gathers;
};

}  // namespace skv
