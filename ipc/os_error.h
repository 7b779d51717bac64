#pragma once

#include <cerrno>
#include <string>
#include <system_error>

#include "ipc/types/result.h"

namespace skv {

// "Permission denied (errno 13)"; thread-safe, unlike strerror.
inline std::string errno_text(int number) {
  return std::generic_category().message(number) + " (errno " + std::to_string(number) + ")";
}

// kIo with the call and the errno that it left. Call it before anything else can change errno.
inline Error os_error(const std::string& what) {
  const int number = errno;
  return Error{ErrorCode::kIo, what + ": " + errno_text(number)};
}

}  // namespace skv
