#include "client/lease_map.h"

#include <string>

#include "client/abi.h"

namespace skv::client {

Result<std::shared_ptr<LeaseMap>> LeaseMap::open(const std::shared_ptr<Connection>& connection,
                                                 uint32_t context,
                                                 uint32_t chunk_count,
                                                 Deadline deadline) {
  std::vector<UniqueFd> fds;
  SKV_TRY(reply, connection->call<LeaseMapOpenReply>(Verb::kLeaseMapOpen, LeaseMapOpen{context},
                                                     deadline, {}, &fds));
  const auto attach = [&]() -> Result<LeaseMapReader> {
    if (fds.size() != 2) {
      return Error{ErrorCode::kProtocol, "lease_map_open brought " + std::to_string(fds.size()) +
                                             " descriptors instead of 2"};
    }
    for (const UniqueFd& fd : fds) {
      SKV_TRY(bytes, shared_memory_bytes(fd.get()));
      if (reply.bytes == 0 || bytes < reply.bytes) {
        return Error{ErrorCode::kProtocol, "the daemon announced a lease map of " +
                                               std::to_string(reply.bytes) + " bytes and passed " +
                                               std::to_string(bytes)};
      }
    }
    SKV_TRY(places, MappedMemory::map(fds[0].get(), reply.bytes, MappedMemory::Access::kReadOnly));
    SKV_TRY(words, MappedMemory::map(fds[1].get(), reply.bytes, MappedMemory::Access::kReadWrite));
    return LeaseMapReader::open(std::move(places), std::move(words), chunk_count);
  };
  Result<LeaseMapReader> reader = attach();
  if (!reader.ok()) {
    connection->post(Verb::kLeaseMapClose, LeaseMapClose{reply.map});
    return reader.error();
  }
  return std::make_shared<LeaseMap>(connection, reply.map, std::move(reader).value());
}

LeaseMap::~LeaseMap() {
  if (!connection_->alive() || !connection_->in_own_process()) return;
  connection_->post(Verb::kLeaseMapClose, LeaseMapClose{id_});
}

bool LeaseMap::take(const LeaseMapReader::Range& range, std::vector<uint64_t>& offsets) const {
  return connection_->in_own_process() && reader_.take(range, offsets);
}

void LeaseMap::give_back(const LeaseMapReader::Range& range) const {
  if (connection_->in_own_process()) reader_.give_back(range);
}

}  // namespace skv::client
