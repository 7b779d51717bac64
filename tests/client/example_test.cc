// Goal: the C program that client/README.md shows compiles as C99 and does what it says.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdlib>

#include "tests/daemon/daemon_fixture.h"

namespace skv::test {
namespace {

TEST(ExampleTest, TheProgramOfTheReadme) {
  for (const char* device : {"emulated", "none"}) {
    DaemonProcess::Options options;
    options.device_kind = device;
    DaemonProcess daemon(options);
    ASSERT_TRUE(daemon.start()) << daemon.log();
    const std::string command =
        "SKV_SOCKET=" + daemon.socket() + " " + SKV_BINARY_DIR + "/bin/client_example";
    const int status = std::system(command.c_str());  // NOLINT: our own program, our own words
    ASSERT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 0) << device << "\n" << daemon.log();
    EXPECT_EQ(daemon.stop(), 0) << daemon.log();
  }
}

}  // namespace
}  // namespace skv::test
