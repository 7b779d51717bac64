// skv.h: context, match, put, vectors, drop.
#include <algorithm>

#include "client/abi_handles.h"
#include "client/context.h"
#include "client/keys.h"
#include "client/memory.h"
#include "client/requests.h"

using namespace skv::client;  // NOLINT: this file is the border of that namespace
using skv::Result;
using skv::Verb;

namespace {

// Verbs over a range of sentences that answer one outcome each. Ranges longer than a message go in
// several.
template <typename Message>
Result<void> for_sentences(skv_context context,
                           Verb verb,
                           Message message,
                           uint32_t first,
                           uint32_t count,
                           uint8_t* outcomes) {
  SKV_TRY(found, find<Context>(context));
  const Deadline deadline = found->session()->call_deadline();
  for (uint32_t done = 0; done < count;) {
    const uint32_t step = std::min(count - done, skv::kReserveSentencesMax);
    message.first_sentence = first + done;
    message.sentence_count = step;
    SKV_TRY(reply, (found->call<skv::PutOutcomes>(verb, deadline,
                                                  [&](Connection&, uint32_t id) -> Result<Message> {
                                                    message.context = id;
                                                    return message;
                                                  })));
    SKV_CHECK_OK(copy_outcomes(reply, step, outcomes == nullptr ? nullptr : outcomes + done));
    if (verb == Verb::kPutCommit) found->note_stored();
    done += step;
  }
  return {};
}

skv_match_result match_result(const skv::MatchReply& reply) {
  skv_match_result out{};
  out.outcome = reply.outcome;
  out.hit_tokens = reply.hit_tokens;
  out.pending_tokens = reply.pending_tokens;
  out.host_tokens = reply.host_tokens;
  out.nvme_tokens = reply.nvme_tokens;
  return out;
}

}  // namespace

int skv_context_open(skv_model model, const skv_context_options* options, skv_context* context) {
  return guarded([&]() -> Result<void> {
    skv_context_options from{};
    if (options != nullptr) {
      SKV_TRY(read, read_struct(options, "skv_context_options"));
      from = read;
    }
    if (!skv::is_index_kind(from.index_kind)) {
      return invalid("skv_context_options::index_kind is " + std::to_string(from.index_kind) +
                     ", allowed are 0 to " +
                     std::to_string(static_cast<uint32_t>(skv::kIndexKindLast)));
    }
    if (from.run_tokens > UINT8_MAX) {
      return invalid("skv_context_options::run_tokens is " + std::to_string(from.run_tokens));
    }
    skv::IndexDescriptor index;
    index.kind = static_cast<skv::IndexKind>(from.index_kind);
    if (from.run_tokens != 0) index.run_tokens = static_cast<uint8_t>(from.run_tokens);
    SKV_TRY(found, find<Model>(model));
    return open_into<Context>(context, [&] { return Context::open(found, index); });
  });
}

int skv_context_close(skv_context context) {
  return guarded([&]() -> Result<void> {
    SKV_TRY(taken, take<Context>(context));
    return taken->close();
  });
}

int skv_context_append(skv_context context,
                       const skv_append_options* options,
                       skv_append_result* result) {
  return guarded([&]() -> Result<void> {
    if (result != nullptr) SKV_CHECK_OK(check_out_struct(result, "skv_append_result"));
    SKV_TRY(from, read_struct(options, "skv_append_options"));
    if (from.token_count > 0 && from.tokens == nullptr) return invalid("tokens is NULL");
    if (from.end_count > 0 && from.ends == nullptr) return invalid("ends is NULL");
    SKV_TRY(found, find<Context>(context));
    Context::Append append;
    append.first_position = from.first_position;
    append.tokens = {from.tokens, from.token_count};
    append.ends = {from.ends, from.end_count};
    append.ends_final_to = from.ends_final_to;
    if (from.extra != nullptr) {
      std::copy_n(from.extra, append.extra.bytes.size(), append.extra.bytes.begin());
    }
    SKV_TRY(appended, found->append(append));
    if (result != nullptr) write_struct(result, appended);
    return {};
  });
}

int skv_context_get_info(skv_context context, skv_context_info* info) {
  return guarded([&]() -> Result<void> {
    SKV_CHECK_OK(check_out_struct(info, "skv_context_info"));
    SKV_TRY(found, find<Context>(context));
    const Context::Known known = found->acknowledge();
    skv_context_info out{};
    out.token_count = known.token_count;
    out.sentence_count = known.sentence_count;
    out.closed_blocks = known.closed_blocks;
    out.changes = known.changes;
    write_struct(info, out);
    return {};
  });
}

int skv_context_get_sentences(
    skv_context context, uint32_t first, uint32_t* blocks, uint32_t capacity, uint32_t* count) {
  return guarded([&]() -> Result<void> {
    if (count == nullptr || (blocks == nullptr && capacity > 0)) return invalid("NULL output");
    SKV_TRY(found, find<Context>(context));
    const std::vector<uint32_t> known = found->sentences(first, capacity);
    std::copy(known.begin(), known.end(), blocks);
    *count = static_cast<uint32_t>(known.size());
    return {};
  });
}

int skv_match(skv_context context, int adopt, skv_match_result* result) {
  return guarded([&]() -> Result<void> {
    SKV_CHECK_OK(check_out_struct(result, "skv_match_result"));
    SKV_TRY(found, find<Context>(context));
    SKV_TRY(reply, found->match(adopt != 0));
    write_struct(result, match_result(reply));
    return {};
  });
}

int skv_keys_open(skv_model model, skv_keys* keys) {
  return guarded([&]() -> Result<void> {
    SKV_TRY(found, find<Model>(model));
    return open_into<Keys>(
        keys, [&]() -> Result<std::shared_ptr<Keys>> { return std::make_shared<Keys>(found); });
  });
}

int skv_keys_close(skv_keys keys) {
  return guarded([&]() -> Result<void> {
    SKV_CHECK_OK(take<Keys>(keys));
    return {};
  });
}

int skv_keys_append(skv_keys keys,
                    const uint32_t* tokens,
                    uint32_t token_count,
                    const uint8_t* extra) {
  return guarded([&]() -> Result<void> {
    if (token_count > 0 && tokens == nullptr) return invalid("tokens is NULL");
    SKV_TRY(found, find<Keys>(keys));
    skv::Digest digest;
    if (extra != nullptr) std::copy_n(extra, digest.bytes.size(), digest.bytes.begin());
    return found->append({tokens, token_count}, digest);
  });
}

int skv_match_local(skv_keys keys, skv_match_result* result) {
  return guarded([&]() -> Result<void> {
    SKV_CHECK_OK(check_out_struct(result, "skv_match_result"));
    SKV_TRY(found, find<Keys>(keys));
    SKV_TRY(reply, found->match());
    write_struct(result, match_result(reply));
    return {};
  });
}

int skv_put_reserve(skv_context context, uint32_t first, uint32_t count, uint8_t* outcomes) {
  return guarded([&] {
    return for_sentences(context, Verb::kPutReserve, skv::PutReserve{}, first, count, outcomes);
  });
}

int skv_put_write(skv_context context, const skv_put_write_options* options, skv_ticket* ticket) {
  return guarded([&]() -> Result<void> {
    SKV_TRY(from, read_struct(options, "skv_put_write_options"));
    SKV_TRY(found, find<Context>(context));
    SKV_TRY(source, StridedSource::read(from.source, *found->session()));
    const Deadline deadline = found->session()->call_deadline();
    const auto make = [&](Connection& connection, uint32_t id) -> Result<skv::PutWrite> {
      SKV_TRY(strided, source.remote(connection, deadline));
      return skv::PutWrite{
          id,     from.first_sentence, from.sentence_count, from.first_layer, from.layer_count,
          strided};
    };
    if (ticket != nullptr) {
      SKV_TRY(begun, found->begin(Verb::kPutWrite, deadline, make));
      SKV_TRY(kept, found->session()->keep(begun, source.memory(), deadline));
      *ticket = kept;
      return {};
    }
    const Result<skv::Empty> reply = found->call<skv::Empty>(Verb::kPutWrite, deadline, make);
    if (!reply.ok()) return reply.error();
    return {};
  });
}

int skv_put_commit(
    skv_context context, uint32_t first, uint32_t count, int derive_vectors, uint8_t* outcomes) {
  return guarded([&] {
    skv::PutCommit message;
    message.derive_vectors = derive_vectors != 0 ? 1 : 0;
    return for_sentences(context, Verb::kPutCommit, message, first, count, outcomes);
  });
}

int skv_put_cancel(skv_context context, uint32_t first, uint32_t count, uint8_t* outcomes) {
  return guarded([&] {
    return for_sentences(context, Verb::kPutCancel, skv::PutCancel{}, first, count, outcomes);
  });
}

int skv_vectors_derive(skv_context context, uint32_t first, uint32_t count, uint8_t* outcomes) {
  return guarded([&] {
    return for_sentences(context, Verb::kVectorsDerive, skv::VectorsDerive{}, first, count,
                         outcomes);
  });
}

int skv_vectors_put(skv_context context,
                    const skv_vectors_put_options* options,
                    uint8_t* outcomes) {
  return guarded([&]() -> Result<void> {
    SKV_TRY(from, read_struct(options, "skv_vectors_put_options"));
    SKV_TRY(found, find<Context>(context));
    SKV_TRY(memory, find<Memory>(from.memory));
    SKV_CHECK_OK(check_session(*memory, *found->session()));
    const Deadline deadline = found->session()->call_deadline();
    SKV_TRY(reply, (found->call<skv::PutOutcomes>(
                       Verb::kVectorsPut, deadline,
                       [&](Connection& connection, uint32_t id) -> Result<skv::VectorsPut> {
                         SKV_TRY(memory_id, memory->remote(connection, deadline));
                         return skv::VectorsPut{id,        from.first_sentence, from.sentence_count,
                                                memory_id, from.offset,         from.bytes};
                       })));
    return copy_outcomes(reply, from.sentence_count, outcomes);
  });
}

int skv_drop(skv_context context, uint32_t first_sentence, uint32_t* dropped, uint32_t* kept) {
  return guarded([&]() -> Result<void> {
    SKV_TRY(found, find<Context>(context));
    SKV_TRY(reply, (found->call<skv::DropReply>(Verb::kDrop, found->session()->call_deadline(),
                                                [&](Connection&, uint32_t id) -> Result<skv::Drop> {
                                                  return skv::Drop{id, first_sentence};
                                                })));
    if (dropped != nullptr) *dropped = reply.dropped;
    if (kept != nullptr) *kept = reply.kept;
    return {};
  });
}
