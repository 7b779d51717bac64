#pragma once

#include <cstdint>

#include "ipc/messages.h"

namespace skv {

// The named limits of the daemon that the configuration does not set, each with its arithmetic.
// Start-up prints these and the configured ones with their sums (daemon/status.cc).

// Listening: clients that connect while the loop is busy wait here.
inline constexpr int kListenBacklog = 128;

// One readiness event reads at most this many frames of one connection, so that one client's flood
// is not another client's wait: 16 x 64 KiB = 1 MiB copied at most.
inline constexpr uint32_t kFramesPerWake = 16;

// Bytes of replies that wait for a slow reader, per session, next to Config::session_send_queue.
// A reply is at most kMessageBytesMax; 64 of them = 4 MiB per session.
inline constexpr uint64_t kSendQueueBytesMax = 64ULL * kMessageBytesMax;

// A connection that said nothing after connect is closed after this.
inline constexpr uint64_t kHelloDeadlineNs = 5'000'000'000ULL;

// Commands to the data thread that the loop may have queued, all sessions together; above it a verb
// waits in its session (kBusy towards the client once the session's in-flight limit is reached).
inline constexpr uint32_t kDataCommandsMax = 4096;

// Pages of vectors of one space where the configuration names no limit, at least: a page of 64
// sentences of an 8B model is some 42 MiB.
inline constexpr uint64_t kVectorPagesBytesMin = 256ULL << 20;

// Models of one session; each is some KiB, shared where equal.
inline constexpr uint32_t kSessionModelsMax = 64;

// A window's tables: 2 buffers x layers x heads x width x 17 bytes.
inline constexpr uint64_t kWindowTablesBytesMax = 1ULL << 30;

// A load that copies leases at most this much of the host tier at a time (or one sentence), and at
// most an eighth of the tier's budget; a load in place leases at most a quarter of the budget.
inline constexpr uint64_t kLoadBatchBytes = 8ULL << 20;

// A lease map has two memories of 4 bytes per chunk that the context can come to have, touched as
// sentences are shown: 2 x 8 KiB per 64 sentences of 32 chunks. Per session at most
// sessions.contexts of them, each two mappings of the process. One is shown this many chunks per
// turn of the loop, of some 20 ns each.
inline constexpr uint32_t kLeaseMapChunksPerTurn = 8192;

// Connections beyond sessions.max that may be told so.
inline constexpr uint32_t kGreetingsMax = 64;

// Text of skvctl's contexts page: entries per StatReply, 160 bytes each is well below 64 KiB.
inline constexpr uint32_t kStatContextsPage = 200;

// Descriptors: 3 per session (socket, pidfd, staging) + 3 per channel + 1 per memory + 2 per
// window, beside 64 of the daemon itself. Checked against RLIMIT_NOFILE at start-up.
inline constexpr uint32_t kOwnDescriptors = 64;
inline constexpr uint32_t kDescriptorsPerSession = 3;
inline constexpr uint32_t kDescriptorsPerChannel = 3;
inline constexpr uint32_t kDescriptorsPerMemory = 1;
inline constexpr uint32_t kDescriptorsPerWindow = 2;

}  // namespace skv
