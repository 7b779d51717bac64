#pragma once

#include "ipc/types/result.h"

namespace skv::client {

// The text behind skv_last_error(), one per thread.
//
// Returns the negative code of `error` for the C ABI.
int fail(const Error& error);
const char* last_error_text();

}  // namespace skv::client
