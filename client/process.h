#pragma once

#include <sys/types.h>

namespace skv::client {

// getpid() without its system call: what lets a forked child notice that sessions are not its own.
//
// Thread  any.
pid_t own_pid();

}  // namespace skv::client
