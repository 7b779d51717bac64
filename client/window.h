#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "client/context.h"
#include "client/ranker.h"
#include "client/session.h"
#include "ipc/layout/channel.h"
#include "ipc/layout/window.h"
#include "ipc/messages.h"
#include "ipc/types/result.h"

namespace skv::client {

// A window as this process has it mapped: tables (ipc/layout/window.h) and slots.
//
// Thread  any. Tables are read in place; what the daemon may overwrite is guarded by readers_done.
// Owns    its mappings, shared with holds; the connection it was opened on, where it ends.
// Errors  kStale: that connection, the context or the device behind it is gone.
class Window : public Object {
 public:
  static constexpr HandleKind kKind = HandleKind::kWindow;

  static Result<std::shared_ptr<Window>> open(std::shared_ptr<Context> context,
                                              const WindowOpen& options);
  explicit Window(std::shared_ptr<Context> context);

  Result<void> close();
  // One submission for rows of windows on one connection. `rows` are the answers.
  static Result<CompletionEntry> prefetch(std::span<const std::shared_ptr<Window>> windows,
                                          std::span<PrefetchRow> rows,
                                          const SubmissionEntry& entry,
                                          std::span<const std::byte> queries,
                                          Deadline deadline);
  // Sends it and does not wait.
  Result<void> guess(const SubmissionEntry& entry,
                     std::span<const std::byte> query,
                     Deadline deadline);
  Result<skv_table> table(uint32_t layer);
  Result<const void*> slot(uint32_t layer, uint32_t slot) const;
  Result<void> readers_done(uint64_t version);
  bool is_stale() const;
  bool ranks_here() const { return ranker_ != nullptr; }

  const std::shared_ptr<Context>& context() const { return context_; }
  const WindowOpenReply& opened() const { return opened_; }
  const std::shared_ptr<MappedMemory>& tables() const { return tables_; }
  const std::shared_ptr<MappedMemory>& slots() const { return slots_; }

 private:
  Result<void> attach(const WindowOpen& options,
                      const WindowOpenReply& reply,
                      std::vector<UniqueFd> fds);
  Result<void> attach_ranker(const WindowOpen& options,
                             const UniqueFd& feed,
                             const UniqueFd& vectors);
  Result<void> fill(std::span<Ranker::Wanted> wanted, const Ranker::FillOptions& options) const;
  Result<CompletionEntry> rank_here(const SubmissionEntry& entry,
                                    std::span<const std::byte> query,
                                    PrefetchRow& row,
                                    Deadline deadline);
  static Result<CompletionEntry> one_by_one(std::span<const std::shared_ptr<Window>> windows,
                                            std::span<PrefetchRow> rows,
                                            const SubmissionEntry& entry,
                                            std::span<const std::byte> queries,
                                            Deadline deadline);
  Result<void> check_fresh() const;
  WindowHeader& header() const;
  void saw_version(uint64_t version);

  const std::shared_ptr<Context> context_;
  std::shared_ptr<Connection> connection_;
  WindowOpenReply opened_;
  std::shared_ptr<MappedMemory> tables_;
  std::shared_ptr<MappedMemory> slots_;
  std::unique_ptr<Ranker> ranker_;  // null: the daemon ranks
  std::vector<uint64_t> layer_at_;  // of each layer's LayerTableHeader in the tables
  std::atomic<uint64_t> newest_version_{0};
};

}  // namespace skv::client
