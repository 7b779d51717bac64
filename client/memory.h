#pragma once

#include <cstdint>
#include <memory>
#include <mutex>

#include "client/session.h"
#include "ipc/shared_memory.h"
#include "ipc/types/result.h"
#include "ipc/unique_fd.h"

namespace skv::client {

// Memory that the daemon copies from and into.
//
// Registered memory belongs to the client and outlives connections; staging memory comes from the
// daemon with one connection and dies with it.
//
// Thread  any; registering again happens under its mutex.
class Memory : public Object {
 public:
  static constexpr HandleKind kKind = HandleKind::kMemory;

  static Result<std::shared_ptr<Memory>> create(std::shared_ptr<Session> session, uint64_t bytes);
  static Result<std::shared_ptr<Memory>> adopt(std::shared_ptr<Session> session,
                                               int fd,
                                               uint64_t bytes);
  static std::shared_ptr<Memory> staging(std::shared_ptr<Session> session,
                                         const std::shared_ptr<Connection>& connection);

  explicit Memory(std::shared_ptr<Session> session);

  // Its id on that connection, registering it there if need be.
  Result<uint32_t> remote(Connection& connection, Deadline deadline);
  // Until the daemon has let go of it.
  Result<void> unregister(Deadline deadline);

  const std::shared_ptr<Session>& session() const { return session_; }
  const std::shared_ptr<MappedMemory>& mapped() const { return mapped_; }
  int fd() const { return fd_.get(); }

 private:
  Result<void> map_and_register(UniqueFd fd, uint64_t bytes);

  const std::shared_ptr<Session> session_;
  UniqueFd fd_;
  std::shared_ptr<MappedMemory> mapped_;
  uint64_t staging_serial_ = 0;  // staging: of its connection

  std::mutex mutex_;
  uint64_t serial_ = 0;  // of the connection that `id_` is valid on
  uint32_t id_ = 0;
};

}  // namespace skv::client
