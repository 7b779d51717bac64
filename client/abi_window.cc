// skv.h: window, load, flush, stat, wait.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "client/abi_handles.h"
#include "client/lease.h"
#include "client/requests.h"
#include "client/window.h"

using namespace skv::client;  // NOLINT: this file is the border of that namespace
using skv::PrefetchRow;
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
  to.mass = from.mass;
  to.query_cosine = from.query_cosine;
  if ((from.head_budgets == nullptr) != (from.head_budget_count == 0)) {
    return invalid("skv_window_options: head_budgets and head_budget_count go together");
  }
  if (from.head_budget_count > skv::kItemsMax) {
    return invalid("skv_window_options::head_budget_count is " +
                   std::to_string(from.head_budget_count));
  }
  to.head_budgets.assign(from.head_budgets, from.head_budgets + from.head_budget_count);
  if (from.scores > SKV_SCORES_RELATIVE) {
    return invalid("skv_window_options::scores is " + std::to_string(from.scores) +
                   ", allowed are 0 and 1");
  }
  to.scores = static_cast<uint8_t>(from.scores);
  switch (from.rank_in) {
    case SKV_RANK_CLIENT:
      to.rank_in = static_cast<uint8_t>(skv::RankIn::kClient);
      break;
    case SKV_RANK_AUTO:
      to.rank_in = static_cast<uint8_t>(skv::RankIn::kEither);
      break;
    case SKV_RANK_DAEMON:
      to.rank_in = static_cast<uint8_t>(skv::RankIn::kDaemon);
      break;
    default:
      return invalid("skv_window_options::rank_in is " + std::to_string(from.rank_in) +
                     ", allowed are 0 to 2");
  }
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

// What all forms of prefetch have in common: their options checked, as an entry.
struct Submission {
  skv::SubmissionEntry entry{};
  std::span<const std::byte> query;
  Deadline deadline;
};
Result<Submission> submission(const Window& window,
                              uint32_t row_count,
                              const float* query,
                              uint64_t query_bytes,
                              const skv_prefetch_options* options) {
  if (query == nullptr) return invalid("query is NULL");
  skv_prefetch_options from{};
  if (options != nullptr) {
    SKV_TRY(read, read_struct(options, "skv_prefetch_options"));
    from = read;
  }
  if (from.cold > SKV_COLD_WAIT) {
    return invalid("skv_prefetch_options::cold is " + std::to_string(from.cold) +
                   ", allowed are 0 and 1");
  }
  const Model& model = *window.context()->model();
  const uint32_t layers = model.layout().layer_count();
  if (from.layer_count == 0 && from.first_layer < layers) {
    from.layer_count = layers - from.first_layer;
  }
  SKV_TRY(expected, model.query_bytes(from.first_layer, from.layer_count));
  if (query_bytes != row_count * expected) {
    return invalid("queries over layers [" + std::to_string(from.first_layer) + ", + " +
                   std::to_string(from.layer_count) + ") have " + std::to_string(expected) +
                   " bytes, " + std::to_string(query_bytes) + " were given for " +
                   std::to_string(row_count) + (row_count == 1 ? " row" : " rows"));
  }
  Submission made;
  made.entry.verb = static_cast<uint32_t>(skv::ChannelVerb::kPrefetch);
  made.entry.first_layer = from.first_layer;
  made.entry.layer_count = from.layer_count;
  made.entry.cold = from.cold;
  made.entry.deadline_us = from.deadline_us;
  made.query = std::as_bytes(std::span(query, query_bytes / sizeof(float)));
  made.deadline = window.context()->session()->call_deadline(from.timeout_ms);
  return made;
}

skv::Error row_error(const Window& window, int32_t status) {
  return skv::Error{static_cast<skv::ErrorCode>(status),
                    "prefetch of window " + std::to_string(window.opened().window) +
                        " ended with " + skv_error_name(-status)};
}

skv_prefetch_result prefetch_result(const PrefetchRow& row, const skv::CompletionEntry& done) {
  skv_prefetch_result out{};
  out.covered_to = row.covered_to;
  out.version = row.version;
  out.bytes_moved = row.bytes_moved;
  out.hits_device = row.hits_device;
  out.hits_host = row.hits_host;
  out.hits_nvme = row.hits_nvme;
  out.misses = row.misses;
  out.read_blocks = row.read_blocks;
  out.unread_mass = row.unread_mass;
  out.daemon_us = done.daemon_ns / 1000;
  out.status = -row.status;
  out.rank_ns = done.rank_ns;
  out.cut_ns = done.cut_ns;
  out.write_ns = done.write_ns;
  out.daemon_ns = done.daemon_ns;
  out.ranked_heads = row.ranked_heads;
  return out;
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
    out.rank_in = found->ranks_here() ? SKV_RANK_CLIENT : SKV_RANK_DAEMON;
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
    SKV_CHECK_OK(check_out_struct(result, "skv_prefetch_result"));
    SKV_TRY(found, find<Window>(window));
    SKV_TRY(entry, submission(*found, 1, query, query_bytes, options));
    PrefetchRow row{};
    SKV_TRY(done,
            Window::prefetch({&found, 1}, {&row, 1}, entry.entry, entry.query, entry.deadline));
    if (done.status != 0) return row_error(*found, row.status != 0 ? row.status : done.status);
    write_struct(result, prefetch_result(row, done));
    return {};
  });
}

int skv_confirm(skv_window window,
                const float* query,
                uint64_t query_bytes,
                const skv_prefetch_options* options,
                skv_prefetch_result* result) {
  return skv_prefetch(window, query, query_bytes, options, result);
}

int skv_prefetch_rows(const skv_window* windows,
                      uint32_t row_count,
                      const float* query,
                      uint64_t query_bytes,
                      const skv_prefetch_options* options,
                      skv_prefetch_result* results) {
  return guarded([&]() -> Result<void> {
    if (windows == nullptr) return invalid("windows is NULL");
    if (row_count == 0 || row_count > skv::kPrefetchRowsMax) {
      return invalid("row_count is " + std::to_string(row_count) + ", allowed are 1 to " +
                     std::to_string(skv::kPrefetchRowsMax));
    }
    if (results == nullptr) return invalid("results is NULL");
    std::vector<std::shared_ptr<Window>> found;
    for (uint32_t i = 0; i < row_count; ++i) {
      SKV_CHECK_OK(check_out_struct(results + i, "skv_prefetch_result"));
      SKV_TRY(one, find<Window>(windows[i]));
      if (std::find(found.begin(), found.end(), one) != found.end()) {
        return invalid("windows[" + std::to_string(i) + "] is there twice");
      }
      found.push_back(one);
    }
    SKV_TRY(entry, submission(*found[0], row_count, query, query_bytes, options));
    std::vector<PrefetchRow> rows(row_count);
    SKV_TRY(done, Window::prefetch(found, rows, entry.entry, entry.query, entry.deadline));
    // Refused as a whole: no row was written.
    const bool refused = std::all_of(rows.begin(), rows.end(),
                                     [](const PrefetchRow& row) { return row.status == 0; }) &&
                         done.status != 0;
    const Window* failed = nullptr;
    int32_t status = refused ? done.status : 0;
    for (uint32_t i = 0; i < row_count; ++i) {
      if (refused) rows[i].status = done.status;
      if (failed == nullptr && rows[i].status != 0) {
        failed = found[i].get();
        status = rows[i].status;
      }
      write_struct(results + i, prefetch_result(rows[i], done));
    }
    if (failed != nullptr) return row_error(*failed, status);
    return {};
  });
}

int skv_guess(skv_window window,
              const float* query,
              uint64_t query_bytes,
              const skv_prefetch_options* options) {
  return guarded([&]() -> Result<void> {
    SKV_TRY(found, find<Window>(window));
    SKV_TRY(entry, submission(*found, 1, query, query_bytes, options));
    entry.entry.verb = static_cast<uint32_t>(skv::ChannelVerb::kGuess);
    return found->guess(entry.entry, entry.query, entry.deadline);
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
