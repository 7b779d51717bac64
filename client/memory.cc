#include "client/memory.h"

#include <fcntl.h>

#include <array>
#include <utility>

#include "client/abi.h"
#include "ipc/layout/body_layout.h"
#include "ipc/os_error.h"

namespace skv::client {

Memory::Memory(std::shared_ptr<Session> session)
    : Object(session->owner), session_(std::move(session)) {}

Result<std::shared_ptr<Memory>> Memory::create(std::shared_ptr<Session> session, uint64_t bytes) {
  if (bytes == 0 || bytes > UINT64_MAX / 2) {
    return invalid("memory of " + std::to_string(bytes) + " bytes");
  }
  bytes = (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
  SKV_TRY(fd, create_shared_memory("skv-client", bytes));
  auto memory = std::make_shared<Memory>(std::move(session));
  SKV_CHECK_OK(memory->map_and_register(std::move(fd), bytes));
  return memory;
}

Result<std::shared_ptr<Memory>> Memory::adopt(std::shared_ptr<Session> session,
                                              int fd,
                                              uint64_t bytes) {
  SKV_CHECK_OK(check_client_memfd(fd, bytes));
  UniqueFd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 3));
  if (!copy.valid()) return os_error("dup of descriptor " + std::to_string(fd));
  auto memory = std::make_shared<Memory>(std::move(session));
  SKV_CHECK_OK(memory->map_and_register(std::move(copy), bytes));
  return memory;
}

std::shared_ptr<Memory> Memory::staging(std::shared_ptr<Session> session,
                                        const std::shared_ptr<Connection>& connection) {
  auto memory = std::make_shared<Memory>(std::move(session));
  memory->mapped_ = connection->staging();
  memory->fd_ = UniqueFd(::fcntl(connection->staging_fd(), F_DUPFD_CLOEXEC, 3));
  memory->staging_serial_ = connection->serial();
  return memory;
}

Result<void> Memory::map_and_register(UniqueFd fd, uint64_t bytes) {
  SKV_TRY(mapped, MappedMemory::map(fd.get(), bytes, MappedMemory::Access::kReadWrite));
  mapped_ = std::make_shared<MappedMemory>(std::move(mapped));
  fd_ = std::move(fd);
  const Deadline deadline = session_->call_deadline();
  SKV_TRY(connection, session_->connection(deadline));
  auto id = remote(*connection, deadline);
  if (!id.ok()) return id.error();
  return {};
}

Result<uint32_t> Memory::remote(Connection& connection, Deadline deadline) {
  if (staging_serial_ != 0) {
    if (staging_serial_ == connection.serial()) return 0U;
    return stale(
        "this staging memory belongs to an earlier connection: ask for it again, what was "
        "written to it is lost");
  }
  const std::lock_guard lock(mutex_);
  if (serial_ == connection.serial()) return id_;
  const std::array<int, 1> fds{fd_.get()};
  SKV_TRY(reply, connection.call<MemoryRegisterReply>(
                     Verb::kMemoryRegister, MemoryRegister{mapped_->bytes()}, deadline, fds));
  id_ = reply.memory;
  serial_ = connection.serial();
  return id_;
}

Result<void> Memory::unregister(Deadline deadline) {
  if (staging_serial_ != 0) return {};
  const std::lock_guard lock(mutex_);
  const std::shared_ptr<Connection> connection = session_->last_connection();
  if (!connection->alive() || serial_ != connection->serial()) return {};
  const Result<Empty> reply =
      connection->call<Empty>(Verb::kMemoryUnregister, MemoryUnregister{id_}, deadline);
  if (!reply.ok() && reply.error().code != ErrorCode::kDisconnected) return reply.error();
  serial_ = 0;
  return {};
}

}  // namespace skv::client
