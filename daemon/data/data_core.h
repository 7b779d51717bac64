#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <unordered_map>
#include <vector>

#include "daemon/data/copy_runner.h"
#include "daemon/data/data_messages.h"
#include "daemon/data/data_thread.h"
#include "daemon/data/feed.h"
#include "daemon/data/fill_runner.h"
#include "daemon/data/prefetch_runner.h"
#include "daemon/data/put_table.h"
#include "daemon/data/residency.h"
#include "daemon/data/statistics.h"
#include "daemon/data/window.h"
#include "ipc/channel.h"
#include "tiers/slot_pool.h"

namespace skv {

// What the data thread does, without the thread: commands in, events out, one bounded step at a
// time. Never blocks, never sleeps; time comes from DataOptions::now_ns.
//
// One step: what the pool completed -> submissions of each channel -> a slice of feeding -> a slice
// of prefetches -> a slice of copies -> answers to the loop. So a copy delays a prefetch by one
// slice at most, and one client's prefetch another's by one slice.
//
// Thread  one; the data thread, or a test.
// Owns    channels, windows, feeds, the residency mirror, tasks. The pool is borrowed.
class DataCore {
 public:
  // `watch`: called with a channel's doorbell before it is first slept on and before it is closed.
  using Watch = std::function<void(int doorbell, bool added)>;

  DataCore(const DataOptions& options, SlotPool& pool, DataCounters& counters, Watch watch = {});
  ~DataCore();
  DataCore(const DataCore&) = delete;
  DataCore& operator=(const DataCore&) = delete;

  void handle(DataCommand command);

  // One bounded step. When to take the next if nothing happens before: 0 at once, UINT64_MAX only
  // when a command, a doorbell or the pool wakes.
  uint64_t step();

  // Events since they were last taken, in order. The caller may leave some: they stay.
  std::vector<DataEvent>& events() { return events_; }

  // A channel has something: for a waiter that does not sleep yet.
  bool ready();
  // A channel has something, the loop has sent something, or something waits to be sent to it.
  bool called();
  // Nothing is under way that ends by itself (moves, slabs, cold chunks): only clients and the loop
  // can bring work.
  bool idle() const { return prefetches_.count() == 0 && creating_.empty(); }
  // Before sleeping: false if a channel has something. awake() afterwards either way.
  bool prepare_sleep();
  void awake();

  uint64_t now_ns() const { return options_.now_ns(); }

 private:
  // Slices of prefetches before a look around, while nothing else goes on.
  static constexpr uint32_t kSlicesAlone = 10;

  // An entry between being taken and being completed.
  struct Submission {
    SubmissionEntry entry{};
    CompletionEntry result{};
    std::vector<PrefetchRow> rows;  // answers
    uint32_t rows_left = 0;
    uint32_t use = 0;  // tells the submissions of one place apart
  };
  struct Channel {
    SessionId session{};
    DaemonChannel ring;
    uint64_t argument_bytes_max = 0;  // private copies of arguments in flight
    uint64_t argument_bytes = 0;
    bool stopped = false;                   // the client broke a rule
    std::vector<Submission> submissions{};  // kChannelEntries places
    uint64_t places_used = 0;               // a bit each
  };
  static_assert(kChannelEntries == 64, "a bit per submission in flight");

  struct VectorSpace {
    uint64_t bytes = 0;  // at most
    std::shared_ptr<VectorArena> arena;
  };

  // A chunk that was hidden from clients which read it in place without asking.
  struct Hidden {
    struct Reader {
      std::weak_ptr<Window> window;
      uint64_t making = 0;  // when it was hidden
    };
    ExtentLease lease;
    uint64_t bytes = 0;           // of the chunk
    std::vector<Reader> readers;  // that may still read it
  };

  void on(Ping&) { emit(Pong{}); }
  void on(MapArena& command);
  void on(UnmapArena& command);
  void on(OpenChannel& command);
  void on(CloseChannel& command);
  void on(ChannelReply& command);
  void on(CloseSession& command);
  void on(OpenFeed& command);
  void on(ShareFeed& command);
  void on(CloseFeed& command);
  void on(FeedSentences& command);
  void on(ChunkArrived& command);
  void on(ChunkFailed& command);
  void on(Withdraw& command);
  void on(OpenWindow& command);
  void on(FillTask& command);
  void on(CloseWindow& command);
  void on(GrantMemory& command) { puts_.grant(command); }
  void on(RevokeMemory& command) { puts_.revoke(command); }
  void on(GrantPuts& command) { puts_.grant(command); }
  void on(RevokePuts& command) { puts_.revoke(command); }
  void on(WritePuts& command);
  void on(SealPuts& command) { puts_.seal(command); }
  void on(CopyTask& command) { copies_.add(std::move(command)); }
  void on(DeriveTask& command) { copies_.add(std::move(command)); }
  void on(CopyVectorsTask& command) { copies_.add(std::move(command)); }

  void poll_pool();
  void slab_created(WindowId id, SlotPool::Completion& completion);
  void device_lost(const std::string& reason);
  bool alone();  // nothing that would have to be looked at goes on beside prefetches
  // True: a channel's turn ended before its submissions did.
  bool take_submissions();
  bool take_from(ChannelId id, Channel& channel);
  void accept(ChannelId id, Channel& channel, const SubmissionEntry& entry);
  Result<void> accept_request(ChannelId id, Channel& channel, uint64_t number);
  // A put_write of what was granted: served here, without the loop.
  bool write(ChannelId id, const Channel& channel, uint64_t number, std::span<const uint8_t> frame);
  void reply(ChannelId id, uint64_t number, std::span<const uint8_t> frame);
  Result<void> accept_rows(ChannelId id, Channel& channel, uint64_t number);
  Result<std::shared_ptr<Window>> window_of_row(const Channel& channel,
                                                const SubmissionEntry& entry,
                                                const PrefetchRow& row) const;
  void complete(const Prefetch& prefetch);
  void complete(Channel& channel, Submission& submission);
  void protocol_error(Channel& channel, const std::string& message);
  bool feed_slice(uint64_t end_ns);
  std::shared_ptr<VectorArena> vector_arena(SpaceId space);
  void ask(SpaceId space, const ChunkRef& chunk, bool urgent);
  void answer_loop();
  // Lets go of hidden chunks that no client which ranks can still be reading.
  void release_hidden();
  void collect_marks();
  void finish_closing();
  void opened(Window& window, Result<WindowOpened::Parts> parts);
  void remove_channel(std::map<ChannelId, Channel>::iterator channel);
  uint64_t next_wake_ns(bool more) const;
  void emit(DataEvent event) { events_.push_back(std::move(event)); }

  DataOptions options_;
  SlotPool& pool_;
  DataCounters& counters_;
  Watch watch_;
  std::vector<DataEvent> events_;
  Residency residency_;  // outlives leases of windows and prefetches
  std::unordered_map<SpaceId, ArenaView> arenas_;
  std::shared_ptr<ArenaWarmer> warmer_ = std::make_shared<ArenaWarmer>();  // of vector arenas
  std::unordered_map<SpaceId, VectorSpace> vector_spaces_;
  std::unordered_map<FeedId, std::shared_ptr<Feed>> feeds_;
  std::map<WindowId, std::shared_ptr<Window>> windows_;
  std::map<WindowId, UniqueFd> tables_to_send_;  // of windows being created
  std::map<ChannelId, Channel> channels_;
  std::set<SessionId> closing_sessions_;
  std::vector<Hidden> hidden_;
  uint32_t ranking_clients_ = 0;  // windows
  uint64_t collected_ns_ = 0;
  PrefetchRunner prefetches_;
  FillRunner fills_;
  CopyRunner copies_;
  PutTable puts_;
  std::unordered_map<uint64_t, WindowId> creating_;                   // by pool ticket
  std::map<std::pair<SpaceId, bool>, std::vector<ChunkRef>> needed_;  // by (space, urgent)
  uint64_t next_ticket_ = 1;
  uint64_t touched_sent_ns_ = 0;
  ChannelId next_channel_{};  // whose turn it is
};

}  // namespace skv
