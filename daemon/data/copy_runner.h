#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <variant>
#include <vector>

#include "daemon/data/copy_rows.h"
#include "daemon/data/data_messages.h"
#include "daemon/data/fair_turns.h"
#include "daemon/data/open_sums.h"
#include "daemon/data/statistics.h"
#include "kernels/vectors.h"

namespace skv {

// Copies between registered memories and host extents, and derives vectors, a small unit at a time
// (one (sentence, layer, kv head), tens of KiB).
//
// Turns   tasks of one session run one after the other in their order. Of the sessions the one is
//         next that was served the least of this thread's time (FairTurns), for kTurnNs; each task
//         costs kTaskNs more than it takes. So one that has many or large tasks queued, or whose
//         memory has no pages yet, delays another's small one by kTurnNs and a unit, however much
//         it has. Time is the clock's, but never less than copying takes at best: a clock that
//         stands still serves bytes.
// Sums    a put's checksums are made in the pass that copies, from what was written (OpenSums).
// Memory  queues, jobs and sums are used again: steady work allocates what its task brings.
// Thread  data thread.
// Owns    the tasks. Extents are leased by the loop until TaskDone.
class CopyRunner {
 public:
  struct Hooks {
    std::function<uint64_t()> now_ns;
    std::function<ArenaView(SpaceId)> arena;
    std::function<void(TaskDone)> done;
    std::function<bool()> interrupted;  // something came that may be more urgent
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

  static constexpr uint64_t kTurnNs = 5'000;
  static constexpr uint64_t kTaskNs = 250;
  static constexpr uint64_t kSavedNs = 32'000;  // a put of 256 KiB
  static constexpr uint64_t kBytesPerNs = 16;   // copied at best

  // At least one turn, then more until the slice ends or it is interrupted. True: there is more to
  // do.
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
    uint32_t sentence = 0;  // where it goes on
    uint32_t layer = 0;
    uint32_t kv_head = 0;
    // Copies.
    bool around_caches = false;
    uint32_t sum = 0;                   // of checksum_chunks
    OpenSums::Sum* open_sum = nullptr;  // of the chunk that is being written
    std::vector<TaskDone::Sum> whole;   // of this sentence
    // Vectors.
    std::optional<VectorsLayout> vectors;
    std::shared_ptr<std::vector<std::byte>> blob;  // derive: of the current sentence
    uint64_t from = 0;                             // vectors copy: bytes taken
  };
  struct Queue {
    SessionId session{};
    std::list<Job> jobs;
  };
  struct Unit {
    uint64_t bytes = 0;
    bool last = false;
  };

  template <typename Task>
  void add(SessionId session, Task task);
  std::list<Queue>::iterator next_turn();
  uint64_t work(Queue& queue);
  void end_job(Queue& queue);
  Unit step(Job& job);
  Result<void> start(Job& job, const CopyTask& task);
  Result<void> start(Job& job, const DeriveTask& task);
  Result<void> start(Job& job, const CopyVectorsTask& task);
  Unit unit(Job& job, const CopyTask& task);
  Unit unit(Job& job, const DeriveTask& task);
  Unit unit(Job& job, const CopyVectorsTask& task);
  uint64_t put_unit(Job& job, const CopyTask& task);
  void layer_written(Job& job, const CopyTask& task);
  uint64_t load_unit(const Job& job, const CopyTask& task);
  uint64_t sum_unit(Job& job, const CopyTask& task);

  Hooks hooks_;
  DataCounters& counters_;
  std::list<Queue> queues_;  // none is empty; who was served last is behind its equals
  FairTurns fair_{kSavedNs};
  uint64_t now_ns_ = 0;  // when the last unit ended
  std::list<Queue> spare_queues_;
  std::list<Job> spare_jobs_;
  OpenSums sums_;
  DeriveScratch derive_scratch_;
};

}  // namespace skv
