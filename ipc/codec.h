#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "ipc/messages.h"
#include "ipc/types/result.h"
#include "ipc/types/wire.h"

namespace skv {

// Frames of the control socket: FrameHeader, then a body (docs/protocol.md "Frames").
//
// Errors  decoding gives kProtocol with the field's index, name and limit. A daemon closes the
//         connection that such bytes came from.
// Thread  any; plain values.

template <typename Message>
std::vector<uint8_t> encode_body(const Message& message) {
  std::vector<uint8_t> bytes;
  WireWriter(bytes).put(message);
  return bytes;
}

// Fills in body_bytes; the rest of the header is the caller's. May exceed kMessageBytesMax:
// FrameSocket::send refuses that, encode_reply turns it into an error reply.
template <typename Message>
std::vector<uint8_t> encode_frame(FrameHeader header, const Message& message) {
  std::vector<uint8_t> frame(sizeof header);
  WireWriter(frame).put(message);
  header.body_bytes = static_cast<uint32_t>(frame.size() - sizeof header);
  std::memcpy(frame.data(), &header, sizeof header);
  return frame;
}

template <typename Message>
std::vector<uint8_t> encode_request(Verb verb,
                                    Ticket ticket,
                                    const Message& message,
                                    uint16_t fd_count = 0) {
  FrameHeader header;
  header.verb = static_cast<uint16_t>(verb);
  header.ticket = raw(ticket);
  header.fd_count = fd_count;
  return encode_frame(header, message);
}

// The reply to `request` that says why there is no other. Long texts are cut.
std::vector<uint8_t> encode_error_reply(const FrameHeader& request, const Error& error);

// The reply to `request`; kTooLarge with both numbers if it does not fit a frame.
template <typename Message>
std::vector<uint8_t> encode_reply(const FrameHeader& request,
                                  const Message& message,
                                  uint16_t fd_count = 0) {
  FrameHeader header;
  header.verb = request.verb;
  header.ticket = request.ticket;
  header.is_reply = 1;
  header.fd_count = fd_count;
  std::vector<uint8_t> frame = encode_frame(header, message);
  if (frame.size() <= kMessageBytesMax) return frame;
  return encode_error_reply(
      request, Error{ErrorCode::kTooLarge,
                     "the reply is " + std::to_string(frame.size()) + " bytes, a frame holds " +
                         std::to_string(kMessageBytesMax) + ": ask for less at once"});
}

// Of a whole datagram: checks magic, version, lengths, descriptor count and reserved words.
Result<FrameHeader> decode_header(std::span<const uint8_t> frame);

template <typename Message>
Result<Message> decode_body(std::span<const uint8_t> body) {
  Message message;
  WireReader reader(body);
  reader.get(message);
  if (Result<void> whole = reader.finish(); !whole.ok()) return whole.error();
  return message;
}

// Of a reply: its error if it carries one, else its message.
template <typename Message>
Result<Message> decode_reply(const FrameHeader& header, std::span<const uint8_t> body) {
  if (header.status == 0) return decode_body<Message>(body);
  Result<std::string> text = decode_body<std::string>(body);
  if (!text.ok()) return text.error();
  return Error{static_cast<ErrorCode>(header.status), std::move(text).value()};
}

}  // namespace skv
