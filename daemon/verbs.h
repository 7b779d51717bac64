#pragma once

#include "daemon/core.h"
#include "daemon/reply.h"
#include "daemon/session.h"
#include "ipc/messages.h"
#include "ipc/socket.h"

namespace skv {

// The verb handlers, one file per subject. Each answers its ReplyPtr once, now or later, and
// charges what it gives out to the session. A message's fields are a client's: every one is checked
// here or in what the handler calls.
//
// A later answer finds its session again by id: it may have ended.
//
// Thread  loop.

// Decodes and runs one request. Error: the bytes are not a request of this protocol; it was
// answered, and the caller closes the connection.
Result<void> dispatch(Core& core, Session& session, Frame& frame, const ReplyPtr& reply);
const char* verb_name(uint16_t verb);  // "?" for unknown ones

// verbs_session.cc
void hello(Core& core, Session& session, const Hello& message, const ReplyPtr& reply);
void model_open(Core& core, Session& session, const ModelOpen& message, const ReplyPtr& reply);
struct MemoryRegisterRequest {
  MemoryRegister message;
  UniqueFd memory;
};
void memory_register(Core& core,
                     Session& session,
                     MemoryRegisterRequest request,
                     const ReplyPtr& reply);
void memory_unregister(Core& core,
                       Session& session,
                       const MemoryUnregister& message,
                       const ReplyPtr& reply);
void channel_open(Core& core, Session& session, const ChannelOpen& message, const ReplyPtr& reply);
void channel_close(Core& core,
                   Session& session,
                   const ChannelClose& message,
                   const ReplyPtr& reply);

// verbs_context.cc
void context_open(Core& core, Session& session, const ContextOpen& message, const ReplyPtr& reply);
void context_append(Core& core,
                    Session& session,
                    const ContextAppend& message,
                    const ReplyPtr& reply);
void context_close(Core& core,
                   Session& session,
                   const ContextClose& message,
                   const ReplyPtr& reply);
void match(Core& core, Session& session, const Match& message, const ReplyPtr& reply);
void directory_map(Core& core, Session& session, const Empty& message, const ReplyPtr& reply);
void drop(Core& core, Session& session, const Drop& message, const ReplyPtr& reply);

// verbs_put.cc
void put_reserve(Core& core, Session& session, const PutReserve& message, const ReplyPtr& reply);
void put_write(Core& core, Session& session, const PutWrite& message, const ReplyPtr& reply);
void put_commit(Core& core, Session& session, const PutCommit& message, const ReplyPtr& reply);
void put_cancel(Core& core, Session& session, const PutCancel& message, const ReplyPtr& reply);
// After its commit or cancel: the data thread writes it no more, then its extents are let go.
void end_put(Core& core, Session& session, SentenceUid uid);

// verbs_vectors.cc
void vectors_derive(Core& core,
                    Session& session,
                    const VectorsDerive& message,
                    const ReplyPtr& reply);
void vectors_put(Core& core, Session& session, const VectorsPut& message, const ReplyPtr& reply);

// verbs_window.cc
void window_open(Core& core, Session& session, const WindowOpen& message, const ReplyPtr& reply);
void window_close(Core& core, Session& session, const WindowClose& message, const ReplyPtr& reply);
void window_fill(Core& core, Session& session, const WindowFill& message, const ReplyPtr& reply);
// Closes one window, then runs `closed` (at once if it is gone already).
void close_window(Core& core, Session& session, WindowId window, std::function<void()> closed);

// verbs_load.cc
void load(Core& core, Session& session, const Load& message, const ReplyPtr& reply);
void release(Core& core, Session& session, const Release& message, const ReplyPtr& reply);
void lease_map_open(Core& core,
                    Session& session,
                    const LeaseMapOpen& message,
                    const ReplyPtr& reply);
void lease_map_close(Core& core,
                     Session& session,
                     const LeaseMapClose& message,
                     const ReplyPtr& reply);

// verbs_admin.cc
void flush(Core& core, Session& session, const Flush& message, const ReplyPtr& reply);
void stat(Core& core, Session& session, const Stat& message, const ReplyPtr& reply);

// Shared by the handlers.

// Null after an answer of kUnknownHandle.
std::shared_ptr<Context> context_of(Session& session, uint32_t context, const ReplyPtr& reply);
const ClientMemory* memory_of(Session& session, uint32_t memory, const ReplyPtr& reply);
// Closed sentences [first, first + count), at most kReserveSentencesMax. False after an answer.
struct SentenceRange {
  uint32_t first = 0;
  uint32_t count = 0;
};
bool check_sentences(const Context& context, const SentenceRange& range, const ReplyPtr& reply);
bool check_layers(const Context& context, const LayerRange& layers, const ReplyPtr& reply);
// kTooLarge: "sessions.windows: 16 of 16 in use".
Error limit_error(const char* what, uint64_t used, uint64_t limit);

}  // namespace skv
