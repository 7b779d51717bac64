// skv.h: window, load, flush, stat, wait.
#include <cstdlib>
#include <cstring>

#include "client/abi_handles.h"
#include "client/lease.h"
#include "client/requests.h"
#include "client/window.h"

using namespace skv::client;  // NOLINT: this file is the border of that namespace
using skv::Result;
using skv::Verb;

namespace {

Result<skv::WindowOpen> window_options(const skv_window_options* options) {
  SKV_TRY(from, read_struct(options, "skv_window_options"));
  if (from.cut > SKV_CUT_SENTENCE) {
    return invalid("skv_window_options::cut is " + std::to_string(from.cut) +
                   ", allowed are 0 and 1");
  }
  const uint64_t read = uint64_t{from.budget_blocks} + from.sink_blocks + from.recent_blocks;
  if (read == 0 || read > UINT32_MAX / 4) {
    return invalid("skv_window_options: budget, sinks and recents are " + std::to_string(read) +
                   " blocks together");
  }
  skv::WindowOpen to;
  to.budget_blocks = from.budget_blocks;
  to.sink_blocks = from.sink_blocks;
  to.recent_blocks = from.recent_blocks;
  to.resident_blocks = from.resident_blocks;
  if (to.resident_blocks == 0) to.resident_blocks = static_cast<uint32_t>((5 * read + 1) / 2);
  to.cut = static_cast<uint8_t>(from.cut);
  to.coarse_blocks = from.coarse_blocks;
  return to;
}

skv::Load load_of(const skv_load_options& from) {
  skv::Load load;
  load.first_sentence = from.first_sentence;
  load.sentence_count = from.sentence_count;
  load.first_layer = from.first_layer;
  load.layer_count = from.layer_count;
  load.deadline_ms = from.deadline_ms;
  return load;
}

}  // namespace

int skv_window_open(skv_context context, const skv_window_options* options, skv_window* window) {
  return guarded([&]() -> Result<void> {
    SKV_TRY(read, window_options(options));
    SKV_TRY(found, find<Context>(context));
    return open_into<Window>(window, [&] { return Window::open(found, read); });
  });
}

int skv_window_close(skv_window window) {
  return guarded([&]() -> Result<void> {
    SKV_TRY(taken, take<Window>(window));
    return taken->close();
  });
}

int skv_window_get_info(skv_window window, skv_window_info* info) {
  return guarded([&]() -> Result<void> {
    SKV_CHECK_OK(check_out_struct(info, "skv_window_info"));
    SKV_TRY(found, find<Window>(window));
    skv_window_info out{};
    out.layer_count = found->context()->model()->layout().layer_count();
    out.width = found->opened().width;
    out.slot_unit_bytes = found->opened().slot_unit_bytes;
    out.slots = found->slots()->data();
    out.slots_bytes = found->opened().slots_bytes;
    out.slots_in_host = found->opened().slots_in_host;
    out.stale = found->is_stale() ? 1 : 0;
    out.tables = found->tables()->data();
    out.tables_bytes = found->tables()->bytes();
    write_struct(info, out);
    return {};
  });
}

int skv_prefetch(skv_window window,
                 const float* query,
                 uint64_t query_bytes,
                 const skv_prefetch_options* options,
                 skv_prefetch_result* result) {
  return guarded([&]() -> Result<void> {
    if (query == nullptr) return invalid("query is NULL");
    SKV_CHECK_OK(check_out_struct(result, "skv_prefetch_result"));
    skv_prefetch_options from{};
    if (options != nullptr) {
      SKV_TRY(read, read_struct(options, "skv_prefetch_options"));
      from = read;
    }
    if (from.cold > SKV_COLD_WAIT) {
      return invalid("skv_prefetch_options::cold is " + std::to_string(from.cold) +
                     ", allowed are 0 and 1");
    }
    SKV_TRY(found, find<Window>(window));
    const Model& model = *found->context()->model();
    const uint32_t layers = model.layout().layer_count();
    if (from.layer_count == 0 && from.first_layer < layers) {
      from.layer_count = layers - from.first_layer;
    }
    SKV_TRY(expected, model.query_bytes(from.first_layer, from.layer_count));
    if (query_bytes != expected) {
      return invalid("a query over layers [" + std::to_string(from.first_layer) + ", + " +
                     std::to_string(from.layer_count) + ") has " + std::to_string(expected) +
                     " bytes, " + std::to_string(query_bytes) + " were given");
    }
    skv::SubmissionEntry entry{};
    entry.first_layer = from.first_layer;
    entry.layer_count = from.layer_count;
    entry.cold = from.cold;
    entry.deadline_us = from.deadline_us;
    SKV_TRY(done,
            found->prefetch(entry, std::as_bytes(std::span(query, query_bytes / sizeof(float))),
                            found->context()->session()->call_deadline(from.timeout_ms)));
    skv_prefetch_result out{};
    out.covered_to = done.covered_to;
    out.version = done.version;
    out.bytes_moved = done.bytes_moved;
    out.hits_device = done.hits_device;
    out.hits_host = done.hits_host;
    out.hits_nvme = done.hits_nvme;
    out.misses = done.misses;
    out.read_blocks = done.read_blocks;
    out.unread_mass = done.unread_mass;
    out.daemon_us = done.daemon_us;
    write_struct(result, out);
    return {};
  });
}

int skv_window_table(skv_window window, uint32_t layer, skv_table* table) {
  return guarded([&]() -> Result<void> {
    SKV_CHECK_OK(check_out_struct(table, "skv_table"));
    SKV_TRY(found, find<Window>(window));
    SKV_TRY(newest, found->table(layer));
    write_struct(table, newest);
    return {};
  });
}

int skv_window_slot(skv_window window, uint32_t layer, uint32_t slot, const void** block) {
  return guarded([&]() -> Result<void> {
    if (block == nullptr) return invalid("block is NULL");
    SKV_TRY(found, find<Window>(window));
    SKV_TRY(address, found->slot(layer, slot));
    *block = address;
    return {};
  });
}

int skv_readers_done(skv_window window, uint64_t version) {
  return guarded([&]() -> Result<void> {
    SKV_TRY(found, find<Window>(window));
    return found->readers_done(version);
  });
}

int skv_load(skv_context context,
             const skv_load_options* options,
             skv_ticket* ticket,
             skv_load_result* result) {
  return guarded([&]() -> Result<void> {
    if (result != nullptr) SKV_CHECK_OK(check_out_struct(result, "skv_load_result"));
    SKV_TRY(from, read_struct(options, "skv_load_options"));
    SKV_TRY(found, find<Context>(context));
    SKV_TRY(destination, StridedSource::read(from.destination, *found->session()));
    const Deadline deadline = found->session()->call_deadline();
    const auto make = [&](Connection& connection, uint32_t id) -> Result<skv::Load> {
      skv::Load load = load_of(from);
      load.context = id;
      SKV_TRY(strided, destination.remote(connection, deadline));
      load.destination = strided;
      return load;
    };
    if (ticket != nullptr) {
      SKV_TRY(begun, found->begin(Verb::kLoad, deadline, make));
      SKV_TRY(kept, found->session()->keep(begun, destination.memory(), deadline));
      *ticket = kept;
      return {};
    }
    SKV_TRY(reply, found->call<skv::LoadReply>(Verb::kLoad, deadline, make));
    skv_load_result out{};
    out.host_chunks = reply.host_chunks;
    out.nvme_chunks = reply.nvme_chunks;
    out.bytes = reply.bytes;
    if (result != nullptr) write_struct(result, out);
    return {};
  });
}

int skv_load_in_place(skv_context context,
                      const skv_load_options* options,
                      skv_lease* lease,
                      skv_load_result* result) {
  return guarded([&]() -> Result<void> {
    if (result != nullptr) SKV_CHECK_OK(check_out_struct(result, "skv_load_result"));
    SKV_TRY(from, read_struct(options, "skv_load_options"));
    if (from.destination != nullptr) return invalid("skv_load_in_place takes no destination");
    SKV_TRY(found, find<Context>(context));
    skv_load_result loaded{};
    SKV_CHECK_OK(open_into<Lease>(lease, [&] {
      return Lease::open(found, load_of(from), found->session()->call_deadline(), loaded);
    }));
    if (result != nullptr) write_struct(result, loaded);
    return {};
  });
}

int skv_lease_get_layer(skv_lease lease,
                        uint32_t sentence,
                        uint32_t layer,
                        skv_leased_layer* where) {
  return guarded([&]() -> Result<void> {
    SKV_CHECK_OK(check_out_struct(where, "skv_leased_layer"));
    SKV_TRY(found, find<Lease>(lease));
    SKV_TRY(out, found->layer(sentence, layer));
    write_struct(where, out);
    return {};
  });
}

int skv_lease_release(skv_lease lease) {
  return guarded([&]() -> Result<void> {
    SKV_TRY(taken, take<Lease>(lease));
    return taken->release();
  });
}

int skv_flush(skv_session session, int level, uint32_t timeout_ms, uint64_t* sentences) {
  return guarded([&]() -> Result<void> {
    if (level != SKV_FLUSH_HOST && level != SKV_FLUSH_DURABLE) {
      return invalid("level is " + std::to_string(level) + ", allowed are 1 and 2");
    }
    SKV_TRY(found, find<Session>(session));
    const Deadline deadline = found->call_deadline(timeout_ms);
    SKV_TRY(reply, found->call<skv::FlushReply>(deadline, [&](Connection& connection) {
      return connection.submit(Verb::kFlush, skv::Flush{static_cast<uint8_t>(level)}, deadline);
    }));
    if (sentences != nullptr) *sentences = reply.sentences;
    return {};
  });
}

int skv_stat(skv_session session, int kind, uint32_t first, char** json, uint32_t* next) {
  return guarded([&]() -> Result<void> {
    if (json == nullptr) return invalid("json is NULL");
    if (kind < SKV_STAT_STATUS || kind > SKV_STAT_SESSION) {
      return invalid("kind is " + std::to_string(kind) + ", allowed are 0 to 2");
    }
    SKV_TRY(found, find<Session>(session));
    const Deadline deadline = found->call_deadline();
    SKV_TRY(reply, found->call<skv::StatReply>(deadline, [&](Connection& connection) {
      return connection.submit(Verb::kStat, skv::Stat{static_cast<uint8_t>(kind), first}, deadline);
    }));
    auto* text = static_cast<char*>(std::malloc(reply.json.size() + 1));  // NOLINT: skv_free
    if (text == nullptr) return skv::Error{skv::ErrorCode::kInternal, "out of memory"};
    std::memcpy(text, reply.json.c_str(), reply.json.size() + 1);
    *json = text;
    if (next != nullptr) *next = reply.next;
    return {};
  });
}

void skv_free(void* pointer) { std::free(pointer); }  // NOLINT: what skv_stat allocated

int skv_wait(skv_session session, skv_ticket ticket, uint32_t timeout_ms, skv_load_result* result) {
  return guarded([&]() -> Result<void> {
    if (result != nullptr) SKV_CHECK_OK(check_out_struct(result, "skv_load_result"));
    SKV_TRY(found, find<Session>(session));
    return found->wait(ticket, after_ms(timeout_ms), result);
  });
}
