#include <spdlog/spdlog.h>

#include <utility>
#include <variant>

#include "daemon/core.h"
#include "daemon/verbs.h"

// What the data thread says, one function per event.

namespace skv {
namespace {

struct Handler {
  Core& core;

  void operator()(Pong&) const { core.data_answered = true; }

  void operator()(ArenaUnmapped&) const {}

  void operator()(ChannelOpened& event) const {
    const auto waiting = core.channels_opening.extract(event.channel);
    Session* const session = core.find_session(event.session);
    if (waiting.empty() || session == nullptr) {
      return;  // the session ended meanwhile; the data thread closes what it made
    }
    if (!event.parts.ok()) {
      session->channels.erase(event.channel);
      waiting.mapped()->error(event.parts.error());
      return;
    }
    ChannelParts parts = std::move(event.parts).value();
    std::vector<UniqueFd> fds;
    fds.push_back(std::move(parts.memory));
    fds.push_back(std::move(parts.daemon_doorbell));
    fds.push_back(std::move(parts.client_doorbell));
    waiting.mapped()->ok(
        ChannelOpenReply{raw(event.channel), parts.bytes, parts.argument_area_offset},
        std::move(fds));
  }

  void operator()(ChannelRequest& event) const {
    if (core.serve) core.serve(std::move(event));
  }

  void operator()(WindowOpened& event) const {
    const auto waiting = core.windows_opening.extract(event.window);
    Session* const session = core.find_session(event.session);
    if (session == nullptr) {
      return;
    }
    const auto window = session->windows.find(event.window);
    if (window == session->windows.end()) {
      return;
    }
    if (!event.parts.ok()) {
      const ContextId context = window->second.context;
      session->windows.erase(window);
      core.feeds.window_closed(context, event.window);
      if (!waiting.empty()) {
        waiting.mapped()->error(event.parts.error());
      }
      return;
    }
    window->second.open = true;
    if (waiting.empty()) {
      return;
    }
    WindowOpened::Parts parts = std::move(event.parts).value();
    std::vector<UniqueFd> fds;
    fds.push_back(std::move(parts.tables));
    if (!parts.slots_in_host) {
      fds.push_back(std::move(parts.slots));
    }
    if (parts.rank_in == RankIn::kClient) {
      if (!parts.feed.valid() || !parts.vectors.valid()) {
        waiting.mapped()->error({ErrorCode::kIo, "no descriptor is left for the window's feed"});
        close_window(core, *session, event.window, [] {});
        return;
      }
      fds.push_back(std::move(parts.feed));
      fds.push_back(std::move(parts.vectors));
    }
    WindowOpenReply reply;
    reply.window = raw(event.window);
    reply.tables_bytes = parts.tables_bytes;
    reply.slots_bytes = parts.slots_bytes;
    reply.slot_unit_bytes = parts.slot_unit_bytes;
    reply.width = parts.width;
    reply.slots_in_host = parts.slots_in_host ? 1 : 0;
    reply.rank_in = static_cast<uint8_t>(parts.rank_in);
    reply.feed_bytes = parts.feed_bytes;
    reply.vectors_bytes = parts.vectors_bytes;
    waiting.mapped()->ok(reply, std::move(fds));
  }

  void operator()(WindowClosed& event) const {
    Session* const session = core.find_session(event.session);
    if (session != nullptr) {
      if (const auto window = session->windows.extract(event.window); !window.empty()) {
        core.feeds.window_closed(window.mapped().context, event.window);
      }
    }
    if (const auto closing = core.windows_closing.extract(event.window); !closing.empty()) {
      closing.mapped()();
    }
  }

  void operator()(SessionClosed& event) const { core.finish_session(event.session); }

  void operator()(ProtocolError& event) const {
    if (Session* const session = core.find_session(event.session); session != nullptr) {
      ++core.counters.protocol_errors;
      core.close_connection(*session, event.message);
    }
  }

  void operator()(NeedChunks& event) const {
    // One call per run of chunks of one sentence.
    std::vector<uint32_t> chunks;
    for (size_t i = 0; i < event.chunks.size(); ++i) {
      chunks.push_back(event.chunks[i].chunk);
      if (i + 1 == event.chunks.size() || event.chunks[i + 1].uid != event.chunks[i].uid) {
        core.placement.need_chunks(event.chunks[i].uid, chunks, event.urgent);
        chunks.clear();
      }
    }
  }

  void operator()(ReadAheadChunks& event) const {
    for (const ChunkRef& each : event.chunks) core.placement.read_ahead(each.uid, each.chunk);
  }

  void operator()(WithdrawDone& event) const {
    core.placement.withdraw_done(event.chunk.uid, event.chunk.chunk);
  }

  void operator()(Touched& event) const { core.placement.touch(event.sentences); }

  void operator()(PutRevoked& event) const {
    Session* const session = core.find_session(event.session);
    if (session == nullptr) {
      return;
    }
    if (const auto ended = session->revoked.extract(event.uid); !ended.empty()) {
      for (const ChunkLease& lease : ended.mapped()) {
        core.placement.release(lease);
      }
    }
  }

  void operator()(TaskDone& event) const {
    const Session* const session = core.find_session(event.session);
    const bool lives = session != nullptr && session->state != SessionState::kEnding;
    core.tasks.finish(std::move(event), lives ? Tasks::Session::kLives : Tasks::Session::kEnds);
  }

  void operator()(DeviceLost& event) const {
    spdlog::error("the device is lost, {} windows with it: {}", event.windows.size(), event.reason);
    for (const DeviceLost::Window& lost : event.windows) {
      Session* const session = core.find_session(lost.session);
      if (session == nullptr) {
        continue;
      }
      const auto window = session->windows.find(lost.window);
      if (window == session->windows.end() || window->second.lost) {
        continue;
      }
      window->second.lost = true;
      ++core.counters.windows_lost;
      FrameHeader header;
      header.verb = static_cast<uint16_t>(Verb::kWindowLost);
      session->connection->send(
          encode_frame(header, WindowLost{raw(lost.window), event.reason.substr(0, 512)}));
    }
  }
};

}  // namespace

void Core::handle(DataEvent event) { std::visit(Handler{*this}, event); }

}  // namespace skv
