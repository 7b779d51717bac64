#include "daemon/daemon.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <set>
#include <thread>
#include <utility>

#include "daemon/limits.h"
#include "daemon/status.h"
#include "daemon/verbs.h"
#include "tiers/move_copier.h"
#include "tiers/slot_pool.h"
#include "tiers/worker/protocol.h"

namespace skv {
namespace {

constexpr uint64_t kMs = 1'000'000;
constexpr uint64_t kPlacementPollNs = 2 * kMs;
constexpr uint64_t kHousekeepingNs = 1'000 * kMs;

Result<std::unique_ptr<SlotPool>> make_pool(const Config& config, const std::string& program) {
  SlotPoolOptions options;
  options.kind = name(config.device_kind);
  options.budget_bytes = config.device_kind == DeviceKind::kNone ? 0 : config.device_budget_bytes;
  options.worker_program = program;
  options.copy_threads = config.device_copy_threads != 0
                             ? config.device_copy_threads
                             : MoveCopier::default_threads(std::thread::hardware_concurrency());
  if (!config.device_uuid.empty()) {
    const auto uuid = parse_uuid(config.device_uuid);
    if (!uuid.has_value()) {
      return Error{ErrorCode::kInvalidArgument,
                   "tiers.device.uuid \"" + config.device_uuid + "\" is not a UUID"};
    }
    options.device_uuid = *uuid;
  }
  return make_slot_pool(options);
}

}  // namespace

Daemon::Daemon(Options options)
    : options_(std::move(options)), config_(options_.config), manager_(*options_.manager) {}

Result<std::unique_ptr<Daemon>> Daemon::start(Options options) {
  std::unique_ptr<Daemon> daemon(new Daemon(std::move(options)));
  for (const std::string& line : limits_text(daemon->config_)) {
    spdlog::info("{}", line);
  }
  daemon->manager_.status("opening the tiers");
  Result<UniqueFd> lock = Server::lock(daemon->config_.socket_path);
  if (!lock.ok()) {
    return lock.error();
  }
  for (const auto step : {&Daemon::open_tiers, &Daemon::open_data, &Daemon::recover}) {
    if (const Result<void> done = (daemon.get()->*step)(); !done.ok()) {
      return done.error();
    }
  }
  if (const Result<void> listens = daemon->listen(std::move(lock).value()); !listens.ok()) {
    return listens.error();
  }
  daemon->core_->health = "ok";
  daemon->watch_signals();
  daemon->manager_.ready("serving " + daemon->config_.socket_path);
  spdlog::info("skvd {} serves {}", SKV_VERSION, daemon->config_.socket_path);
  return daemon;
}

Result<void> Daemon::open_tiers() {
  Result<std::unique_ptr<HostStore>> host =
      HostStore::create({config_.host_budget_bytes, config_.host_slab_bytes,
                         std::min(config_.host_warm_bytes, config_.host_budget_bytes / 8)});
  if (!host.ok()) {
    return host.error();
  }
  host_ = std::move(host).value();
  if (config_.has_nvme()) {
    NvmeStore::Options options;
    options.file_bytes = config_.nvme_bytes;
    options.segment_bytes = config_.nvme_segment_bytes;
    options.progress = [this, told_ns = uint64_t{0}](uint32_t percent) mutable {
      // A manager reads slowly, and sd_notify waits for it.
      if (loop_.now_ns() - told_ns < 250 * kMs) {
        return;
      }
      told_ns = loop_.now_ns();
      manager_.status("recovering the NVMe tier: " + std::to_string(percent) + " %");
      manager_.extend_timeout(60'000 * kMs);
    };
    Result<std::unique_ptr<NvmeStore>> nvme = NvmeStore::open(config_.nvme_path, options);
    if (!nvme.ok()) {
      return Error{nvme.error().code, "tiers.nvme: " + nvme.error().message};
    }
    nvme_ = std::move(nvme).value();
  }
  uint64_t seed = 0;
  const Digest random = random_digest();
  std::memcpy(&seed, random.bytes.data(), sizeof seed);
  directory_ = std::make_unique<Directory>(seed);
  return {};
}

Result<void> Daemon::open_data() {
  Result<std::unique_ptr<SlotPool>> pool = make_pool(config_, options_.worker_program);
  if (!pool.ok()) {
    return Error{pool.error().code, "tiers.device: " + pool.error().message};
  }
  const std::string kind = pool.value()->kind();
  const std::array<uint8_t, 16> uuid = pool.value()->device_uuid();

  data_watch_ = std::make_unique<AsyncWatch>(loop_, [this] { drain_data(); });
  DataOptions options;
  options.spin_us = static_cast<uint32_t>(config_.data_spin_ns / 1000);
  options.spin_cores = config_.data_spin_cores;
  options.recall_every = config_.data_recall_every;
  options.wait_deadline_us =
      static_cast<uint32_t>(std::min<uint64_t>(config_.wait_deadline_ns / 1000, 3'600'000'000ULL));
  options.wait_deadline_us_max = std::max(options.wait_deadline_us, options.wait_deadline_us_max);
  options.commands_max = kDataCommandsMax;
  Result<std::unique_ptr<DataThread>> data = DataThread::start(
      options, std::move(pool).value(), [watch = data_watch_.get()] { watch->send(); });
  if (!data.ok()) {
    return data.error();
  }
  data_ = std::move(data).value();

  feeds_ = std::make_unique<Feeds>(loop_, *directory_, *data_);
  directory_->add_listener(feeds_.get());
  lease_maps_ = std::make_unique<LeaseMaps>(
      loop_, *directory_,
      LeaseMaps::Limits{config_.session_contexts_max, config_.in_place_bytes()});
  directory_->add_listener(lease_maps_.get());
  placement_ = std::make_unique<Placement>(
      PlacementOptions{}, Placement::Parts{directory_.get(), host_.get(), nvme_.get(), feeds_.get(),
                                           lease_maps_.get()});
  directory_->set_leaf_watcher(placement_.get());
  feeds_->set_placement(placement_.get());
  lease_maps_->set_placement(placement_.get());
  tasks_ = std::make_unique<Tasks>(*placement_);
  core_ = std::make_unique<Core>(Core::Parts{&config_, &loop_, directory_.get(), host_.get(),
                                             nvme_.get(), placement_.get(), data_.get(),
                                             feeds_.get(), lease_maps_.get(), tasks_.get()});
  core_->device_kind = kind;
  core_->device_uuid = uuid;
  core_->close_connection = [](Session& session, const std::string& why) {
    session.connection->close(why);
  };
  core_->session_ended = [this] { drain_next(); };
  core_->serve = [this](ChannelRequest request) { on_request(std::move(request)); };
  core_->data_statistics = [this] { return data_->statistics(); };
  return {};
}

Result<void> Daemon::recover() {
  if (nvme_ == nullptr) {
    return {};
  }
  manager_.status("rebuilding the directory");
  std::set<uint32_t> uids;
  for (const BodyRecordRef& record : nvme_->records()) {
    uids.insert(record->space_uid);
  }
  for (const uint32_t uid : uids) {
    if (const Result<Space*> space = core_->space_of(uid); !space.ok()) {
      return space.error();
    }
  }
  placement_->recover();
  spdlog::info("{} sentences came back from {}", directory_->sentence_count(), config_.nvme_path);
  Result<std::unique_ptr<PollWatch>> watch = PollWatch::open(loop_, nvme_->wake_fd(), [this](int) {
    nvme_->drain();
    after_work();
  });
  if (!watch.ok()) {
    return watch.error();
  }
  nvme_watch_ = std::move(watch).value();
  nvme_watch_->watch(UV_READABLE);
  return {};
}

Result<void> Daemon::listen(UniqueFd lock) {
  placement_timer_ = std::make_unique<TimerWatch>(loop_, [this] { after_work(); });
  housekeeping_timer_ = std::make_unique<TimerWatch>(loop_, [this] { housekeeping(); });
  housekeeping_timer_->start(kHousekeepingNs, kHousekeepingNs);
  drain_timer_ = std::make_unique<TimerWatch>(loop_, [this] { drain(); });
  if (const uint64_t watchdog_ns = manager_.watchdog_ns(); watchdog_ns != 0) {
    watchdog_timer_ = std::make_unique<TimerWatch>(loop_, [this] { watchdog(); });
    watchdog_timer_->start(watchdog_ns / 2, watchdog_ns / 2);
  }
  Result<std::unique_ptr<Server>> server = Server::open(
      loop_, {config_.socket_path, config_.socket_mode, config_.socket_group, std::move(lock)},
      [this](UniqueFd socket) { accepted(std::move(socket)); });
  if (!server.ok()) {
    return server.error();
  }
  server_ = std::move(server).value();
  return {};
}

void Daemon::watch_signals() {
  for (const int signal : {SIGTERM, SIGINT}) {
    signals_.push_back(std::make_unique<SignalWatch>(loop_, signal, [this, signal] {
      spdlog::info("{}", signal == SIGTERM ? "SIGTERM" : "SIGINT");
      drain();
    }));
  }
  signals_.push_back(std::make_unique<SignalWatch>(loop_, SIGHUP, [] {
    spdlog::warn("SIGHUP: reloading the configuration is not supported yet, restart instead");
  }));
}

void Daemon::run() { loop_.run(); }

// Sessions first, while the data thread that may touch their memory is stopped; then the parts in
// the reverse order of their making.
Daemon::~Daemon() {
  server_.reset();
  signals_.clear();
  drain_timer_.reset();
  watchdog_timer_.reset();
  housekeeping_timer_.reset();
  placement_timer_.reset();
  if (data_ != nullptr) {
    data_->stop();
  }
  if (core_ != nullptr) {
    core_->session_ended = nullptr;
    while (!core_->sessions.empty()) {
      const SessionId id = core_->sessions.begin()->first;
      placement_->end_session(id);
      feeds_->leases_ended(id);
      core_->finish_session(id);
    }
  }
  nvme_watch_.reset();
  core_.reset();
  tasks_.reset();
  nvme_.reset();  // before what its callbacks would touch; it waits for its transfers
  placement_.reset();
  lease_maps_.reset();
  feeds_.reset();
  data_.reset();
  data_watch_.reset();
  directory_.reset();
  host_.reset();
}

// ---- sessions -----------------------------------------------------------------------------------

void Daemon::accepted(UniqueFd socket) {
  if (core_->sessions.size() >= config_.sessions_max + kGreetingsMax) {
    ++core_->counters.sessions_refused;
    return;
  }
  const auto id = core_->next_id<SessionId>();
  Connection::Events events;
  events.frame = [this, id](Frame& frame) { on_frame(id, frame); };
  events.closing = [this, id](const std::string& why, Connection::Cause cause) {
    on_closing(id, why, cause);
  };
  events.gone = [this, id] { on_gone(id); };
  Result<std::unique_ptr<Connection>> connection =
      Connection::open(loop_, std::move(socket), {config_.session_send_queue, kSendQueueBytesMax},
                       std::move(events));
  if (!connection.ok()) {
    spdlog::warn("a client cannot be served: {}", connection.error().message);
    return;
  }
  auto session = std::make_unique<Session>();
  session->id = id;
  session->opened_ns = loop_.now_ns();
  session->connection = std::move(connection).value();
  core_->sessions.emplace(id, std::move(session));
}

void Daemon::on_frame(SessionId id, Frame& frame) {
  Session* const session = core_->find_session(id);
  if (session == nullptr || session->connection->closing()) {
    return;
  }
  serve(*session, frame, [this, id](std::vector<uint8_t> answer, std::vector<UniqueFd> fds) {
    send(id, std::move(answer), std::move(fds));
  });
}

// The same by a channel. The data thread gets one answer for every request, so that the place of
// its argument is the client's again.
void Daemon::on_request(ChannelRequest request) {
  const auto send_by_channel = [this, id = request.session, channel = request.channel,
                                number = request.request](std::vector<uint8_t> answer,
                                                          const std::vector<UniqueFd>&) {
    Session* const session = core_ == nullptr ? nullptr : core_->find_session(id);
    if (session == nullptr || session->state == SessionState::kEnding) {
      return;  // the data thread has heard, or is about to, that the channel is gone
    }
    answered(*session, answer);
    data_->post(ChannelReply{channel, number, std::move(answer)});
  };
  Session* const session = core_->find_session(request.session);
  if (session == nullptr || session->connection->closing()) {
    return;
  }
  const Result<FrameHeader> header = decode_header(request.frame);
  if (!header.ok() || header.value().fd_count != 0) {
    ++core_->counters.protocol_errors;
    session->connection->close(header.ok() ? "a frame by channel announces descriptors"
                                           : header.error().message);
    return;
  }
  Frame frame;
  frame.header = header.value();
  frame.body.assign(request.frame.begin() + sizeof(FrameHeader), request.frame.end());
  frame.by_channel = true;
  serve(*session, frame, send_by_channel);
}

void Daemon::serve(Session& session, Frame& frame, Reply::Send send) {
  ++core_->counters.requests;
  ++session.requests_total;
  if (frame.header.is_reply != 0) {
    ++core_->counters.protocol_errors;
    session.connection->close("it sent a reply");
    return;
  }
  ++session.requests_in_flight;
  const auto reply = std::make_shared<Reply>(frame.header, std::move(send));
  if (session.requests_in_flight > config_.session_requests_max) {
    reply->error(limit_error("sessions.requests", session.requests_in_flight - 1,
                             config_.session_requests_max));
    return;
  }
  if (const Result<void> done = dispatch(*core_, session, frame, reply); !done.ok()) {
    ++core_->counters.protocol_errors;
    session.connection->close(done.error().message);
  }
  if (!frames_queued_) {  // once for all frames of this turn
    frames_queued_ = true;
    loop_.post([this] {
      frames_queued_ = false;
      after_work();
    });
  }
}

void Daemon::send(SessionId id, std::vector<uint8_t> frame, std::vector<UniqueFd> fds) {
  Session* const session = core_ == nullptr ? nullptr : core_->find_session(id);
  if (session == nullptr) {
    return;
  }
  answered(*session, frame);
  session->connection->send(std::move(frame), std::move(fds));
}

void Daemon::answered(Session& session, const std::vector<uint8_t>& frame) {
  FrameHeader header;
  std::memcpy(&header, frame.data(), sizeof header);
  core_->counters.errors += header.status != 0 ? 1U : 0U;
  --session.requests_in_flight;
  if (core_->draining) {
    loop_.post([this] { drain_next(); });
  }
}

void Daemon::on_closing(SessionId id, const std::string& why, Connection::Cause cause) {
  Session* const session = core_->find_session(id);
  if (session == nullptr) {
    return;
  }
  const bool greeted = session->state != SessionState::kGreeting;
  session->state = SessionState::kClosing;
  if (cause == Connection::Cause::kPeer || core_->draining) {
    spdlog::info("session {} closes: {}", raw(id), why);
  } else {
    core_->counters.slow_readers += cause == Connection::Cause::kSlow ? 1U : 0U;
    core_->counters.protocol_errors += cause == Connection::Cause::kFault ? 1U : 0U;
    spdlog::warn("session {} (pid {}, uid {}, {}) is closed: {}", raw(id),
                 session->connection->peer().pid, session->connection->peer().uid,
                 greeted ? session->name : "no hello", why);
  }
}

void Daemon::on_gone(SessionId id) {
  Session* const session = core_->find_session(id);
  if (session == nullptr) {
    return;
  }
  session->state = SessionState::kEnding;
  placement_->end_session(id);
  feeds_->leases_ended(id);
  if (session->space == nullptr) {  // never said hello: the data thread does not know it
    loop_.post([this, id] { core_->finish_session(id); });
    return;
  }
  data_->post(CloseSession{id});
}

// ---- turns of the loop --------------------------------------------------------------------------

void Daemon::drain_data() {
  while (data_->drain([this](DataEvent event) { core_->handle(std::move(event)); }) != 0) {
  }
  after_work();
}

void Daemon::after_work() {
  placement_->poll(loop_.now_ns());
  const bool wanted = placement_->next_deadline_ns() != 0;
  if (wanted != placement_timed_) {
    placement_timed_ = wanted;
    if (wanted) {
      placement_timer_->start(kPlacementPollNs, kPlacementPollNs);
    } else {
      placement_timer_->stop();
    }
  }
}

void Daemon::housekeeping() {
  const uint64_t now_ns = loop_.now_ns();
  for (const auto& [id, session] : core_->sessions) {
    if (session->state == SessionState::kGreeting &&
        now_ns - session->opened_ns > kHelloDeadlineNs) {
      session->connection->close("it said no hello");
    }
  }
  if (drain_step_ == DrainStep::kNone) {
    const HostStore::Stats host = host_->stats();
    std::string status = std::to_string(core_->sessions.size()) + " sessions, " +
                         std::to_string(directory_->sentence_count()) + " sentences, host " +
                         std::to_string(host.charged_bytes >> 20) + " of " +
                         std::to_string(host.budget_bytes >> 20) + " MiB";
    if (status != status_told_) {
      status_told_ = std::move(status);
      manager_.status(status_told_);
    }
  }
}

// This runs, so the loop turns; a data thread that hangs must show too. It is asked at each ping,
// and the manager hears of us again only once it has answered.
void Daemon::watchdog() {
  if (!core_->data_answered) {
    spdlog::error("the data thread has not answered since the last watchdog ping");
    return;
  }
  core_->data_answered = false;
  data_->post(Ping{});
  manager_.watchdog();
}

// ---- drain --------------------------------------------------------------------------------------

void Daemon::drain() {
  switch (drain_step_) {
    case DrainStep::kNone:
      drain_step_ = DrainStep::kRequests;
      core_->draining = true;
      core_->health = "draining";
      server_.reset();
      manager_.stopping("draining");
      manager_.extend_timeout(2 * config_.drain_deadline_ns + 5'000 * kMs);
      for (const auto& [id, session] : core_->sessions) {
        FrameHeader header;
        header.verb = static_cast<uint16_t>(Verb::kGoAway);
        session->connection->send(encode_frame(header, Empty{}));
      }
      drain_timer_->start(config_.drain_deadline_ns);
      loop_.post([this] { drain_next(); });
      return;
    case DrainStep::kRequests:
      drain_flush();
      return;
    case DrainStep::kFlush:
      drain_done("the deadline passed before all was on NVMe");
      return;
    case DrainStep::kDone:
      return;
  }
}

void Daemon::drain_next() {
  if (drain_step_ != DrainStep::kRequests) {
    return;
  }
  const bool busy =
      std::any_of(core_->sessions.begin(), core_->sessions.end(), [](const auto& entry) {
        return entry.second->state == SessionState::kOpen && entry.second->requests_in_flight != 0;
      });
  if (!busy) {
    drain_flush();
  }
}

void Daemon::drain_flush() {
  drain_step_ = DrainStep::kFlush;
  for (const auto& [id, session] : core_->sessions) {
    session->connection->close("the daemon stops");
  }
  if (nvme_ == nullptr) {
    drain_done("no NVMe tier");
    return;
  }
  manager_.stopping("writing to NVMe");
  drain_timer_->start(config_.drain_deadline_ns);
  placement_->flush_all([this](Result<uint64_t> durable) {
    drain_done(durable.ok() ? std::to_string(durable.value()) + " sentences are durable"
                            : durable.error().message);
  });
  after_work();
}

void Daemon::drain_done(const std::string& how) {
  if (drain_step_ == DrainStep::kDone) {
    return;
  }
  drain_step_ = DrainStep::kDone;
  spdlog::info("stopped: {}", how);
  drain_timer_->stop();
  loop_.stop();
}

}  // namespace skv
