#pragma once

#include "daemon/config.h"

namespace skv {

// Sets up spdlog's default logger: to stderr with time and level, or to the journal. kAuto: journal
// priorities ("<6>") on stderr where systemd connected stderr to the journal, else plain stderr.
//
// Never logged: token ids, text, vectors, keys.
// Thread  before any other thread starts. The logger itself may be used by all.
void start_logging(const Config& config, bool foreground);

}  // namespace skv
