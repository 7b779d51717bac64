#include "ipc/messages.h"

#include <gtest/gtest.h>

#include "ipc/codec.h"

namespace skv {
namespace {

TEST(Codec, ErrorNamesTheField) {
  Hello hello;
  hello.client_name = "engine";
  std::vector<uint8_t> body = encode_body(hello);
  body[12] = 0xFF;  // the count of client_name, after two u16 and one u64
  body[13] = 0xFF;
  const Result<Hello> decoded = decode_body<Hello>(body);
  ASSERT_FALSE(decoded.ok());
  EXPECT_EQ(decoded.error().code, ErrorCode::kProtocol);
  EXPECT_EQ(decoded.error().message, "field 3 (client_name): count 65535 is above 32768");
}

}  // namespace
}  // namespace skv
