#include "daemon/service_manager.h"

#include <systemd/sd-daemon.h>

namespace skv {
namespace {

// The environment stays: the device worker must not talk to the manager, and does not link this.
void send(const std::string& state) { sd_notify(/*unset_environment=*/0, state.c_str()); }

}  // namespace

Systemd::Systemd() {
  uint64_t usec = 0;
  if (sd_watchdog_enabled(/*unset_environment=*/0, &usec) > 0) {
    watchdog_ns_ = usec * 1000;
  }
}

void Systemd::ready(const std::string& status) { send("READY=1\nSTATUS=" + status); }
void Systemd::status(const std::string& status) { send("STATUS=" + status); }
void Systemd::stopping(const std::string& status) { send("STOPPING=1\nSTATUS=" + status); }
void Systemd::extend_timeout(uint64_t more_ns) {
  send("EXTEND_TIMEOUT_USEC=" + std::to_string(more_ns / 1000));
}
void Systemd::watchdog() { send("WATCHDOG=1"); }

}  // namespace skv
