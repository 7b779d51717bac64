#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "client/model.h"
#include "ipc/identity/prefix_chain.h"
#include "ipc/messages.h"
#include "ipc/shared_directory.h"

namespace skv::client {

// The digests of a row of tokens, computed once, to be looked up in the space's shared directory as
// often as one likes: no message, no system call but a poll of the socket every few milliseconds.
//
// What it finds is a hint, of one moment; Context::match is the authority. After a restart of the
// daemon the next call connects again and maps the new directory; where the space has another salt
// then, the keys are made again from the digests.
//
// Thread  any.
class Keys : public Object {
 public:
  static constexpr HandleKind kKind = HandleKind::kKeys;

  explicit Keys(std::shared_ptr<Model> model);

  Result<void> append(std::span<const uint32_t> tokens, const Digest& extra);
  Result<MatchReply> match();

 private:
  void make_tags();

  const std::shared_ptr<Model> model_;
  std::mutex mutex_;
  PrefixChain chain_;
  std::vector<Digest> prefixes_;  // P_1, P_2, ...
  uint64_t serial_ = 0;           // of the connection whose salt is in `tags_`
  Digest salt_;
  std::vector<uint64_t> tags_;  // of the boundaries after 1, 2, ... blocks; may be behind prefixes_
  SharedDirectoryReader::Scratch scratch_;
};

}  // namespace skv::client
