#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "ipc/codec.h"
#include "ipc/messages.h"
#include "ipc/types/ids.h"
#include "ipc/unique_fd.h"

namespace skv {

// The one answer that a request gets. Whoever holds the last ReplyPtr without having answered
// answers kInternal: no request is ever left open. Where the session is gone the answer is dropped.
//
// Thread  loop.
class Reply {
 public:
  using Send = std::function<void(std::vector<uint8_t> frame, std::vector<UniqueFd> fds)>;
  Reply(const FrameHeader& request, Send send) : request_(request), send_(std::move(send)) {}
  ~Reply() {
    if (send_) {
      error({ErrorCode::kInternal, "the daemon dropped this request"});
    }
  }
  Reply(const Reply&) = delete;
  Reply& operator=(const Reply&) = delete;

  template <typename Message>
  void ok(const Message& message, std::vector<UniqueFd> fds = {}) {
    std::vector<uint8_t> frame = encode_reply(request_, message, static_cast<uint16_t>(fds.size()));
    finish(std::move(frame), std::move(fds));
  }
  void ok() { ok(Empty{}); }
  void error(const Error& error) { finish(encode_error_reply(request_, error), {}); }

  bool answered() const { return !send_; }
  uint64_t ticket() const { return request_.ticket; }

 private:
  void finish(std::vector<uint8_t> frame, std::vector<UniqueFd> fds) {
    SKV_CHECK(send_, "a request was answered twice");
    const Send send = std::exchange(send_, nullptr);
    send(std::move(frame), std::move(fds));
  }

  FrameHeader request_;
  Send send_;
};
using ReplyPtr = std::shared_ptr<Reply>;

}  // namespace skv
