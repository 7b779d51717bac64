#include "daemon/skvctl/request.h"

#include <poll.h>

#include <utility>

#include "ipc/codec.h"
#include "ipc/socket.h"

namespace skv {
namespace {

// Waits for the reply to `ticket`; events of the daemon on the way are skipped.
Result<Frame> wait_reply(FrameSocket& socket, uint64_t ticket, int deadline_ms) {
  for (;;) {
    pollfd ready{socket.fd(), POLLIN, 0};
    const int count = ::poll(&ready, 1, deadline_ms);
    if (count == 0) {
      return Error{ErrorCode::kTimeout,
                   "the daemon did not answer within " + std::to_string(deadline_ms) + " ms"};
    }
    Frame frame;
    const Result<ReceiveOutcome> outcome = socket.receive(frame);
    if (!outcome.ok()) {
      return outcome.error();
    }
    if (outcome.value() == ReceiveOutcome::kClosed) {
      return Error{ErrorCode::kDisconnected, "the daemon closed the connection"};
    }
    if (outcome.value() == ReceiveOutcome::kFrame && frame.header.is_reply == 1 &&
        frame.header.ticket == ticket) {
      return frame;
    }
  }
}

struct Call {
  Verb verb;
  uint64_t ticket;
  int deadline_ms;
};

template <typename Answer, typename Message>
Result<Answer> call(FrameSocket& socket, const Call& how, const Message& message) {
  const Result<SendOutcome> sent =
      socket.send(encode_request(how.verb, Ticket{how.ticket}, message));
  if (!sent.ok()) {
    return sent.error();
  }
  const Result<Frame> frame = wait_reply(socket, how.ticket, how.deadline_ms);
  if (!frame.ok()) {
    return frame.error();
  }
  return decode_reply<Answer>(frame.value().header, frame.value().body);
}

}  // namespace

Result<nlohmann::json> ask(const StatRequest& request) {
  Result<UniqueFd> connected = connect_to(request.socket);
  if (!connected.ok()) {
    const Error& error = connected.error();
    if (error.code == ErrorCode::kDisconnected) {
      return Error{error.code,
                   "no daemon answers at " + request.socket +
                       "; is skvd running (systemctl status skvd), and is that its socket.path?"};
    }
    if (error.code == ErrorCode::kDenied) {
      return Error{error.code,
                   error.message + "; your user is not in the group of the socket (socket.mode)"};
    }
    return error;
  }
  FrameSocket socket(std::move(connected).value());
  Hello hello;
  hello.client_name = "skvctl";
  uint64_t ticket = 1;
  const Result<HelloReply> greeted =
      call<HelloReply>(socket, {Verb::kHello, ticket++, request.deadline_ms}, hello);
  if (!greeted.ok()) {
    return greeted.error();
  }
  nlohmann::json pages = nlohmann::json::array();
  uint32_t first = 0;
  do {
    const Result<StatReply> answer =
        call<StatReply>(socket, {Verb::kStat, ticket++, request.deadline_ms},
                        Stat{static_cast<uint8_t>(request.kind), first});
    if (!answer.ok()) {
      return answer.error();
    }
    nlohmann::json page = nlohmann::json::parse(answer.value().json, nullptr, false);
    if (page.is_discarded()) {
      return Error{ErrorCode::kProtocol, "the daemon's answer is not JSON"};
    }
    if (request.kind != StatKind::kContexts) {
      return page;
    }
    if (page.is_array()) {
      pages.insert(pages.end(), page.begin(), page.end());
    }
    first = answer.value().next;
  } while (first != 0);
  return pages;
}

}  // namespace skv
