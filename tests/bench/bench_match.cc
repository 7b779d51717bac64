// A match without a round trip, from a client's process: keys at hand, looked up in the directory
// that a skvd of this run shares.
//
//   match.hit    us per key of a chain that is stored; a key is a sentence's
//   match.miss   us per chain of which nothing is stored
//   match.keys   us per sentence to compute its keys, once
//   match.ask    us per skv_match (a round trip), for comparison
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "client/skv.h"
#include "tests/bench/report.h"

namespace skv::bench {
namespace {

constexpr uint32_t kSentenceTokens = 40;
constexpr uint32_t kDim = 8;

void check(int code) {
  if (code >= 0) return;
  std::fprintf(stderr, "%s: %s\n", skv_error_name(code), skv_last_error());
  std::abort();
}

// A skvd beside this program, with bodies in host memory only. Ends with its object.
class Daemon {
 public:
  Daemon() {
    char folder[] = "/tmp/skv-bench-XXXXXX";
    if (::mkdtemp(folder) == nullptr) std::abort();
    folder_ = folder;
    std::ofstream(folder_ + "/skvd.toml") << "[socket]\npath = \"" << socket()
                                          << "\"\nmode = \"0600\"\n[log]\nlevel = \"warning\"\n"
                                             "[tiers.host]\nbudget = \"256MiB\"\n"
                                             "[data]\nspin = \"0ns\"\n";
    char self[4096] = {};
    if (::readlink("/proc/self/exe", self, sizeof self - 1) < 0) std::abort();
    std::string program(self);
    program = program.substr(0, program.rfind('/')) + "/skvd";
    const std::string config = folder_ + "/skvd.toml";
    pid_ = ::fork();
    if (pid_ == 0) {
      ::execl(program.c_str(), program.c_str(), "--config", config.c_str(), nullptr);
      ::_exit(127);
    }
  }
  ~Daemon() {
    ::kill(pid_, SIGTERM);
    ::waitpid(pid_, nullptr, 0);
    for (const char* name : {"/skvd.toml", "/s", "/s.lock"}) {
      (void)std::remove((folder_ + name).c_str());
    }
    (void)::rmdir(folder_.c_str());
  }
  Daemon(const Daemon&) = delete;
  Daemon& operator=(const Daemon&) = delete;

  std::string socket() const { return folder_ + "/s"; }

 private:
  std::string folder_;
  pid_t pid_ = -1;
};

class Client {
 public:
  explicit Client(const std::string& socket) {
    skv_session_options options{};
    options.size = sizeof options;
    options.connect_timeout_ms = 20'000;
    options.socket_path = socket.c_str();
    check(skv_session_open(&options, &session_));
    skv_layer layer{};
    layer.size = sizeof layer;
    layer.kv_heads = 1;
    layer.queries_per_kv_head = 1;
    layer.k_dim = kDim;
    layer.v_dim = kDim;
    layer.softmax_scale = 0.35F;
    layer.rotary_index = SKV_NO_ROTARY;
    skv_model_descriptor model{};
    model.size = sizeof model;
    model.dtype = SKV_DTYPE_FP32;
    model.block_tokens = 8;
    model.tp_size = 1;
    model.weights_id = "bench_match";
    model.layers = &layer;
    model.layer_count = 1;
    check(skv_model_open(session_, &model, &model_));
  }
  ~Client() { skv_session_close(session_); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  static std::vector<uint32_t> tokens(uint32_t sentences, uint32_t seed) {
    std::vector<uint32_t> made(sentences * kSentenceTokens);
    std::iota(made.begin(), made.end(), seed);
    return made;
  }

  skv_context put(uint32_t sentences, uint32_t seed) {
    std::vector<uint32_t> all = tokens(sentences, seed);
    for (uint32_t i = 0; i < 8; ++i) all.push_back(all.back() + 1);  // they decide the last edge
    skv_context context = nullptr;
    check(skv_context_open(model_, nullptr, &context));
    std::vector<uint32_t> ends;
    for (uint32_t end = kSentenceTokens; end <= all.size(); end += kSentenceTokens) {
      ends.push_back(end);
    }
    skv_append_options append{};
    append.size = sizeof append;
    append.first_position = SKV_AT_END;
    append.tokens = all.data();
    append.token_count = static_cast<uint32_t>(all.size());
    append.ends = ends.data();
    append.end_count = static_cast<uint32_t>(ends.size());
    append.ends_final_to = static_cast<uint32_t>(all.size());
    check(skv_context_append(context, &append, nullptr));

    skv_memory memory = nullptr;
    const uint64_t half = all.size() * kDim * sizeof(float);
    check(skv_memory_create(session_, (2 * half + 4095) / 4096 * 4096, &memory));
    skv_strided_kv source{};
    source.size = sizeof source;
    source.memory = memory;
    source.v_offset = half;
    source.layer_stride = source.head_stride = half;
    source.token_stride = kDim * sizeof(float);
    std::vector<uint8_t> outcomes(sentences);
    check(skv_put_reserve(context, 0, sentences, outcomes.data()));
    for (uint32_t first = 0; first < sentences; first += 256) {
      skv_put_write_options write{};
      write.size = sizeof write;
      write.first_sentence = first;
      write.sentence_count = std::min(256U, sentences - first);
      write.layer_count = 1;
      write.source = &source;
      check(skv_put_write(context, &write, nullptr));
    }
    check(skv_put_commit(context, 0, sentences, 0, outcomes.data()));
    for (const uint8_t outcome : outcomes) {
      if (outcome != SKV_PUT_COMMITTED) std::abort();
    }
    return context;
  }

  skv_keys keys(const std::vector<uint32_t>& tokens) {
    skv_keys made = nullptr;
    check(skv_keys_open(model_, &made));
    check(skv_keys_append(made, tokens.data(), static_cast<uint32_t>(tokens.size()), nullptr));
    return made;
  }

 private:
  skv_session session_ = nullptr;
  skv_model model_ = nullptr;
};

// Microseconds of one call: the median of rounds of `calls` each.
double time_us(uint32_t calls, const std::function<void()>& call) {
  std::vector<double> rounds;
  for (int round = 0; round < 21; ++round) {
    const double before = now();
    for (uint32_t i = 0; i < calls; ++i) call();
    rounds.push_back((now() - before) / calls * 1e6);
  }
  return median(rounds);
}

void expect_local(skv_keys keys, uint32_t hit_tokens) {
  skv_match_result found{};
  found.size = sizeof found;
  check(skv_match_local(keys, &found));
  if (found.hit_tokens != hit_tokens) std::abort();
}

void run(Report& report) {
  const Daemon daemon;
  Client client(daemon.socket());
  const uint32_t chain = 1000;
  const uint32_t others = report.quick() ? 1 : 10;  // chains beside the one that is looked up
  const skv_context context = client.put(chain, 1'000'000);
  for (uint32_t other = 0; other < others; ++other) client.put(chain, 10'000'000 * (other + 2));
  const std::string stored = std::to_string((others + 1) * chain) + " stored";

  const uint32_t calls = report.quick() ? 200 : 2000;
  const auto add = [&report](const char* name, const std::string& of, double value, double target) {
    report.add({.name = name,
                .of = of,
                .value = value,
                .unit = "us",
                .limit = 0,
                .limit_name = "",
                .target = target,
                .better = Better::kLower});
  };
  const std::vector<uint32_t> all = Client::tokens(chain, 1'000'000);
  for (const uint32_t sentences : {1U, 16U, chain}) {
    const uint32_t count = sentences * kSentenceTokens;
    const skv_keys keys = client.keys({all.begin(), all.begin() + count});
    expect_local(keys, count);
    const double us = time_us(std::max(calls / sentences, 2U), [&] { expect_local(keys, count); });
    add("match.hit", "per key, " + std::to_string(sentences) + " a call, " + stored, us / sentences,
        1);
  }
  for (const uint32_t sentences : {1U, chain}) {
    const skv_keys keys = client.keys(Client::tokens(sentences, 5'000'000));
    expect_local(keys, 0);
    add("match.miss", "per call of " + std::to_string(sentences) + " unknown keys, " + stored,
        time_us(calls, [&] { expect_local(keys, 0); }), 1);
  }
  add("match.keys", "per sentence of 40 tokens, once",
      time_us(2, [&] { check(skv_keys_close(client.keys(all))); }) / chain, 0);
  add("match.ask", "skv_match of 1000 sentences, a round trip",
      time_us(10,
              [&] {
                skv_match_result found{};
                found.size = sizeof found;
                check(skv_match(context, 0, &found));
              }),
      0);
}

}  // namespace
}  // namespace skv::bench

int main(int argc, char** argv) {
  skv::bench::Report report(argc, argv);
  skv::bench::run(report);
  return report.finish();
}
