#include "daemon/data/put_table.h"

#include <algorithm>
#include <string>
#include <utility>

#include "daemon/data/copy_runner.h"
#include "ipc/types/check.h"

namespace skv {

bool PutTable::Put::whole() const {
  return !broken && sums.size() == place.extents.size() &&
         std::all_of(written.begin(), written.end(), [](uint8_t layer) { return layer != 0; });
}

// ---- grants -------------------------------------------------------------------------------------

void PutTable::grant(GrantMemory& grant) {
  sessions_[grant.session].memories[grant.memory] = {std::move(grant.hold), grant.data,
                                                     grant.bytes};
}

void PutTable::revoke(const RevokeMemory& revoke) {
  if (const auto found = sessions_.find(revoke.session); found != sessions_.end()) {
    found->second.memories.erase(revoke.memory);  // copies that run hold the mapping
  }
}

void PutTable::grant(GrantPuts& grant) {
  Session& session = sessions_[grant.session];
  for (GrantPuts::Sentence& sentence : grant.sentences) {
    const Name name{grant.context, sentence.index};
    session.by_name[name] = sentence.uid;
    // By another context with the same tokens: one put, two names.
    if (const auto known = session.puts.find(sentence.uid); known != session.puts.end()) {
      known->second.names.push_back(name);
      continue;
    }
    Put put;
    put.names = {name};
    put.space = grant.space;
    put.model = grant.model;
    put.place = std::move(sentence.place);
    put.written.assign(grant.model->layout.layer_count(), 0);
    session.puts.emplace(sentence.uid, std::move(put));
  }
}

void PutTable::revoke(const RevokePuts& revoke) {
  Session& session = sessions_[revoke.session];
  for (const SentenceUid uid : revoke.uids) {
    const auto found = session.puts.find(uid);
    SKV_CHECK(found != session.puts.end(), "a put that was granted is revoked once");
    found->second.revoked = true;
    forget(revoke.session, session, uid);
  }
}

void PutTable::forget(SessionId id, Session& session, SentenceUid uid) {
  const auto found = session.puts.find(uid);
  if (found == session.puts.end() || !found->second.revoked || found->second.copies > 0) return;
  for (const Name& name : found->second.names) {
    const auto at = session.by_name.find(name);
    if (at != session.by_name.end() && at->second == uid) session.by_name.erase(at);
  }
  session.puts.erase(found);
  hooks_.emit(PutRevoked{id, uid});
}

void PutTable::drop(SessionId session) {
  sessions_.erase(session);
  std::erase_if(copies_, [&](const auto& each) { return each.second.session == session; });
  std::erase_if(deriving_, [&](const auto& each) { return each.second.session == session; });
}

// ---- writes -------------------------------------------------------------------------------------

std::vector<SentenceUid> PutTable::open_puts(const Session& session, const PutWrite& message) {
  std::vector<SentenceUid> uids;
  const ContextId context{message.context};
  auto at = session.by_name.lower_bound({context, message.first_sentence});
  for (; at != session.by_name.end() && at->first.first == context &&
         at->first.second - message.first_sentence < message.sentence_count;
       ++at) {
    const Put& put = session.puts.at(at->second);
    if (!put.sealed && !put.revoked && !put.broken) uids.push_back(at->second);
  }
  return uids;
}

bool PutTable::knows(SessionId id, const PutWrite& message) const {
  const auto session = sessions_.find(id);
  if (session == sessions_.end() || message.sentence_count > kReserveSentencesMax ||
      !session->second.memories.contains(MemoryId{message.source.memory})) {
    return false;
  }
  const auto first =
      session->second.by_name.find({ContextId{message.context}, message.first_sentence});
  if (first == session->second.by_name.end() || message.sentence_count == 0) return false;
  const uint32_t layers = session->second.puts.at(first->second).model->layout.layer_count();
  return message.layer_count > 0 && message.first_layer < layers &&
         message.layer_count <= layers - message.first_layer;
}

void PutTable::write(SessionId id, const PutWrite& message, Done done) {
  Session& session = sessions_[id];
  const std::vector<SentenceUid> uids = open_puts(session, message);
  const auto memory = session.memories.find(MemoryId{message.source.memory});
  if (uids.empty() || memory == session.memories.end()) {  // unregistered meanwhile
    return done(uids.empty() ? Result<void>() : Error{ErrorCode::kUnknownHandle, "the memory"});
  }
  const Put& any = session.puts.at(uids.front());
  const BodyLayout& layout = any.model->layout;
  const LayerRange layers{message.first_layer, message.layer_count};
  const uint32_t first_chunk = layout.chunk_of(layers.first);
  const uint32_t end_chunk = layout.chunk_of(layers.end() - 1) + 1;
  for (const SentenceUid uid : uids) {
    const Put& put = session.puts.at(uid);
    if (Result<void> inside =
            check_view(message.source, memory->second.bytes, layout, layers, put.place.span);
        !inside.ok()) {
      return done(inside);
    }
  }
  CopyTask copy;
  for (const SentenceUid uid : uids) {
    Put& put = session.puts.at(uid);
    SentenceExtents part;
    part.span = put.place.span;
    part.uid = uid;
    part.extents.assign(put.place.extents.begin() + first_chunk,
                        put.place.extents.begin() + end_chunk);
    ++put.copies;
    std::fill_n(put.written.begin() + layers.first, layers.count, uint8_t{1});
    // Copies of one session run in their order, so a chunk is whole after the last of them, and
    // that one is asked for its checksum.
    for (uint32_t chunk = first_chunk; chunk < end_chunk; ++chunk) {
      const LayerRange of = layout.chunk_layers(chunk);
      if (std::all_of(put.written.begin() + of.first, put.written.begin() + of.end(),
                      [](uint8_t layer) { return layer != 0; })) {
        part.checksum_chunks.push_back(chunk);
      }
    }
    copy.sentences.push_back(std::move(part));
  }
  copy.task = TaskId{next_copy_++};
  copy.session = id;
  copy.space = any.space;
  copy.direction = CopyDirection::kPut;
  copy.model = any.model;
  copy.hold = memory->second.hold;
  copy.memory = memory->second.data;
  copy.memory_bytes = memory->second.bytes;
  copy.view = message.source;
  copy.layers = layers;
  copies_.emplace(raw(copy.task), Copy{id, uids, std::move(done)});
  hooks_.copy(std::move(copy));
}

bool PutTable::copied(TaskDone& done) {
  if (auto sealed = deriving_.extract(raw(done.task)); !sealed.empty()) {
    done.puts = std::move(sealed.mapped().puts);
  }
  if (raw(done.task) < kOwnTasks) return false;
  auto found = copies_.extract(raw(done.task));
  if (found.empty()) return true;  // of a session that was dropped
  Copy& copy = found.mapped();
  Session& session = sessions_.at(copy.session);
  for (const SentenceUid uid : copy.uids) {
    Put& put = session.puts.at(uid);
    --put.copies;
    put.broken |= !done.status.ok();
  }
  if (done.status.ok()) {
    for (const TaskDone::Sum& sum : done.sums) {
      Put& put = session.puts.at(copy.uids[sum.sentence]);
      const auto same = std::find_if(put.sums.begin(), put.sums.end(),
                                     [&](const auto& each) { return each.chunk == sum.chunk; });
      if (same != put.sums.end()) {
        same->sum = sum.sum;  // written again
      } else {
        put.sums.push_back({0, sum.chunk, sum.sum});
      }
    }
  }
  copy.done(done.status);
  for (const SentenceUid uid : copy.uids) forget(copy.session, session, uid);
  for (size_t i = 0; i < session.seals.size();) {
    const bool waits = std::any_of(session.seals[i].puts.begin(), session.seals[i].puts.end(),
                                   [&](const auto& each) {
                                     const auto put = session.puts.find(each.uid);
                                     return put != session.puts.end() && put->second.copies > 0;
                                   });
    if (waits) {
      ++i;
      continue;
    }
    SealPuts seal = std::move(session.seals[i]);
    session.seals.erase(session.seals.begin() + static_cast<std::ptrdiff_t>(i));
    answer(session, seal);
  }
  return true;
}

// ---- sealing ------------------------------------------------------------------------------------

void PutTable::seal(SealPuts& seal) {
  Session& session = sessions_[seal.session];
  bool waits = false;
  for (const SealPuts::Put& each : seal.puts) {
    const auto put = session.puts.find(each.uid);
    if (put == session.puts.end()) continue;
    put->second.sealed = true;
    waits |= put->second.copies > 0;
  }
  if (waits) {
    session.seals.push_back(std::move(seal));
  } else {
    answer(session, seal);
  }
}

// What is whole is sealed, and derived from if asked for; the rest stays open.
void PutTable::answer(Session& session, SealPuts& seal) {
  TaskDone done;
  done.task = seal.task;
  done.session = seal.session;
  DeriveTask derive;
  for (const SealPuts::Put& each : seal.puts) {
    TaskDone::Put state;
    const auto found = session.puts.find(each.uid);
    if (found != session.puts.end() && !found->second.revoked) {
      Put& put = found->second;
      put.sealed = put.whole();
      state.whole = put.sealed;
      if (state.whole) state.sums = put.sums;
      if (state.whole && each.derive) {
        derive.space = put.space;
        derive.model = put.model;
        derive.sentences.push_back({put.place.span, put.place.extents, {}});
      }
    }
    done.puts.push_back(std::move(state));
  }
  if (derive.sentences.empty()) return hooks_.emit(std::move(done));
  derive.task = seal.task;
  derive.session = seal.session;
  derive.index = seal.index;
  deriving_.emplace(raw(seal.task), Derivation{seal.session, std::move(done.puts)});
  hooks_.derive(std::move(derive));
}

}  // namespace skv
