#include "daemon/shared_directories.h"

#include <utility>

namespace skv {

Result<void> SharedDirectories::add_space(SpaceId space) {
  Result<std::unique_ptr<SharedDirectoryWriter>> made =
      SharedDirectoryWriter::create(bytes_max_ / sizeof(SharedDirectorySlot));
  if (!made.ok()) return made.error();
  spaces_[space] = std::move(made).value();
  return {};
}

const SharedDirectoryWriter* SharedDirectories::find(SpaceId space) const {
  const auto found = spaces_.find(space);
  return found == spaces_.end() ? nullptr : found->second.get();
}

SharedDirectories::Usage SharedDirectories::usage() const {
  Usage usage;
  for (const auto& [id, writer] : spaces_) {
    usage.bytes += writer->bytes();
    usage.incomplete += writer->incomplete() ? 1 : 0;
  }
  return usage;
}

void SharedDirectories::edges_changed(SpaceId space,
                                      const Digest& boundary_key,
                                      const BoundaryEdges& edges) {
  if (const auto found = spaces_.find(space); found != spaces_.end()) {
    found->second->set(boundary_key, edges);
  }
}

}  // namespace skv
