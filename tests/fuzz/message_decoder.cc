// Goal: no frame makes the decoder crash, over-read or allocate out of proportion, and each value
// has one encoding.
// Method: decode the header, then the body as the message that verb and is_reply name. What decodes
// must encode to the same bytes.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <span>

#include "ipc/codec.h"
#include "tests/ipc/all_messages.h"

namespace {

template <typename Message>
void decode_and_compare(std::span<const uint8_t> body) {
  const skv::Result<Message> decoded = skv::decode_body<Message>(body);
  if (!decoded.ok()) return;
  const std::vector<uint8_t> again = skv::encode_body(decoded.value());
  if (!std::equal(again.begin(), again.end(), body.begin(), body.end())) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const uint8_t> frame(data, size);
  const skv::Result<skv::FrameHeader> header = skv::decode_header(frame);
  if (!header.ok()) return 0;
  const std::span<const uint8_t> body = frame.subspan(sizeof(skv::FrameHeader));
  if (header.value().status != 0) {
    decode_and_compare<std::string>(body);
    return 0;
  }
  skv::for_each_verb([&]<typename Request, typename Reply>(skv::Verb verb, const char*) {
    if (header.value().verb != static_cast<uint16_t>(verb)) return;
    if (header.value().is_reply == 0) {
      decode_and_compare<Request>(body);
    } else if constexpr (!std::is_void_v<Reply>) {
      decode_and_compare<Reply>(body);
    }
  });
  return 0;
}
