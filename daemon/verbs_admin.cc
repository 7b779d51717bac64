#include <utility>

#include "daemon/status.h"
#include "daemon/verbs.h"

namespace skv {

void flush(Core& core, Session& session, const Flush& message, const ReplyPtr& reply) {
  if (message.level == static_cast<uint8_t>(FlushLevel::kHost)) {
    // A commit is in host memory when it answers; how much is durable is told all the same.
    FlushReply answer;
    core.directory.for_each([&](const Sentence& sentence) {
      answer.sentences += sentence.space == session.space->id && sentence.on_nvme ? 1U : 0U;
    });
    reply->ok(answer);
    return;
  }
  if (message.level != static_cast<uint8_t>(FlushLevel::kDurable)) {
    reply->error(
        {ErrorCode::kUnsupported, "level " + std::to_string(message.level) +
                                      " is not served; served are 1 (host) and 2 (durable)"});
    return;
  }
  core.placement.flush(session.space->id, [reply](Result<uint64_t> durable) {
    if (durable.ok()) {
      reply->ok(FlushReply{durable.value()});
    } else {
      reply->error(durable.error());
    }
  });
}

void stat(Core& core, Session& session, const Stat& message, const ReplyPtr& reply) {
  StatReply answer;
  switch (static_cast<StatKind>(message.kind)) {
    case StatKind::kStatus:
      answer.json = status_json(core, core.data_statistics()).dump();
      break;
    case StatKind::kContexts: {
      ContextsPage page = contexts_json(core, *session.space, message.first);
      answer.json = page.contexts.dump();
      answer.next = page.next;
      break;
    }
    case StatKind::kSession:
      answer.json = session_json(core, session).dump();
      break;
    default:
      reply->error({ErrorCode::kUnsupported,
                    "kind " + std::to_string(message.kind) +
                        " is not served; served are 0 (status), 1 (contexts), 2 (session)"});
      return;
  }
  reply->ok(answer);
}

}  // namespace skv
