#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <string>

#include "daemon/config.h"
#include "daemon/daemon.h"
#include "daemon/logging.h"
#include "daemon/service_manager.h"
#include "tiers/slot_pool.h"
#include "tiers/worker/device_worker.h"

namespace {

constexpr int kExitFailure = 1;
constexpr int kExitConfig = 2;  // systemd does not restart on it

struct Arguments {
  std::string config = "/etc/skvd/skvd.toml";
  bool check_config = false;
  bool print_config = false;
  bool foreground = false;
  std::string device_worker;
  std::string device_kind = "emulated";
};

int run_worker(const Arguments& arguments) {
  skv::DeviceWorkerOptions options;
  options.kind = arguments.device_kind;
  const auto uuid = skv::parse_uuid(arguments.device_worker);
  if (!uuid.has_value()) {
    std::fprintf(stderr, "skvd: --device-worker \"%s\" is not a UUID\n",
                 arguments.device_worker.c_str());
    return kExitConfig;
  }
  options.device_uuid = *uuid;
  return skv::run_device_worker(options);
}

int run_daemon(const skv::Config& config) {
  // A client that is gone is an error of write(), not a signal.
  std::signal(SIGPIPE, SIG_IGN);
  skv::Systemd manager;
  skv::Daemon::Options options;
  options.config = config;
  options.manager = &manager;
  skv::Result<std::unique_ptr<skv::Daemon>> daemon = skv::Daemon::start(std::move(options));
  if (!daemon.ok()) {
    spdlog::critical("{}", daemon.error().message);
    return kExitFailure;
  }
  daemon.value()->run();
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  CLI::App app("skvd: sentence-level KV cache tiers for the inference engines of one node");
  app.set_version_flag("--version", std::string("skvd ") + SKV_VERSION);
  app.add_option("--config", arguments.config, "TOML file (systemd/skvd.toml documents the keys)")
      ->capture_default_str();
  app.add_flag("--check-config", arguments.check_config, "Check the file and exit: 0 good, 2 not");
  app.add_flag("--print-config", arguments.print_config, "Print every key with its value and exit");
  app.add_flag("--foreground", arguments.foreground, "Log to stderr whatever log.target says");
  app.add_option("--device-worker", arguments.device_worker)->group("");
  app.add_option("--device-kind", arguments.device_kind)->group("");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kExitConfig;
  }
  if (!arguments.device_worker.empty()) {
    return run_worker(arguments);
  }
  const skv::LoadedConfig loaded = skv::load_config(arguments.config);
  for (const skv::ConfigError& error : loaded.errors) {
    std::fprintf(stderr, "%s\n", error.text().c_str());
  }
  if (!loaded.errors.empty()) {
    return kExitConfig;
  }
  if (arguments.print_config) {
    std::fputs(skv::print_config(loaded.config).c_str(), stdout);
    return 0;
  }
  if (arguments.check_config) {
    std::printf("%s: good\n", arguments.config.c_str());
    return 0;
  }
  skv::start_logging(loaded.config, arguments.foreground);
  return run_daemon(loaded.config);
}
