#pragma once

#include <unistd.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "ipc/types/check.h"

namespace skv {

// A path that nothing is at, removed in the end. TMPDIR or /tmp.
class TemporaryFile {
 public:
  TemporaryFile() {
    const char* const folder = std::getenv("TMPDIR");
    std::string name = std::string(folder != nullptr ? folder : "/tmp") + "/skv-test-XXXXXX";
    const int fd = mkstemp(name.data());
    SKV_CHECK(fd >= 0, "mkstemp");
    close(fd);
    unlink(name.c_str());
    path_ = name;
  }
  ~TemporaryFile() { unlink(path_.c_str()); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace skv
