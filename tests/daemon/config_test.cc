#include "daemon/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <regex>
#include <string>
#include <tuple>
#include <vector>

namespace skv {
namespace {

std::vector<std::string> errors_of(const std::string& text) {
  std::vector<std::string> messages;
  for (const ConfigError& error : parse_config(text, "t.toml").errors) {
    messages.push_back(error.text());
  }
  return messages;
}

TEST(ConfigTest, EmptyFileIsTheDefaults) {
  const LoadedConfig loaded = parse_config("", "t.toml");
  EXPECT_TRUE(loaded.errors.empty());
  EXPECT_EQ(loaded.config.socket_path, "/run/skvd/skvd.sock");
  EXPECT_EQ(loaded.config.device_kind, DeviceKind::kNone);
  EXPECT_FALSE(loaded.config.has_nvme());
}

TEST(ConfigTest, ReadsEveryKindOfValue) {
  const LoadedConfig loaded = parse_config(R"(
[socket]
path = "/tmp/s.sock"
mode = "0600"
[log]
level = "debug"
target = "journal"
[tiers.host]
budget = "1GiB"
slab = 1048576
[tiers.nvme]
path = "/tmp/n"
size = "512 MiB"
segment = "4MiB"
[tiers.device]
kind = "emulated"
budget = "8MiB"
[data]
spin = "0ns"
[sessions]
contexts = 3
in_place = "96MiB"
[deadlines]
wait = "250ms"
)",
                                           "t.toml");
  ASSERT_THAT(loaded.errors, testing::IsEmpty()) << loaded.errors[0].text();
  const Config& config = loaded.config;
  EXPECT_EQ(config.socket_path, "/tmp/s.sock");
  EXPECT_EQ(config.socket_mode, 0600U);
  EXPECT_EQ(config.log_level, "debug");
  EXPECT_EQ(config.log_target, LogTarget::kJournal);
  EXPECT_EQ(config.host_budget_bytes, 1ULL << 30);
  EXPECT_EQ(config.host_slab_bytes, 1ULL << 20);
  EXPECT_EQ(config.nvme_path, "/tmp/n");
  EXPECT_EQ(config.nvme_bytes, 512ULL << 20);
  EXPECT_EQ(config.nvme_segment_bytes, 4ULL << 20);
  EXPECT_EQ(config.device_kind, DeviceKind::kEmulated);
  EXPECT_EQ(config.device_budget_bytes, 8ULL << 20);
  EXPECT_EQ(config.data_spin_ns, 0U);
  EXPECT_EQ(config.session_contexts_max, 3U);
  EXPECT_EQ(config.in_place_bytes(), 96ULL << 20);
  EXPECT_EQ(Config{}.in_place_bytes(), Config{}.host_budget_bytes / 2);
  EXPECT_EQ(config.wait_deadline_ns, 250'000'000ULL);
}

struct Wrong {
  const char* name;
  const char* text;
  std::vector<std::string> messages;
};
void PrintTo(const Wrong& wrong, std::ostream* out) { *out << wrong.name; }

class ConfigWrongTest : public testing::TestWithParam<Wrong> {};

// Goal: every wrong key, type or value is one message with file, line, key and allowed range, and
// all of them are reported at once.
TEST_P(ConfigWrongTest, SaysFileLineKeyAndRange) {
  EXPECT_EQ(errors_of(GetParam().text), GetParam().messages);
}

INSTANTIATE_TEST_SUITE_P(
    Table,
    ConfigWrongTest,
    testing::Values(
        Wrong{"UnknownKey",
              "[tiers.host]\nbudgett = \"1GiB\"\n",
              {"t.toml:2: tiers.host.budgett: unknown key; allowed in [tiers.host]: budget, slab, "
               "warm, vectors"}},
        Wrong{"UnknownSection",
              "\n[tier]\nx = 1\n",
              {"t.toml:2: tier: unknown key; allowed at the top: socket, log, tiers, data, "
               "directory, sessions, deadlines"}},
        Wrong{"SectionIsAValue",
              "data = 3\n",
              {"t.toml:1: data: 3 is not a table; allowed in [data]: spin, spin_cores, "
               "recall_every"}},
        Wrong{"SizeInWrongUnit",
              "[tiers.host]\nbudget = \"64GB\"\n",
              {"t.toml:2: tiers.host.budget: \"64GB\" is not a size; allowed: 1MiB to 64TiB, as "
               "bytes or a string in KiB, MiB, GiB, TiB"}},
        Wrong{"SizeOfWrongType",
              "[tiers.host]\nbudget = 1.5\n",
              {"t.toml:2: tiers.host.budget: 1.5 is not a size; allowed: 1MiB to 64TiB, as "
               "bytes or a string in KiB, MiB, GiB, TiB"}},
        Wrong{"SizeNegative",
              "[tiers.host]\nbudget = -1\n",
              {"t.toml:2: tiers.host.budget: -1 is not a size; allowed: 1MiB to 64TiB, as "
               "bytes or a string in KiB, MiB, GiB, TiB"}},
        Wrong{"SizeTooSmall",
              "[tiers.host]\nbudget = 4096\n",
              {"t.toml:2: tiers.host.budget: 4096 is out of range; allowed: 1MiB to 64TiB, as "
               "bytes or a string in KiB, MiB, GiB, TiB"}},
        Wrong{"SizeOverflows",
              "[tiers.host]\nbudget = \"99999999999TiB\"\n",
              {"t.toml:2: tiers.host.budget: \"99999999999TiB\" is not a size; allowed: 1MiB to "
               "64TiB, as bytes or a string in KiB, MiB, GiB, TiB"}},
        Wrong{"DurationWithoutUnit",
              "[data]\nspin = 20\n",
              {"t.toml:2: data.spin: 20 is not a duration; allowed: 0ns to 10ms, as a string in "
               "ns, us, ms, s, min, h"}},
        Wrong{"DurationTooLong",
              "[data]\nspin = \"1s\"\n",
              {"t.toml:2: data.spin: \"1s\" is out of range; allowed: 0ns to 10ms, as a string in "
               "ns, us, ms, s, min, h"}},
        Wrong{"CountOutOfRange",
              "[sessions]\nchannels = 65\n",
              {"t.toml:2: sessions.channels: 65 is out of range; allowed: an integer from 1 to "
               "64"}},
        Wrong{"CountIsText",
              "[sessions]\nchannels = \"many\"\n",
              {"t.toml:2: sessions.channels: \"many\" is not an integer; allowed: an integer from "
               "1 to 64"}},
        Wrong{"Mode",
              "[socket]\nmode = \"660\"\n",
              {"t.toml:2: socket.mode: \"660\" is not a mode; allowed: a string of octal digits "
               "from \"0600\" to \"0777\""}},
        Wrong{"ModeWithoutOwner",
              "[socket]\nmode = \"0066\"\n",
              {"t.toml:2: socket.mode: \"0066\" keeps the owner out; allowed: a string of octal "
               "digits from \"0600\" to \"0777\""}},
        Wrong{"RelativePath",
              "[socket]\npath = \"skvd.sock\"\n",
              {"t.toml:2: socket.path: \"skvd.sock\" is not a path; allowed: an absolute path of "
               "up to 107 bytes"}},
        Wrong{"Choice",
              "[tiers.device]\nkind = \"gpu\"\n",
              {"t.toml:2: tiers.device.kind: \"gpu\" is unknown; allowed: \"none\", \"emulated\", "
               "\"cuda\""}},
        Wrong{"Level",
              "[log]\nlevel = true\n",
              {"t.toml:2: log.level: true is unknown; allowed: \"trace\", \"debug\", \"info\", "
               "\"warning\", \"error\""}},
        Wrong{"SlabNotAPowerOfTwo",
              "[tiers.host]\nbudget = \"30MiB\"\nslab = \"3MiB\"\n",
              {"t.toml:3: tiers.host.slab: 3MiB is not a power of two; allowed: 64KiB, 128KiB ... "
               "256MiB"}},
        Wrong{"SlabMoreThanAnEighth",
              "[tiers.host]\nbudget = \"32MiB\"\nslab = \"8MiB\"\n",
              {"t.toml:3: tiers.host.slab: 8MiB is more than an eighth of tiers.host.budget; "
               "allowed: up to 4MiB"}},
        Wrong{"BudgetNotInSlabs",
              "[tiers.host]\nbudget = \"33MiB\"\nslab = \"2MiB\"\n",
              {"t.toml:2: tiers.host.budget: 33MiB is not a multiple of tiers.host.slab; allowed: "
               "multiples of 2MiB"}},
        Wrong{"NvmeWithoutPathAndSize",
              "[tiers.nvme]\nsegment = \"1MiB\"\n",
              {"t.toml:1: tiers.nvme.path: is missing; allowed: an absolute path (without "
               "[tiers.nvme] there is no NVMe tier)",
               "t.toml:1: tiers.nvme.size: is missing; allowed: 4MiB to 1024TiB"}},
        Wrong{"NvmeSmallerThanFourSegments",
              "[tiers.nvme]\npath = \"/n\"\nsize = \"100MiB\"\n",
              {"t.toml:3: tiers.nvme.size: 100MiB is less than 4 segments; allowed: from 256MiB"}},
        Wrong{"UuidWithoutDevice",
              "[tiers.device]\nuuid = \"GPU-1\"\n",
              {"t.toml:2: tiers.device.uuid: is set although tiers.device.kind is \"none\"; "
               "allowed: with \"emulated\" or \"cuda\""}},
        Wrong{"ReplyBelowLoad",
              "[deadlines]\nreply = \"1s\"\n",
              {"t.toml:2: deadlines.reply: 1s is less than the longest of deadlines.load and "
               "deadlines.reserve; allowed: from 10s"}},
        Wrong{"AllAtOnceInFileOrder",
              "[sessions]\nmax = 0\nwindows = 0\n[data]\nspin = 1\n[nope]\n",
              {"t.toml:2: sessions.max: 0 is out of range; allowed: an integer from 1 to 65536",
               "t.toml:3: sessions.windows: 0 is out of range; allowed: an integer from 1 to 4096",
               "t.toml:5: data.spin: 1 is not a duration; allowed: 0ns to 10ms, as a string in ns, "
               "us, ms, s, min, h",
               "t.toml:6: nope: unknown key; allowed at the top: socket, log, tiers, data, "
               "directory, sessions, deadlines"}}),
    [](const testing::TestParamInfo<Wrong>& one) { return std::string(one.param.name); });

TEST(ConfigTest, SyntaxErrorHasItsLine) {
  const std::vector<std::string> messages = errors_of("[socket]\npath = \"/x\"\nmode = = 3\n");
  ASSERT_EQ(messages.size(), 1U);
  EXPECT_THAT(messages[0], testing::StartsWith("t.toml:3: "));
}

TEST(ConfigTest, KeyGivenTwiceIsAnError) {
  const std::vector<std::string> messages = errors_of("[data]\nspin = \"0ns\"\nspin = \"1us\"\n");
  ASSERT_EQ(messages.size(), 1U);
  EXPECT_THAT(messages[0], testing::StartsWith("t.toml:3: "));
}

TEST(ConfigTest, MissingFileIsAMessage) {
  const LoadedConfig loaded = load_config("/nonexistent/skvd.toml");
  ASSERT_EQ(loaded.errors.size(), 1U);
  EXPECT_EQ(loaded.errors[0].text(),
            "/nonexistent/skvd.toml: cannot be read; --config names a readable TOML file");
}

// Goal: the documented example is usable and names every key there is.
TEST(ConfigTest, ExampleIsCompleteAndUsable) {
  const std::string path = std::string(SKV_SOURCE_DIR) + "/systemd/skvd.toml";
  const LoadedConfig loaded = load_config(path);
  ASSERT_THAT(loaded.errors, testing::IsEmpty()) << loaded.errors[0].text();

  std::ifstream in(path);
  std::string section;
  std::vector<std::string> named;
  const std::regex header(R"(\[([a-z_.]+)\])");
  const std::regex key(R"((# )?([a-z_]+) = .*)");
  for (std::string line; std::getline(in, line);) {
    std::smatch match;
    if (std::regex_match(line, match, header)) {
      section = match[1];
    } else if (std::regex_match(line, match, key)) {
      named.push_back(section + "." + std::string(match[2]));
    }
  }
  EXPECT_EQ(named, config_keys());
}

TEST(ConfigTest, PrintedConfigReadsBackAsItself) {
  const LoadedConfig first = load_config(std::string(SKV_SOURCE_DIR) + "/systemd/skvd.toml");
  const std::string printed = print_config(first.config);
  const LoadedConfig second = parse_config(printed, "printed");
  ASSERT_THAT(second.errors, testing::IsEmpty()) << second.errors[0].text();
  EXPECT_EQ(print_config(second.config), printed);
  EXPECT_THAT(printed, testing::HasSubstr("budget = \"64GiB\""));
  EXPECT_THAT(print_config(Config{}), testing::Not(testing::HasSubstr("nvme")));
}

TEST(ConfigTest, SizesAndDurations) {
  EXPECT_EQ(parse_size("64GiB").value(), 64ULL << 30);
  EXPECT_EQ(parse_size("4096").value(), 4096U);
  EXPECT_EQ(parse_size("16777215TiB").value(), 16777215ULL << 40);
  EXPECT_FALSE(parse_size("16777216TiB").ok());
  EXPECT_FALSE(parse_size("").ok());
  EXPECT_FALSE(parse_size("GiB").ok());
  EXPECT_FALSE(parse_size("-1KiB").ok());
  EXPECT_EQ(parse_duration("2ms").value(), 2'000'000U);
  EXPECT_FALSE(parse_duration("2").ok());
  EXPECT_EQ(size_text(3ULL << 20), "3MiB");
  EXPECT_EQ(size_text(0), "0B");
  EXPECT_EQ(duration_text(250'000'000), "250ms");
}

}  // namespace
}  // namespace skv
