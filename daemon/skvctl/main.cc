#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "daemon/skvctl/request.h"
#include "daemon/skvctl/tables.h"

int main(int argc, char** argv) {
  skv::StatRequest request;
  const char* socket = std::getenv("SKVD_SOCKET");
  request.socket = socket != nullptr ? socket : "/run/skvd/skvd.sock";
  bool json = false;

  CLI::App app("skvctl: what a running skvd does");
  app.set_version_flag("--version", std::string("skvctl ") + SKV_VERSION);
  app.require_subcommand(1);
  CLI::App* const status = app.add_subcommand("status", "Tiers, sessions, hits, prefetch times");
  CLI::App* const contexts = app.add_subcommand("contexts", "Contexts of your user's space");
  for (CLI::App* command : {status, contexts}) {
    command->add_option("--socket", request.socket, "Control socket (default: $SKVD_SOCKET)")
        ->capture_default_str();
    command->add_option("--deadline-ms", request.deadline_ms, "How long to wait for an answer")
        ->check(CLI::Range(1, 3'600'000))
        ->capture_default_str();
    command->add_flag("--json", json, "As the daemon says it");
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  request.kind = contexts->parsed() ? skv::StatKind::kContexts : skv::StatKind::kStatus;
  const skv::Result<nlohmann::json> answer = skv::ask(request);
  if (!answer.ok()) {
    std::fprintf(stderr, "skvctl: %s\n", answer.error().message.c_str());
    return 1;
  }
  const std::string out = json                 ? answer.value().dump(2) + "\n"
                          : contexts->parsed() ? skv::contexts_table(answer.value())
                                               : skv::status_table(answer.value());
  std::fputs(out.c_str(), stdout);
  return 0;
}
