#pragma once

#include <cstdio>
#include <cstdlib>

// A broken invariant of our own code: the process says where and aborts, systemd restarts it. On in
// release. Never used on bytes that came from a client or the disk (those are a Result).
#define SKV_CHECK(condition, why)                                                                 \
  do {                                                                                            \
    if (!(condition)) [[unlikely]] {                                                              \
      std::fprintf(stderr, "%s:%d: check failed: %s: %s\n", __FILE__, __LINE__, #condition, why); \
      std::abort();                                                                               \
    }                                                                                             \
  } while (false)
