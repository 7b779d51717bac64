#include "tests/client/fake_server.h"

#include <poll.h>
#include <unistd.h>

#include <cstring>

#include "ipc/layout/body_layout.h"

namespace skv::test {
namespace {

constexpr uint64_t kStagingBytes = 64 * 1024;
constexpr uint64_t kHostBytes = 1024 * 1024;
constexpr uint32_t kSentenceTokens = 32;
constexpr uint32_t kSentenceBlocks = 4;

template <typename T>
T value_of(Result<T> result) {
  SKV_CHECK(result.ok(), result.error().message.c_str());
  return std::move(result).value();
}

template <typename Message>
Message body_of(const Frame& frame) {
  return value_of(decode_body<Message>(frame.body));
}

// One entry per head, in the buffer that `current` does not name.
void publish(MappedMemory& tables, uint32_t width, uint64_t version, const SubmissionEntry& entry) {
  const BodyLayout layout(small_model());
  uint64_t at = kWindowHeaderBytes;
  for (uint32_t layer = 0; layer < layout.layer_count(); ++layer) {
    const uint32_t heads = layout.kv_heads(layer);
    const TableLayout table = TableLayout::of(heads, width);
    std::byte* base = tables.data() + at;
    at += sizeof(LayerTableHeader) + 2 * table.bytes;
    if (layer < entry.first_layer || layer >= entry.first_layer + entry.layer_count) continue;
    auto& current = reinterpret_cast<LayerTableHeader*>(base)->current;
    const uint64_t buffer = 1 - (current.load() & 1);
    std::byte* to = base + sizeof(LayerTableHeader) + buffer * table.bytes;
    TableHeader header{};
    header.version = version;
    header.covered_to = kSentenceTokens;
    header.entry_count = heads;
    header.head_count = heads;
    header.unread_mass = 0.25F;
    std::memcpy(to, &header, sizeof header);
    for (uint32_t head = 0; head <= heads; ++head) {
      std::memcpy(to + table.indptr + 4 * head, &head, 4);
    }
    for (uint32_t head = 0; head < heads; ++head) {
      const float score = 0.5F;
      std::memcpy(to + table.slot + 4 * head, &head, 4);
      std::memcpy(to + table.score + 4 * head, &score, 4);
    }
    current.store(version << 1 | buffer, std::memory_order_release);
  }
}

}  // namespace

ModelDescriptor small_model() {
  ModelDescriptor model;
  model.weights_id = "small";
  model.dtype = BodyDtype::kFp16;
  model.rotary_tables.push_back(
      RotaryTable{8, 0, RotaryPairing::kHalfSplit, 1.0F, {1.0F, 0.5F, 0.25F, 0.125F}});
  for (const uint16_t heads : {1, 2}) {
    LayerDescriptor layer;
    layer.kv_heads = heads;
    layer.queries_per_kv_head = 2;
    layer.k_dim = 16;
    layer.v_dim = 16;
    layer.softmax_scale = 0.25F;
    layer.rotary_index = 0;
    model.layers.push_back(layer);
  }
  return model;
}

FakeServer::FakeServer() {
  static std::atomic<int> number{0};
  path_ = "/tmp/skv-fake-" + std::to_string(::getpid()) + "-" + std::to_string(number++) + ".sock";
  start();
}

FakeServer::~FakeServer() { stop(); }

void FakeServer::start() {
  ++instance_;
  host_ = value_of(create_shared_memory("fake-host", kHostBytes));
  listener_ = value_of(listen_on(ListenOptions{path_, 0600, 128}));
  stopping_ = false;
  thread_ = std::thread([this] { run(); });
}

void FakeServer::stop() {
  if (!thread_.joinable()) return;
  stopping_ = true;
  thread_.join();
  listener_.reset();
  ::unlink(path_.c_str());
}

void FakeServer::on(Verb verb, Twist twist, int times) {
  const std::lock_guard lock(mutex_);
  if (twist.late) late_released_ = false;
  twists_[verb] = {std::move(twist), times};
}

void FakeServer::always_well() {
  const std::lock_guard lock(mutex_);
  twists_.clear();
}

void FakeServer::set_path_blocks(std::vector<uint8_t> blocks) {
  const std::lock_guard lock(mutex_);
  path_blocks_ = std::move(blocks);
}

size_t FakeServer::count(Verb verb) {
  const std::lock_guard lock(mutex_);
  size_t found = 0;
  for (const auto& [seen, body] : log_) found += seen == verb ? 1 : 0;
  return found;
}

void FakeServer::forget_received() {
  const std::lock_guard lock(mutex_);
  log_.clear();
}

std::optional<FakeServer::Twist> FakeServer::take_twist(Verb verb) {
  const std::lock_guard lock(mutex_);
  const auto found = twists_.find(verb);
  if (found == twists_.end() || found->second.second == 0) return std::nullopt;
  if (found->second.second > 0) --found->second.second;
  return found->second.first;
}

void FakeServer::run() {
  while (!stopping_) {
    std::vector<pollfd> watched{{listener_.get(), POLLIN, 0}};
    for (const auto& client : clients_) {
      watched.push_back({client->socket.fd(), POLLIN, 0});
      for (Channel& channel : client->channels) {
        (void)channel.rings.prepare_sleep();
        watched.push_back({channel.rings.doorbell_fd(), POLLIN, 0});
      }
    }
    ::poll(watched.data(), watched.size(), 2);
    auto accepted = accept_from(listener_.get());
    if (accepted.ok() && accepted.value()) {
      clients_.push_back(std::make_unique<Client>());
      clients_.back()->socket = FrameSocket(std::move(*accepted.value()));
    }
    for (const auto& client : clients_) {
      serve_channels(*client, prefetch_silent_);
      serve(*client);
    }
    // One that has not been held yet is released when it is.
    if (!late_.empty() && late_released_.exchange(false)) {
      for (auto& [client, held] : std::exchange(late_, {})) send(*client, held);
    }
    std::erase_if(late_, [](const auto& held) { return held.first->gone; });
    std::erase_if(clients_, [this](const auto& client) {
      if (client->gone) channels_open_ -= static_cast<uint32_t>(client->channels.size());
      return client->gone;
    });
  }
  late_.clear();
  clients_.clear();
  channels_open_ = 0;
}

void FakeServer::serve(Client& client) {
  while (!client.gone) {
    Frame request;
    const auto got = client.socket.receive(request);
    if (got.ok() && got.value() == ReceiveOutcome::kWouldBlock) return;
    if (!got.ok() || got.value() == ReceiveOutcome::kClosed) {
      client.gone = true;
      return;
    }
    serve_one(client, request, Route{});
  }
}

void FakeServer::serve_one(Client& client, Frame& request, const Route& route) {
  const auto verb = static_cast<Verb>(request.header.verb);
  const std::optional<Twist> twist = take_twist(verb);
  Answer well = answer(client, request);
  well.route = route;
  {
    const std::lock_guard lock(mutex_);
    log_.emplace_back(verb, std::move(request.body));
  }
  if (!twist) return send(client, well);
  if (twist->silent) return;
  if (twist->hang_up) {
    client.gone = true;
    client.socket.close();
    return;
  }
  if (twist->error)
    return send(client, {encode_error_reply(request.header, *twist->error), {}, route});
  if (twist->change) {
    Frame reply;
    std::memcpy(&reply.header, well.frame.data(), sizeof reply.header);
    reply.body.assign(well.frame.begin() + sizeof reply.header, well.frame.end());
    reply.fds = std::move(well.fds);
    twist->change(reply);
    reply.header.body_bytes = static_cast<uint32_t>(reply.body.size());
    well.frame.resize(sizeof reply.header);
    std::memcpy(well.frame.data(), &reply.header, sizeof reply.header);
    well.frame.insert(well.frame.end(), reply.body.begin(), reply.body.end());
    well.fds = std::move(reply.fds);
  }
  if (twist->late) {
    late_.emplace_back(&client, std::move(well));
    return;
  }
  send(client, well);
}

void FakeServer::send(Client& client, const Answer& answer) {
  if (answer.route.channel != 0) {
    for (Channel& channel : client.channels) {
      if (channel.id != answer.route.channel) continue;
      CompletionEntry completion{};
      completion.ticket = answer.route.entry.ticket;
      completion.reply_bytes = static_cast<uint32_t>(answer.frame.size());
      channel.rings.write_argument(answer.route.entry, std::as_bytes(std::span(answer.frame)));
      SKV_CHECK(channel.rings.complete(completion).ok(), "the client broke its ring");
    }
    return;
  }
  std::vector<int> fds;
  for (const UniqueFd& fd : answer.fds) fds.push_back(fd.get());
  const auto sent = client.socket.send(answer.frame, fds);
  if (!sent.ok()) client.gone = true;
}

FakeServer::Answer FakeServer::answer_hello(const Frame& request) {
  HelloReply reply;
  reply.version = kProtocolVersion;
  reply.daemon_version = "fake";
  reply.instance.fill(instance_);
  reply.session = next_id_++;
  reply.device_kind = "emulated";
  reply.staging_bytes = kStagingBytes;
  reply.host_bytes = kHostBytes;
  reply.reply_deadline_ms = 10'000;
  Answer answer{encode_reply(request.header, reply, 2), {}};
  answer.fds.push_back(value_of(create_shared_memory("fake-staging", kStagingBytes)));
  answer.fds.push_back(value_of(reopen_read_only(host_.get())));
  return answer;
}

FakeServer::Answer FakeServer::answer_append(Client& client, const Frame& request) {
  const auto append = body_of<ContextAppend>(request);
  uint32_t& tokens = client.context_tokens[append.context];
  uint32_t& sentences = client.context_sentences[append.context];
  if (append.first_position != tokens) {
    const Error gap{ErrorCode::kInvalidArgument, "first_position"};
    return {encode_error_reply(request.header, gap), {}};
  }
  tokens += static_cast<uint32_t>(append.tokens.size());
  ContextAppendReply reply;
  reply.token_count = tokens;
  reply.first_sentence = sentences;
  for (; sentences < tokens / kSentenceTokens; ++sentences) {
    reply.closed_blocks.push_back(kSentenceBlocks);
  }
  return {encode_reply(request.header, reply), {}};
}

FakeServer::Answer FakeServer::answer_match(const Frame& request) {
  MatchReply reply;
  const std::lock_guard lock(mutex_);
  reply.path_blocks = path_blocks_;
  for (const uint8_t blocks : path_blocks_) reply.hit_tokens += 8U * blocks;
  reply.outcome =
      static_cast<uint8_t>(path_blocks_.empty() ? MatchOutcome::kMiss : MatchOutcome::kHit);
  return {encode_reply(request.header, reply), {}};
}

FakeServer::Answer FakeServer::answer_window(Client& client, const Frame& request) {
  const auto open = body_of<WindowOpen>(request);
  const BodyLayout layout(small_model());
  WindowOpenReply reply;
  reply.window = next_id_++;
  reply.width = open.budget_blocks + open.sink_blocks + open.recent_blocks;
  reply.slot_unit_bytes = layout.block_bytes(0);
  reply.slots_bytes = 16 * kPageBytes;
  reply.tables_bytes = kWindowHeaderBytes;
  for (uint32_t layer = 0; layer < layout.layer_count(); ++layer) {
    reply.tables_bytes +=
        sizeof(LayerTableHeader) + 2 * TableLayout::of(layout.kv_heads(layer), reply.width).bytes;
  }
  Answer answer{encode_reply(request.header, reply, 2), {}};
  answer.fds.push_back(value_of(create_shared_memory("fake-tables", reply.tables_bytes)));
  answer.fds.push_back(value_of(create_shared_memory("fake-slots", reply.slots_bytes)));
  Window window;
  window.width = reply.width;
  window.tables = value_of(
      MappedMemory::map(answer.fds[0].get(), reply.tables_bytes, MappedMemory::Access::kReadWrite));
  auto& header = *reinterpret_cast<WindowHeader*>(window.tables.data());
  header.magic = kWindowMagic;
  header.version = 1;
  header.layer_count = layout.layer_count();
  header.width = reply.width;
  header.slot_unit_bytes = reply.slot_unit_bytes;
  header.slots_bytes = reply.slots_bytes;
  client.windows.emplace(reply.window, std::move(window));
  return answer;
}

FakeServer::Answer FakeServer::answer_channel(Client& client, const Frame& request) {
  ChannelParts parts;
  DaemonChannel rings =
      value_of(DaemonChannel::create(body_of<ChannelOpen>(request).argument_area_bytes, parts));
  const ChannelOpenReply reply{next_id_++, parts.bytes, parts.argument_area_offset};
  client.channels.push_back(Channel{reply.channel, std::move(rings)});
  ++channels_open_;
  Answer answer{encode_reply(request.header, reply, 3), {}};
  answer.fds.push_back(std::move(parts.memory));
  answer.fds.push_back(std::move(parts.daemon_doorbell));
  answer.fds.push_back(std::move(parts.client_doorbell));
  return answer;
}

FakeServer::Answer FakeServer::answer_load(const Frame& request) {
  const auto load = body_of<Load>(request);
  LoadReply reply;
  reply.host_chunks = load.sentence_count;
  reply.bytes = 100;
  if (load.in_place != 0) {
    const BodyLayout layout(small_model());
    const uint32_t chunks = layout.chunk_of(load.first_layer + load.layer_count - 1) -
                            layout.chunk_of(load.first_layer) + 1;
    reply.lease = next_id_++;
    for (uint32_t i = 0; i < load.sentence_count * chunks; ++i) {
      reply.extents.push_back(uint64_t{i} * 16 * kPageBytes % (kHostBytes / 2));
    }
  }
  return {encode_reply(request.header, reply), {}};
}

FakeServer::Answer FakeServer::answer(Client& client, const Frame& request) {
  const FrameHeader& header = request.header;
  const auto outcomes = [&](uint32_t count, PutOutcome outcome) {
    PutOutcomes reply;
    reply.outcomes.assign(count, static_cast<uint8_t>(outcome));
    return Answer{encode_reply(header, reply), {}};
  };
  switch (static_cast<Verb>(header.verb)) {
    case Verb::kHello:
      return answer_hello(request);
    case Verb::kModelOpen: {
      const auto open = body_of<ModelOpen>(request);
      const ModelDescriptor model =
          value_of(decode_model(open.descriptor.data(), open.descriptor.size()));
      const ModelOpenReply reply{next_id_++, fingerprint(model), BodyLayout(model).chunk_count()};
      return {encode_reply(header, reply), {}};
    }
    case Verb::kContextOpen:
      return {encode_reply(header, ContextOpenReply{next_id_++}), {}};
    case Verb::kContextAppend:
      return answer_append(client, request);
    case Verb::kMatch:
      return answer_match(request);
    case Verb::kMemoryRegister:
      return {encode_reply(header, MemoryRegisterReply{next_id_++}), {}};
    case Verb::kPutReserve:
      return outcomes(body_of<PutReserve>(request).sentence_count, PutOutcome::kReserved);
    case Verb::kPutCommit:
      return outcomes(body_of<PutCommit>(request).sentence_count, PutOutcome::kCommitted);
    case Verb::kPutCancel:
      return outcomes(body_of<PutCancel>(request).sentence_count, PutOutcome::kCancelled);
    case Verb::kVectorsDerive:
      return outcomes(body_of<VectorsDerive>(request).sentence_count, PutOutcome::kCommitted);
    case Verb::kVectorsPut:
      return outcomes(body_of<VectorsPut>(request).sentence_count, PutOutcome::kCommitted);
    case Verb::kWindowOpen:
      return answer_window(client, request);
    case Verb::kChannelOpen:
      return answer_channel(client, request);
    case Verb::kChannelClose: {
      const uint32_t id = body_of<ChannelClose>(request).channel;
      channels_open_ -= static_cast<uint32_t>(
          std::erase_if(client.channels, [id](const Channel& each) { return each.id == id; }));
      return {encode_reply(header, Empty{}), {}};
    }
    case Verb::kLoad:
      return answer_load(request);
    case Verb::kLeaseMapOpen:  // leases by messages
      return {encode_error_reply(header, {ErrorCode::kUnsupported, "no lease maps"}), {}};
    case Verb::kFlush:
      return {encode_reply(header, FlushReply{7}), {}};
    case Verb::kDrop:
      return {encode_reply(header, DropReply{3, 1}), {}};
    case Verb::kStat:
      return {encode_reply(header, StatReply{"{\"fake\":true}", 0}), {}};
    default:
      return {encode_reply(header, Empty{}), {}};
  }
}

CompletionEntry FakeServer::prefetch(Client& client,
                                     Channel& channel,
                                     const SubmissionEntry& entry) {
  CompletionEntry completion{};
  completion.ticket = entry.ticket;
  std::vector<PrefetchRow> rows(entry.row_count);
  channel.rings.copy_argument(entry, 0, std::as_writable_bytes(std::span(rows)));
  for (PrefetchRow& row : rows) {
    const auto window = client.windows.find(row.window);
    if (window == client.windows.end()) {
      row.status = static_cast<int32_t>(ErrorCode::kUnknownHandle);
      completion.status = row.status;
      continue;
    }
    row.covered_to = kSentenceTokens;
    row.hits_host = entry.layer_count;
    if (entry.verb == static_cast<uint32_t>(ChannelVerb::kGuess)) continue;
    row.version = ++window->second.version;
    publish(window->second.tables, window->second.width, row.version, entry);
  }
  channel.rings.write_argument(entry, std::as_bytes(std::span(rows)));
  return completion;
}

void FakeServer::serve_channels(Client& client, bool silent) {
  for (Channel& channel : client.channels) {
    channel.rings.awake();
    channel.rings.drain();
    for (;;) {
      const auto next = channel.rings.next();
      if (!next.ok() || !next.value()) break;
      const SubmissionEntry& entry = *next.value();
      SKV_CHECK(channel.rings.check_argument(entry).ok(), "an argument in its area");
      if (entry.verb == static_cast<uint32_t>(ChannelVerb::kRequest)) {
        std::vector<uint8_t> bytes(entry.argument_bytes);
        channel.rings.copy_argument(entry, 0, std::as_writable_bytes(std::span(bytes)));
        Frame request;
        request.header = value_of(decode_header(bytes));
        request.body.assign(bytes.begin() + sizeof(FrameHeader), bytes.end());
        serve_one(client, request, Route{channel.id, entry});
        if (client.gone) return;
      } else if (!silent) {
        const CompletionEntry completion = prefetch(client, channel, entry);
        SKV_CHECK(channel.rings.complete(completion).ok(), "the client broke its ring");
      }
    }
  }
}

}  // namespace skv::test
