#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <unordered_map>
#include <vector>

#include "daemon/data/data_messages.h"

namespace skv {

// What sessions may write without asking the loop: the sentences they have reserved and the
// memories they write from, as the loop granted them. Turns a put_write into a copy, and keeps what
// was written until the loop seals the put.
//
// A put is open until it is sealed or revoked; then no copy of it begins any more, and the answer
// is given when none runs. So the loop frees extents, and believes sums, only after the last write.
//
// Thread  data thread.
// Owns    bookkeeping only. Extents are leased by the loop until PutsRevoked (or SessionClosed).
class PutTable {
 public:
  struct Hooks {
    std::function<void(CopyTask)> copy;  // TaskDone with its task, by copied()
    std::function<void(DeriveTask)> derive;
    std::function<void(DataEvent)> emit;
  };
  using Done = std::function<void(const Result<void>& status)>;

  explicit PutTable(Hooks hooks) : hooks_(std::move(hooks)) {}

  void grant(GrantMemory& grant);
  void revoke(const RevokeMemory& revoke);
  void grant(GrantPuts& grant);
  void revoke(const RevokePuts& revoke);
  // Answers TaskDone, with what was written and vectors of what is whole.
  void seal(SealPuts& seal);
  void drop(SessionId session);  // its copies end without a word

  // Whether a write can be served here: all that it names was granted. What was not is the loop's
  // to explain.
  bool knows(SessionId session, const PutWrite& message) const;
  // Sentences of the range that are not granted are skipped. `done` runs from here or from
  // copied().
  void write(SessionId session, const PutWrite& message, Done done);

  // True: it was a copy of this table. Of a derivation for a seal it fills in the puts.
  bool copied(TaskDone& done);

 private:
  struct Memory {
    std::shared_ptr<void> hold;
    std::byte* data = nullptr;
    uint64_t bytes = 0;
  };
  using Name = std::pair<ContextId, uint32_t>;  // index of the sentence in the context
  struct Put {
    std::vector<Name> names;
    SpaceId space{};
    DataModelPtr model;
    SentenceExtents place;         // all chunks
    std::vector<uint8_t> written;  // by layer
    std::vector<TaskDone::Sum> sums;
    uint32_t copies = 0;   // that run
    bool broken = false;   // a copy failed: what it holds is not known
    bool sealed = false;   // no more writes
    bool revoked = false;  // goes when `copies` is 0

    bool whole() const;
  };
  struct Session {
    std::unordered_map<MemoryId, Memory> memories;
    std::unordered_map<SentenceUid, Put> puts;
    std::map<Name, SentenceUid> by_name;
    std::vector<SealPuts> seals;  // that wait for copies
  };
  struct Copy {
    SessionId session{};
    std::vector<SentenceUid> uids;
    Done done;
  };

  struct Derivation {
    SessionId session{};
    std::vector<TaskDone::Put> puts;
  };

  static std::vector<SentenceUid> open_puts(const Session& session, const PutWrite& message);
  void answer(Session& session, SealPuts& seal);
  void forget(SessionId id, Session& session, SentenceUid uid);

  Hooks hooks_;
  std::unordered_map<SessionId, Session> sessions_;
  std::unordered_map<uint64_t, Copy> copies_;
  std::unordered_map<uint64_t, Derivation> deriving_;  // by task
  uint64_t next_copy_ = kOwnTasks;
};

}  // namespace skv
