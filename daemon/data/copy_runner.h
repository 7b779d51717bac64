#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <unordered_map>
#include <variant>
#include <vector>

#include "daemon/data/data_messages.h"
#include "daemon/data/statistics.h"
#include "kernels/vectors.h"

namespace skv {

// The host tier of a space, as copies see it.
struct ArenaView {
  std::byte* base = nullptr;
  uint64_t bytes = 0;
};

// Whether a strided view stays inside `memory_bytes` for these layers and tokens. Overflow-safe:
// all of `view` is a client's word. kInvalidArgument says which end leaves it.
Result<void> check_view(const StridedKv& view,
                        uint64_t memory_bytes,
                        const BodyLayout& layout,
                        LayerRange layers,
                        SentenceSpan span);

// Copies between registered memories and host extents, and derives vectors, a small unit at a time.
//
// Tasks of one session run one after the other in their order; sessions take turns by slices.
//
// Thread  data thread.
// Owns    the tasks. Extents are leased by the loop until TaskDone.
class CopyRunner {
 public:
  struct Hooks {
    std::function<uint64_t()> now_ns;
    std::function<ArenaView(SpaceId)> arena;
    std::function<void(TaskDone)> done;
  };
  CopyRunner(Hooks hooks, DataCounters& counters) : hooks_(std::move(hooks)), counters_(counters) {}

  void add(CopyTask task) {
    const SessionId session = task.session;
    add(session, std::move(task));
  }
  void add(DeriveTask task) {
    const SessionId session = task.session;
    add(session, std::move(task));
  }
  void add(CopyVectorsTask task) {
    const SessionId session = task.session;
    add(session, std::move(task));
  }

  // At least one unit of the session whose turn it is, then more until the slice ends. True: there
  // is more to do.
  bool run(uint64_t slice_end_ns);
  // Its tasks end without a word.
  void drop(SessionId session);
  size_t count() const;

 private:
  struct Job {
    std::variant<CopyTask, DeriveTask, CopyVectorsTask> task;
    bool started = false;
    ArenaView arena;
    TaskDone result;
    std::optional<VectorsLayout> vectors;          // derive, vectors copy
    std::shared_ptr<std::vector<std::byte>> blob;  // derive: of the current sentence
    uint32_t sentence = 0;                         // where it goes on
    uint32_t layer = 0;
    uint32_t kv_head = 0;
    uint32_t sum = 0;   // of checksum_chunks
    uint64_t from = 0;  // vectors copy: bytes taken
  };
  struct Queue {
    SessionId session{};
    std::deque<Job> jobs;
  };

  template <typename Task>
  void add(SessionId session, Task task);
  // One unit; true: the job is done.
  bool step(Job& job);
  Result<void> start(Job& job, const CopyTask& task);
  Result<void> start(Job& job, const DeriveTask& task);
  Result<void> start(Job& job, const CopyVectorsTask& task);
  bool unit(Job& job, const CopyTask& task);
  bool unit(Job& job, const DeriveTask& task);
  bool unit(Job& job, const CopyVectorsTask& task);

  Hooks hooks_;
  DataCounters& counters_;
  std::deque<Queue> queues_;  // the front's turn; none is empty
  DeriveScratch derive_scratch_;
};

}  // namespace skv
