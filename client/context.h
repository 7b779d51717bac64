#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "client/lease_map.h"
#include "client/model.h"
#include "client/session.h"
#include "ipc/messages.h"
#include "ipc/types/result.h"

namespace skv::client {

// A context and the record from which it can be opened again: tokens, extras and ends as they were
// appended, and the sentences that the engine was told.
//
// After a reconnection the record is replayed, and stored boundaries are adopted again if the
// context had adopted or stored any. If its sentences then differ from what the engine knows, every
// use of a sentence index is kStale until the engine has looked (acknowledge).
//
// Thread  any; calls on one context are served one after another (mutex), also while one waits for
//         the daemon.
class Context : public Object {
 public:
  static constexpr HandleKind kKind = HandleKind::kContext;

  static Result<std::shared_ptr<Context>> open(std::shared_ptr<Model> model, IndexDescriptor index);
  Context(std::shared_ptr<Model> model, IndexDescriptor index);

  struct Append {
    uint32_t first_position = 0;
    std::span<const uint32_t> tokens;
    std::span<const uint32_t> ends;
    uint32_t ends_final_to = 0;
    Digest extra;
  };
  Result<skv_append_result> append(const Append& append);
  Result<MatchReply> match(bool adopt);
  Result<void> close();

  // Of requests that name sentences by index: `message(id)` makes the body.
  template <typename Reply, typename MakeMessage>
  Result<Reply> call(Verb verb, Deadline deadline, MakeMessage&& make) {
    Result<Session::Done> done = perform(verb, deadline, std::forward<MakeMessage>(make));
    if (!done.ok()) return done.error();
    return done.value().connection->template reply<Reply>(done.value().operation);
  }
  template <typename MakeMessage>
  Result<Session::Done> perform(Verb verb, Deadline deadline, MakeMessage&& make) {
    Result<Session::Done> begun = begin(verb, deadline, std::forward<MakeMessage>(make));
    if (!begun.ok()) return begun.error();
    const Session::Done& done = begun.value();
    if (Result<void> waited = done.connection->wait(done.operation, deadline); !waited.ok()) {
      done.connection->abandon(done.operation);
      return waited.error();
    }
    return begun;
  }
  // Only sends. The context is free for others while the caller waits.
  // `make(connection, id)` gives Result<Message>.
  template <typename MakeMessage>
  Result<Session::Done> begin(Verb verb, Deadline deadline, MakeMessage&& make) {
    const std::lock_guard lock(mutex_);
    return session()->begin(deadline, [&](Connection& connection) -> Result<OperationPtr> {
      Result<uint32_t> id = remote(connection, deadline);
      if (!id.ok()) return id.error();
      if (Result<void> known = check_known(); !known.ok()) return known.error();
      auto message = make(connection, id.value());
      if (!message.ok()) return message.error();
      return connection.submit(verb, message.value(), deadline);
    });
  }
  void note_stored();  // a put was committed: boundaries may have to be adopted after a restart

  struct Known {
    uint32_t token_count, sentence_count, closed_blocks, changes;
  };
  Known acknowledge();
  std::vector<uint32_t> sentences(uint32_t first, uint32_t count_max);

  // For leases without a message on these sentences. Opens the map with the first use on a
  // connection. Null where the daemon has to be asked: it knows nothing of the context yet, gives
  // no map, or is gone; and where a request has something to say (sentences that are not closed).
  struct InPlace {
    std::shared_ptr<LeaseMap> map;
    std::vector<uint32_t> blocks;  // of each sentence
  };
  InPlace in_place(uint32_t first, uint32_t count, Deadline deadline);

  const std::shared_ptr<Model>& model() const { return model_; }
  const std::shared_ptr<Session>& session() const { return model_->session(); }
  const IndexDescriptor& index() const { return index_; }
  bool closed() const { return closed_; }

 private:
  // Consecutive tokens with the same extra.
  struct Run {
    uint32_t first = 0;
    uint32_t count = 0;
    Digest extra;
  };

  Result<uint32_t> remote(Connection& connection, Deadline deadline);
  Result<void> replay(Connection& connection, Deadline deadline);
  Result<void> settle(Deadline deadline);
  Result<void> check_known() const;
  Result<void> append_piece(const ContextAppend& piece, Deadline deadline);
  void record(const ContextAppend& piece);
  static Result<void> take_closed(const ContextAppendReply& reply, std::vector<uint32_t>& blocks);
  uint32_t closed_blocks() const;

  const std::shared_ptr<Model> model_;
  const IndexDescriptor index_;
  std::atomic<bool> closed_{false};

  std::mutex mutex_;
  uint64_t serial_ = 0;  // of the connection that `id_` is valid on
  uint32_t id_ = 0;
  std::vector<uint32_t> tokens_;
  std::vector<Run> runs_;
  std::vector<uint32_t> ends_;
  uint32_t ends_final_to_ = 0;
  std::vector<uint32_t> blocks_;  // of the closed sentences
  bool adopted_ = false;
  std::atomic<bool> stored_{false};
  uint32_t changes_ = 0;
  bool unacknowledged_ = false;
  // An append whose answer did not come in time: it is settled before anything else is asked.
  struct Unsettled {
    Session::Done done;
    ContextAppend piece;
  };
  std::optional<Unsettled> unsettled_;
  std::shared_ptr<LeaseMap> lease_map_;
  uint64_t lease_map_serial_ = 0;  // of the connection that was asked for it
};

}  // namespace skv::client
