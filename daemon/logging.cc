#include "daemon/logging.h"

#include <spdlog/formatter.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/sinks/systemd_sink.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>

namespace skv {
namespace {

// "<N>message": what the journal reads from a stream it is connected to.
class PriorityFormatter final : public spdlog::formatter {
 public:
  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& out) override {
    static constexpr char kPriority[] = {'7', '7', '6', '4', '3', '2', '6'};
    const std::string prefix = {'<', kPriority[message.level], '>'};
    out.append(prefix.data(), prefix.data() + prefix.size());
    out.append(message.payload.data(), message.payload.data() + message.payload.size());
    out.push_back('\n');
  }
  std::unique_ptr<formatter> clone() const override {
    return std::make_unique<PriorityFormatter>();
  }
};

// JOURNAL_STREAM is "device:inode" of the journal's socket; only if stderr is still that one.
bool stderr_is_journal() {
  const char* stream = std::getenv("JOURNAL_STREAM");
  struct stat about {};
  if (stream == nullptr || fstat(STDERR_FILENO, &about) != 0) {
    return false;
  }
  return std::to_string(about.st_dev) + ":" + std::to_string(about.st_ino) == stream;
}

}  // namespace

void start_logging(const Config& config, bool foreground) {
  std::shared_ptr<spdlog::logger> logger;
  if (config.log_target == LogTarget::kJournal && !foreground) {
    logger = std::make_shared<spdlog::logger>(
        "skvd", std::make_shared<spdlog::sinks::systemd_sink_mt>("skvd"));
  } else {
    logger =
        std::make_shared<spdlog::logger>("skvd", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    if (!foreground && config.log_target == LogTarget::kAuto && stderr_is_journal()) {
      logger->set_formatter(std::make_unique<PriorityFormatter>());
    } else {
      logger->set_pattern("%Y-%m-%dT%H:%M:%S.%e %^%l%$ %v");
    }
  }
  logger->set_level(spdlog::level::from_str(config.log_level));
  logger->flush_on(spdlog::level::trace);
  spdlog::set_default_logger(std::move(logger));
}

}  // namespace skv
