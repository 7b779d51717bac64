#include <spdlog/spdlog.h>

#include <utility>

#include "daemon/verbs.h"

namespace skv {
namespace {

// Decodes the body as `Message` and runs the handler.
template <typename Message>
Result<void> run(Core& core,
                 Session& session,
                 const Frame& frame,
                 const ReplyPtr& reply,
                 void (*handler)(Core&, Session&, const Message&, const ReplyPtr&)) {
  const Result<Message> message = decode_body<Message>(frame.body);
  if (!message.ok()) {
    reply->error(message.error());
    return message.error();
  }
  handler(core, session, message.value(), reply);
  return {};
}

Result<void> run_memory_register(Core& core,
                                 Session& session,
                                 Frame& frame,
                                 const ReplyPtr& reply) {
  const Result<MemoryRegister> message = decode_body<MemoryRegister>(frame.body);
  if (!message.ok()) {
    reply->error(message.error());
    return message.error();
  }
  memory_register(core, session, {message.value(), std::move(frame.fds[0])}, reply);
  return {};
}

// What needs the socket: its descriptors, or the channel's own end.
bool served_by_channel(Verb verb) {
  switch (verb) {
    case Verb::kHello:
    case Verb::kMemoryRegister:
    case Verb::kWindowOpen:
    case Verb::kLeaseMapOpen:
    case Verb::kChannelOpen:
    case Verb::kChannelClose:
      return false;
    default:
      return true;
  }
}

// Served while the daemon drains: what ends things, and what was begun.
bool served_while_draining(Verb verb) {
  switch (verb) {
    case Verb::kHello:
    case Verb::kModelOpen:
    case Verb::kContextOpen:
    case Verb::kContextAppend:
    case Verb::kMatch:
    case Verb::kMemoryRegister:
    case Verb::kPutReserve:
    case Verb::kVectorsDerive:
    case Verb::kWindowOpen:
    case Verb::kChannelOpen:
    case Verb::kLoad:
    case Verb::kLeaseMapOpen:
      return false;
    default:
      return true;
  }
}

}  // namespace

const char* verb_name(uint16_t verb) {
  switch (static_cast<Verb>(verb)) {
    case Verb::kHello:
      return "hello";
    case Verb::kModelOpen:
      return "model_open";
    case Verb::kContextOpen:
      return "context_open";
    case Verb::kContextAppend:
      return "context_append";
    case Verb::kContextClose:
      return "context_close";
    case Verb::kMatch:
      return "match";
    case Verb::kMemoryRegister:
      return "memory_register";
    case Verb::kMemoryUnregister:
      return "memory_unregister";
    case Verb::kPutReserve:
      return "put_reserve";
    case Verb::kPutWrite:
      return "put_write";
    case Verb::kPutCommit:
      return "put_commit";
    case Verb::kPutCancel:
      return "put_cancel";
    case Verb::kVectorsDerive:
      return "vectors_derive";
    case Verb::kVectorsPut:
      return "vectors_put";
    case Verb::kWindowOpen:
      return "window_open";
    case Verb::kWindowClose:
      return "window_close";
    case Verb::kChannelOpen:
      return "channel_open";
    case Verb::kChannelClose:
      return "channel_close";
    case Verb::kLoad:
      return "load";
    case Verb::kRelease:
      return "release";
    case Verb::kFlush:
      return "flush";
    case Verb::kDrop:
      return "drop";
    case Verb::kStat:
      return "stat";
    case Verb::kDirectoryMap:
      return "directory_map";
    case Verb::kWindowFill:
      return "window_fill";
    case Verb::kLeaseMapOpen:
      return "lease_map_open";
    case Verb::kLeaseMapClose:
      return "lease_map_close";
    case Verb::kGoAway:
      return "go_away";
    case Verb::kWindowLost:
      return "window_lost";
  }
  return "?";
}

Result<void> dispatch(Core& core, Session& session, Frame& frame, const ReplyPtr& reply) {
  const auto verb = static_cast<Verb>(frame.header.verb);
  if (session.state == SessionState::kGreeting && verb != Verb::kHello) {
    const Error error{ErrorCode::kProtocol,
                      std::string(verb_name(frame.header.verb)) + " before hello"};
    reply->error(error);
    return error;
  }
  if (frame.by_channel && !served_by_channel(verb)) {
    reply->error({ErrorCode::kUnsupported,
                  std::string(verb_name(frame.header.verb)) + " is served by the socket only"});
    return {};
  }
  const size_t fds_expected = verb == Verb::kMemoryRegister ? 1 : 0;
  if (frame.fds.size() != fds_expected) {
    reply->error(
        {ErrorCode::kInvalidArgument, std::string(verb_name(frame.header.verb)) + " takes " +
                                          std::to_string(fds_expected) + " descriptors, " +
                                          std::to_string(frame.fds.size()) + " came (closed)"});
    return {};
  }
  if (core.draining && !served_while_draining(verb)) {
    reply->error({ErrorCode::kDisconnected, "the daemon is stopping: connect again later"});
    return {};
  }
  switch (verb) {
    case Verb::kHello:
      return run<Hello>(core, session, frame, reply, hello);
    case Verb::kModelOpen:
      return run<ModelOpen>(core, session, frame, reply, model_open);
    case Verb::kContextOpen:
      return run<ContextOpen>(core, session, frame, reply, context_open);
    case Verb::kContextAppend:
      return run<ContextAppend>(core, session, frame, reply, context_append);
    case Verb::kContextClose:
      return run<ContextClose>(core, session, frame, reply, context_close);
    case Verb::kMatch:
      return run<Match>(core, session, frame, reply, match);
    case Verb::kMemoryRegister:
      return run_memory_register(core, session, frame, reply);
    case Verb::kMemoryUnregister:
      return run<MemoryUnregister>(core, session, frame, reply, memory_unregister);
    case Verb::kPutReserve:
      return run<PutReserve>(core, session, frame, reply, put_reserve);
    case Verb::kPutWrite:
      return run<PutWrite>(core, session, frame, reply, put_write);
    case Verb::kPutCommit:
      return run<PutCommit>(core, session, frame, reply, put_commit);
    case Verb::kPutCancel:
      return run<PutCancel>(core, session, frame, reply, put_cancel);
    case Verb::kVectorsDerive:
      return run<VectorsDerive>(core, session, frame, reply, vectors_derive);
    case Verb::kVectorsPut:
      return run<VectorsPut>(core, session, frame, reply, vectors_put);
    case Verb::kWindowOpen:
      return run<WindowOpen>(core, session, frame, reply, window_open);
    case Verb::kWindowClose:
      return run<WindowClose>(core, session, frame, reply, window_close);
    case Verb::kChannelOpen:
      return run<ChannelOpen>(core, session, frame, reply, channel_open);
    case Verb::kChannelClose:
      return run<ChannelClose>(core, session, frame, reply, channel_close);
    case Verb::kLoad:
      return run<Load>(core, session, frame, reply, load);
    case Verb::kRelease:
      return run<Release>(core, session, frame, reply, release);
    case Verb::kFlush:
      return run<Flush>(core, session, frame, reply, flush);
    case Verb::kDrop:
      return run<Drop>(core, session, frame, reply, drop);
    case Verb::kStat:
      return run<Stat>(core, session, frame, reply, stat);
    case Verb::kDirectoryMap:
      return run<Empty>(core, session, frame, reply, directory_map);
    case Verb::kWindowFill:
      return run<WindowFill>(core, session, frame, reply, window_fill);
    case Verb::kLeaseMapOpen:
      return run<LeaseMapOpen>(core, session, frame, reply, lease_map_open);
    case Verb::kLeaseMapClose:
      return run<LeaseMapClose>(core, session, frame, reply, lease_map_close);
    case Verb::kGoAway:
    case Verb::kWindowLost:
      break;
  }
  reply->error({ErrorCode::kUnsupported,
                "verb " + std::to_string(frame.header.verb) + " is not one of this daemon's"});
  return {};
}

}  // namespace skv
