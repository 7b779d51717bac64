// skv.h: errors, session, holds, model, memory.
#include <errno.h>  // program_invocation_short_name

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <random>

#include "client/abi_handles.h"
#include "client/lease.h"
#include "client/memory.h"
#include "client/model.h"
#include "client/session.h"
#include "client/window.h"

using namespace skv::client;  // NOLINT: this file is the border of that namespace
using skv::Error;
using skv::ErrorCode;
using skv::Result;

namespace {

constexpr uint32_t kConnectTimeoutMs = 2000;
constexpr size_t kClientNameMax = 64;
constexpr const char* kSocketPath = "/run/skvd/skvd.sock";

std::string socket_path(const char* given) {
  if (given != nullptr) return given;
  const char* from_environment = std::getenv("SKV_SOCKET");  // NOLINT: nobody here sets it
  if (from_environment != nullptr && *from_environment != '\0') return from_environment;
  return kSocketPath;
}

Result<Session::Options> session_options(const skv_session_options* given) {
  skv_session_options from{};
  if (given != nullptr) {
    SKV_TRY(read, read_struct(given, "skv_session_options"));
    from = read;
  }
  Session::Options options;
  options.connect_timeout_ms =
      from.connect_timeout_ms == 0 ? kConnectTimeoutMs : from.connect_timeout_ms;
  options.call_timeout_ms = from.call_timeout_ms;
  if (from.spin_us != 0) {
    options.connection.spin_us = from.spin_us == SKV_SPIN_NEVER ? 0 : from.spin_us;
  }
  options.connection.path = socket_path(from.socket_path);
  options.connection.client_name =
      from.client_name != nullptr ? from.client_name : program_invocation_short_name;
  if (options.connection.client_name.size() > kClientNameMax) {
    if (from.client_name != nullptr) {
      return invalid("skv_session_options::client_name has " +
                     std::to_string(options.connection.client_name.size()) +
                     " bytes, the limit is " + std::to_string(kClientNameMax));
    }
    options.connection.client_name.resize(kClientNameMax);
  }
  std::random_device random;
  for (uint8_t& byte : options.connection.client_instance) byte = static_cast<uint8_t>(random());
  return options;
}

template <size_t kSize>
void copy_text(char (&to)[kSize], const std::string& from) {
  const size_t count = std::min(from.size(), kSize - 1);
  std::memcpy(to, from.data(), count);
  to[count] = '\0';
}

}  // namespace

const char* skv_last_error(void) { return last_error_text(); }

const char* skv_version(void) { return SKV_VERSION; }

const char* skv_error_name(int code) {
  switch (code) {
    case SKV_OK:
      return "SKV_OK";
    case SKV_E_INVALID_ARGUMENT:
      return "SKV_E_INVALID_ARGUMENT";
    case SKV_E_UNSUPPORTED:
      return "SKV_E_UNSUPPORTED";
    case SKV_E_UNKNOWN_HANDLE:
      return "SKV_E_UNKNOWN_HANDLE";
    case SKV_E_PROTOCOL:
      return "SKV_E_PROTOCOL";
    case SKV_E_TOO_LARGE:
      return "SKV_E_TOO_LARGE";
    case SKV_E_NO_SPACE:
      return "SKV_E_NO_SPACE";
    case SKV_E_IO:
      return "SKV_E_IO";
    case SKV_E_CORRUPT:
      return "SKV_E_CORRUPT";
    case SKV_E_BUSY:
      return "SKV_E_BUSY";
    case SKV_E_TIMEOUT:
      return "SKV_E_TIMEOUT";
    case SKV_E_DISCONNECTED:
      return "SKV_E_DISCONNECTED";
    case SKV_E_STALE:
      return "SKV_E_STALE";
    case SKV_E_CANCELLED:
      return "SKV_E_CANCELLED";
    case SKV_E_DENIED:
      return "SKV_E_DENIED";
    case SKV_E_NOT_FOUND:
      return "SKV_E_NOT_FOUND";
    case SKV_E_INTERNAL:
      return "SKV_E_INTERNAL";
    default:
      return "SKV_E_?";
  }
}

int skv_session_open(const skv_session_options* options, skv_session* session) {
  return guarded([&]() -> Result<void> {
    HandleTable::current_or_new();
    SKV_TRY(read, session_options(options));
    return open_into<Session>(session, [&] { return Session::open(read); });
  });
}

int skv_session_close(skv_session session) {
  return guarded([&]() -> Result<void> {
    SKV_TRY(table, HandleTable::current());
    SKV_TRY(closing, table->take<Session>(number(session)));
    closing->close();
    // After close(), so that what is dropped here does not talk to the daemon any more.
    table->take_all_of(closing->owner);
    return {};
  });
}

int skv_session_get_info(skv_session session, skv_session_info* info) {
  return guarded([&]() -> Result<void> {
    SKV_CHECK_OK(check_out_struct(info, "skv_session_info"));
    SKV_TRY(found, find<Session>(session));
    const std::shared_ptr<Connection> connection = found->last_connection();
    SKV_TRY(host, connection->host());
    const skv::HelloReply& hello = connection->hello();
    skv_session_info out{};
    out.session_id = hello.session;
    out.connections = found->connections();
    out.connected = connection->alive() ? 1 : 0;
    out.host = host->data();
    out.host_bytes = host->bytes();
    std::copy(hello.instance.begin(), hello.instance.end(), out.instance);
    std::copy(hello.boot_id.begin(), hello.boot_id.end(), out.boot_id);
    copy_text(out.device_kind, hello.device_kind);
    copy_text(out.daemon_version, hello.daemon_version);
    write_struct(info, out);
    return {};
  });
}

int skv_session_reconnect(skv_session session, uint32_t timeout_ms) {
  return guarded([&]() -> Result<void> {
    SKV_TRY(found, find<Session>(session));
    return found->reconnect(timeout_ms);
  });
}

int skv_session_hold(skv_session session, skv_hold* hold) {
  return guarded([&] {
    return open_into<Hold>(hold, [&]() -> Result<std::shared_ptr<Hold>> {
      SKV_TRY(found, find<Session>(session));
      SKV_TRY(host, found->last_connection()->host());
      return std::make_shared<Hold>(found->owner, host);
    });
  });
}

int skv_window_hold(skv_window window, skv_hold* hold) {
  return guarded([&] {
    return open_into<Hold>(hold, [&]() -> Result<std::shared_ptr<Hold>> {
      SKV_TRY(found, find<Window>(window));
      return std::make_shared<Hold>(found->owner, found->tables(), found->slots());
    });
  });
}

int skv_memory_hold(skv_memory memory, skv_hold* hold) {
  return guarded([&] {
    return open_into<Hold>(hold, [&]() -> Result<std::shared_ptr<Hold>> {
      SKV_TRY(found, find<Memory>(memory));
      return std::make_shared<Hold>(found->owner, found->mapped());
    });
  });
}

int skv_lease_hold(skv_lease lease, skv_hold* hold) {
  return guarded([&] {
    return open_into<Hold>(hold, [&]() -> Result<std::shared_ptr<Hold>> {
      SKV_TRY(found, find<Lease>(lease));
      return std::make_shared<Hold>(found->owner, found->host());
    });
  });
}

int skv_hold_release(skv_hold hold) {
  return guarded([&]() -> Result<void> {
    auto taken = take<Hold>(hold);
    if (!taken.ok()) return taken.error();
    return {};
  });
}

int skv_model_open(skv_session session, const skv_model_descriptor* descriptor, skv_model* model) {
  return guarded([&]() -> Result<void> {
    SKV_TRY(read, read_descriptor(descriptor));
    SKV_TRY(found, find<Session>(session));
    return open_into<Model>(model, [&] { return Model::open(found, read); });
  });
}

int skv_model_close(skv_model model) {
  return guarded([&]() -> Result<void> {
    auto taken = take<Model>(model);
    if (!taken.ok()) return taken.error();
    return {};
  });
}

int skv_model_get_info(skv_model model, skv_model_info* info) {
  return guarded([&]() -> Result<void> {
    SKV_CHECK_OK(check_out_struct(info, "skv_model_info"));
    SKV_TRY(found, find<Model>(model));
    skv_model_info out{};
    out.layer_count = found->layout().layer_count();
    out.chunk_count = found->layout().chunk_count();
    out.block_tokens = found->layout().block_tokens();
    out.element_bytes = found->layout().element_bytes();
    std::copy(found->fingerprint().bytes.begin(), found->fingerprint().bytes.end(),
              out.fingerprint);
    write_struct(info, out);
    return {};
  });
}

int skv_model_query_bytes(skv_model model,
                          uint32_t first_layer,
                          uint32_t layer_count,
                          uint64_t* bytes) {
  return guarded([&]() -> Result<void> {
    if (bytes == nullptr) return invalid("bytes is NULL");
    SKV_TRY(found, find<Model>(model));
    SKV_TRY(value, found->query_bytes(first_layer, layer_count));
    *bytes = value;
    return {};
  });
}

int skv_model_block_bytes(skv_model model, uint32_t layer, uint64_t* bytes) {
  return guarded([&]() -> Result<void> {
    if (bytes == nullptr) return invalid("bytes is NULL");
    SKV_TRY(found, find<Model>(model));
    if (layer >= found->layout().layer_count()) {
      return invalid("layer " + std::to_string(layer) + " of a model that has " +
                     std::to_string(found->layout().layer_count()));
    }
    *bytes = found->layout().block_bytes(layer);
    return {};
  });
}

int skv_memory_create(skv_session session, uint64_t bytes, skv_memory* memory) {
  return guarded([&] {
    return open_into<Memory>(memory, [&]() -> Result<std::shared_ptr<Memory>> {
      SKV_TRY(found, find<Session>(session));
      return Memory::create(found, bytes);
    });
  });
}

int skv_memory_register(skv_session session, int fd, uint64_t bytes, skv_memory* memory) {
  return guarded([&] {
    return open_into<Memory>(memory, [&]() -> Result<std::shared_ptr<Memory>> {
      SKV_TRY(found, find<Session>(session));
      return Memory::adopt(found, fd, bytes);
    });
  });
}

int skv_session_staging(skv_session session, skv_memory* memory) {
  return guarded([&] {
    return open_into<Memory>(memory, [&]() -> Result<std::shared_ptr<Memory>> {
      SKV_TRY(found, find<Session>(session));
      SKV_TRY(connection, found->connection(found->call_deadline()));
      return Memory::staging(found, connection);
    });
  });
}

int skv_memory_close(skv_memory memory) {
  return guarded([&]() -> Result<void> {
    SKV_TRY(found, find<Memory>(memory));
    if (found->session()->uses(*found)) {
      return Error{ErrorCode::kBusy, "asynchronous operations use this memory: wait for them"};
    }
    SKV_CHECK_OK(found->unregister(found->session()->call_deadline()));
    auto taken = take<Memory>(memory);
    if (!taken.ok()) return taken.error();
    return {};
  });
}

int skv_memory_get_info(skv_memory memory, skv_memory_info* info) {
  return guarded([&]() -> Result<void> {
    SKV_CHECK_OK(check_out_struct(info, "skv_memory_info"));
    SKV_TRY(found, find<Memory>(memory));
    skv_memory_info out{};
    out.fd = found->fd();
    out.pointer = found->mapped()->data();
    out.bytes = found->mapped()->bytes();
    write_struct(info, out);
    return {};
  });
}
