#include "client/last_error.h"

#include <string>

namespace skv::client {
namespace {

thread_local std::string text;  // NOLINT: one per thread is the point

}  // namespace

int fail(const Error& error) {
  try {
    text = error.message;
  } catch (const std::bad_alloc&) {
    text.clear();
  }
  return -static_cast<int>(error.code == ErrorCode::kOk ? ErrorCode::kInternal : error.code);
}

const char* last_error_text() { return text.c_str(); }

}  // namespace skv::client
