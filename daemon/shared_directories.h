#pragma once

#include <cstdint>
#include <map>
#include <memory>

#include "daemon/directory.h"
#include "ipc/shared_directory.h"
#include "ipc/types/ids.h"
#include "ipc/types/result.h"

namespace skv {

// One shared directory per space, kept as the Directory is: what clients look up without asking.
//
// Thread  loop.
// Owns    the shared memories. A space's is never another's.
class SharedDirectories final : public Directory::EdgeMirror {
 public:
  // `bytes_max`: of the memory of one space.
  explicit SharedDirectories(uint64_t bytes_max) : bytes_max_(bytes_max) {}

  // Before the space has sentences.
  Result<void> add_space(SpaceId space);
  // Null: the space has none.
  const SharedDirectoryWriter* find(SpaceId space) const;

  struct Usage {
    uint64_t bytes = 0;       // of all spaces
    uint32_t incomplete = 0;  // spaces of which some boundaries found no place
  };
  Usage usage() const;

  void edges_changed(SpaceId space,
                     const Digest& boundary_key,
                     const BoundaryEdges& edges) override;

 private:
  const uint64_t bytes_max_;
  std::map<SpaceId, std::unique_ptr<SharedDirectoryWriter>> spaces_;
};

}  // namespace skv
