#include "ipc/codec.h"

#include <utility>

namespace skv {
namespace {

constexpr size_t kErrorTextBytesMax = 4096;

Error protocol_error(std::string why) { return Error{ErrorCode::kProtocol, std::move(why)}; }

std::string pair_text(uint64_t got, uint64_t limit) {
  return std::to_string(got) + ", not " + std::to_string(limit);
}

}  // namespace

std::vector<uint8_t> encode_error_reply(const FrameHeader& request, const Error& error) {
  FrameHeader header;
  header.verb = request.verb;
  header.ticket = request.ticket;
  header.is_reply = 1;
  // An error without a code would read as success.
  header.status =
      static_cast<int32_t>(error.code == ErrorCode::kOk ? ErrorCode::kInternal : error.code);
  return encode_frame(header, error.message.substr(0, kErrorTextBytesMax));
}

Result<FrameHeader> decode_header(std::span<const uint8_t> frame) {
  FrameHeader header;
  if (frame.size() < sizeof header) {
    return protocol_error("a frame of " + std::to_string(frame.size()) + " bytes has no header (" +
                          std::to_string(sizeof header) + ")");
  }
  std::memcpy(&header, frame.data(), sizeof header);
  if (header.magic != kFrameMagic) return protocol_error("header field magic is wrong");
  if (header.version != kProtocolVersion) {
    return Error{ErrorCode::kUnsupported,
                 "protocol version is " + pair_text(header.version, kProtocolVersion)};
  }
  if (frame.size() > kMessageBytesMax) {
    return protocol_error("a frame of " + std::to_string(frame.size()) + " bytes is above " +
                          std::to_string(kMessageBytesMax));
  }
  if (header.body_bytes != frame.size() - sizeof header) {
    return protocol_error("header field body_bytes is " +
                          pair_text(header.body_bytes, frame.size() - sizeof header));
  }
  if (header.fd_count > kFdsMax) {
    return protocol_error("header field fd_count is " + std::to_string(header.fd_count) +
                          ", above " + std::to_string(kFdsMax));
  }
  if (header.is_reply > 1) return protocol_error("header field is_reply is above 1");
  if (header.status != 0 && header.is_reply == 0) {
    return protocol_error("header field status is not 0 in a request");
  }
  if (header.reserved != 0) return protocol_error("header field reserved is not 0");
  return header;
}

}  // namespace skv
