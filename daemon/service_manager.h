#pragma once

#include <cstdint>
#include <string>

namespace skv {

// What the daemon tells whoever started it (sd_notify of systemd 252). Without NOTIFY_SOCKET
// nothing is sent.
//
// Thread  loop thread.
class ServiceManager {
 public:
  virtual ~ServiceManager() = default;

  virtual void ready(const std::string& status) = 0;
  virtual void status(const std::string& status) = 0;
  virtual void stopping(const std::string& status) = 0;
  // Start or stop goes on: the manager waits `more_ns` from now.
  virtual void extend_timeout(uint64_t more_ns) = 0;
  virtual void watchdog() = 0;
  // 0: the manager does not watch. Ping at half of it.
  virtual uint64_t watchdog_ns() const = 0;
};

class Systemd final : public ServiceManager {
 public:
  Systemd();  // reads WATCHDOG_USEC once

  void ready(const std::string& status) override;
  void status(const std::string& status) override;
  void stopping(const std::string& status) override;
  void extend_timeout(uint64_t more_ns) override;
  void watchdog() override;
  uint64_t watchdog_ns() const override { return watchdog_ns_; }

 private:
  uint64_t watchdog_ns_ = 0;
};

}  // namespace skv
