#include <fcntl.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cctype>
#include <utility>

#include "daemon/limits.h"
#include "daemon/verbs.h"
#include "ipc/channel.h"
#include "ipc/os_error.h"
#include "ipc/shared_memory.h"

namespace skv {
namespace {

// Client names go to logs and terminals.
std::string printable(std::string name) {
  std::replace_if(
      name.begin(), name.end(), [](unsigned char c) { return c < 0x20 || c >= 0x7F; }, '?');
  return name;
}

uint32_t open_sessions(const Core& core) {
  return static_cast<uint32_t>(std::count_if(
      core.sessions.begin(), core.sessions.end(),
      [](const auto& entry) { return entry.second->state != SessionState::kGreeting; }));
}

// The data thread writes from it without asking again.
void add_memory(Core& core, Session& session, MemoryId id, ClientMemory memory) {
  core.data.post(GrantMemory{session.id, id, memory.mapping, memory.mapping->data(), memory.bytes});
  session.memories[id] = std::move(memory);
}

// Staging of this session, as memory 0. Returns the client's descriptor.
Result<UniqueFd> make_staging(Core& core, Session& session) {
  const uint64_t bytes = core.config.session_staging_bytes;
  Result<UniqueFd> fd = create_shared_memory("skv-staging", bytes);
  if (!fd.ok()) {
    return fd.error();
  }
  Result<MappedMemory> mapped =
      MappedMemory::map(fd.value().get(), bytes, MappedMemory::Access::kReadWrite);
  if (!mapped.ok()) {
    return mapped.error();
  }
  add_memory(core, session, MemoryId{0},
             {std::make_shared<MappedMemory>(std::move(mapped).value()), bytes, true});
  return fd;
}

}  // namespace

void hello(Core& core, Session& session, const Hello& message, const ReplyPtr& reply) {
  if (session.state != SessionState::kGreeting) {
    reply->error({ErrorCode::kInvalidArgument, "hello was said already"});
    return;
  }
  const auto refuse = [&](const Error& error) {
    ++core.counters.sessions_refused;
    reply->error(error);
    core.close_connection(session, error.message);
  };
  if (message.version_min > kProtocolVersion || message.version_max < kProtocolVersion) {
    refuse({ErrorCode::kUnsupported,
            "the client speaks protocol versions " + std::to_string(message.version_min) + " to " +
                std::to_string(message.version_max) + ", this daemon speaks " +
                std::to_string(kProtocolVersion)});
    return;
  }
  if (message.client_name.size() > 64) {
    refuse({ErrorCode::kInvalidArgument, "client_name has " +
                                             std::to_string(message.client_name.size()) +
                                             " bytes, allowed are 64"});
    return;
  }
  const uint32_t open = open_sessions(core);
  if (open >= core.config.sessions_max) {
    refuse(limit_error("sessions.max", open, core.config.sessions_max));
    return;
  }
  const Result<Space*> space = core.space_of(session.connection->peer().uid);
  if (!space.ok()) {
    refuse(space.error());
    return;
  }
  Result<UniqueFd> staging = make_staging(core, session);
  UniqueFd arena(::fcntl(space.value()->arena_read_only_fd, F_DUPFD_CLOEXEC, 3));
  if (!staging.ok() || !arena.valid()) {
    refuse(staging.ok() ? os_error("duplicate the arena's descriptor") : staging.error());
    return;
  }

  session.state = SessionState::kOpen;
  session.space = space.value();
  session.name = printable(message.client_name);
  ++session.space->sessions;
  ++core.counters.sessions_total;
  spdlog::info("session {}: {} (pid {}, uid {})", raw(session.id),
               session.name.empty() ? "a client without a name" : session.name,
               session.connection->peer().pid, session.connection->peer().uid);

  HelloReply answer;
  answer.version = kProtocolVersion;
  answer.daemon_version = SKV_VERSION;
  answer.instance = core.instance;
  answer.boot_id = core.boot_id;
  answer.session = raw(session.id);
  answer.space = raw(session.space->id);
  answer.space_salt = session.space->salt;
  answer.device_kind = core.device_kind;
  answer.device_uuid = core.device_uuid;
  answer.staging_bytes = core.config.session_staging_bytes;
  answer.host_bytes = session.space->arena_bytes;
  answer.reply_deadline_ms = static_cast<uint32_t>(core.config.reply_deadline_ns / 1'000'000);
  std::vector<UniqueFd> fds;
  fds.push_back(std::move(staging).value());
  fds.push_back(std::move(arena));
  reply->ok(answer, std::move(fds));
}

void model_open(Core& core, Session& session, const ModelOpen& message, const ReplyPtr& reply) {
  Result<ModelDescriptor> descriptor =
      decode_model(message.descriptor.data(), message.descriptor.size());
  if (!descriptor.ok()) {
    reply->error(descriptor.error());
    return;
  }
  if (const Result<void> valid = validate(descriptor.value()); !valid.ok()) {
    reply->error(valid.error());
    return;
  }
  // The canonical encoding, whatever else decodes to the same.
  const std::vector<uint8_t> encoded = encode(descriptor.value());
  const std::shared_ptr<const Model> opened = core.intern(descriptor.value(), encoded);
  const auto answer = [&](ModelId id) {
    reply->ok(ModelOpenReply{raw(id), opened->fingerprint, opened->layout().chunk_count()});
  };
  for (const auto& [id, known] : session.models) {
    if (known == opened) {
      answer(id);
      return;
    }
  }
  if (session.models.size() >= kSessionModelsMax) {
    reply->error(limit_error("models", session.models.size(), kSessionModelsMax));
    return;
  }
  if (core.nvme != nullptr) {
    const Result<void> kept = core.nvme->remember_model(opened->fingerprint, encoded);
    if (!kept.ok()) {
      // The store then does not explain itself; bodies are found by fingerprint all the same.
      spdlog::warn("the NVMe store does not keep a model: {}", kept.error().message);
    }
  }
  const auto id = core.next_id<ModelId>();
  session.models.emplace(id, opened);
  answer(id);
}

void memory_register(Core& core,
                     Session& session,
                     MemoryRegisterRequest request,
                     const ReplyPtr& reply) {
  const uint64_t bytes = request.message.bytes;
  const Config& config = core.config;
  if (session.memories.size() > config.session_memories_max) {  // staging does not count
    reply->error(
        limit_error("sessions.memories", session.memories.size() - 1, config.session_memories_max));
    return;
  }
  if (bytes > config.session_memory_bytes - session.memory_bytes) {
    reply->error({ErrorCode::kTooLarge, "sessions.memory: " + std::to_string(session.memory_bytes) +
                                            " of " + std::to_string(config.session_memory_bytes) +
                                            " bytes in use, " + std::to_string(bytes) +
                                            " more asked for"});
    return;
  }
  if (const Result<void> safe = check_client_memfd(request.memory.get(), bytes); !safe.ok()) {
    reply->error(safe.error());
    return;
  }
  // A client may give a descriptor that only reads: enough for puts.
  bool writable = true;
  Result<MappedMemory> mapped =
      MappedMemory::map(request.memory.get(), bytes, MappedMemory::Access::kReadWrite);
  if (!mapped.ok()) {
    writable = false;
    mapped = MappedMemory::map(request.memory.get(), bytes, MappedMemory::Access::kReadOnly);
  }
  if (!mapped.ok()) {
    reply->error(mapped.error());
    return;
  }
  const auto id = core.next_id<MemoryId>();
  session.memory_bytes += bytes;
  add_memory(core, session, id,
             {std::make_shared<MappedMemory>(std::move(mapped).value()), bytes, writable});
  reply->ok(MemoryRegisterReply{raw(id)});
}

void memory_unregister(Core& core,
                       Session& session,
                       const MemoryUnregister& message,
                       const ReplyPtr& reply) {
  const ClientMemory* memory = memory_of(session, message.memory, reply);
  if (memory == nullptr) {
    return;
  }
  if (message.memory == 0) {
    reply->error({ErrorCode::kInvalidArgument, "memory 0 is the session's staging"});
    return;
  }
  session.memory_bytes -= memory->bytes;
  session.memories.erase(MemoryId{message.memory});
  core.data.post(RevokeMemory{session.id, MemoryId{message.memory}});
  reply->ok();
}

void channel_open(Core& core, Session& session, const ChannelOpen& message, const ReplyPtr& reply) {
  if (session.channels.size() >= core.config.session_channels_max) {
    reply->error(limit_error("sessions.channels", session.channels.size(),
                             core.config.session_channels_max));
    return;
  }
  if (message.argument_area_bytes == 0 || message.argument_area_bytes > kArgumentAreaBytesMax) {
    reply->error({ErrorCode::kTooLarge,
                  "argument_area_bytes is " + std::to_string(message.argument_area_bytes) +
                      ", allowed are 1 to " + std::to_string(kArgumentAreaBytesMax)});
    return;
  }
  const auto id = core.next_id<ChannelId>();
  session.channels.insert(id);
  core.channels_opening.emplace(id, reply);
  core.data.post(OpenChannel{session.id, id, message.argument_area_bytes});
}

void channel_close(Core& core,
                   Session& session,
                   const ChannelClose& message,
                   const ReplyPtr& reply) {
  const ChannelId id{message.channel};
  if (core.channels_opening.contains(id) || session.channels.erase(id) == 0) {
    reply->error({ErrorCode::kUnknownHandle,
                  "channel " + std::to_string(message.channel) + " is not one of this session"});
    return;
  }
  core.data.post(CloseChannel{session.id, id});
  reply->ok();
}

}  // namespace skv
