#pragma once

#include <string>

namespace skv::bench {

// Ranks the vectors of a file on command, so that another program can time the same work in turn.
//
// File, little-endian: u32 kind (IndexKind), vector count (a multiple of 16), dim, query count, k;
// then fp32 vectors, fp32 queries. One vector stands for one block. Lines on stdin, answers on
// stdout:
//   time N   rank of N rows of one query in one pass, and their cuts to k: seconds of CPU time
//   ids N    the chosen vectors, one line per query
//   quit
// Returns main's exit code.
int serve_vectors(const std::string& path);

}  // namespace skv::bench
