#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "ipc/types/check.h"
#include "kernels/cuda/launch.h"
#include "kernels/rank_pages.h"

// What the CUDA kernels take beside the machine's own limits, measured in the same run: rank
// against a device copy of the bytes that it reads, gather against a pinned cudaMemcpy. Medians.
//
//   cuda_bench [--quick] [--json FILE]       exit code 77: no GPU answers
namespace skv {
namespace {

void check(cudaError_t status) { SKV_CHECK(status == cudaSuccess, cudaGetErrorString(status)); }

struct Row {
  std::string name, variant;
  double value;
  std::string unit;
  double limit;
  std::string limit_name;
};

// Median milliseconds of `work` on `stream`, by events around each repetition.
double median_ms(cudaStream_t stream, int repetitions, const std::function<void()>& work) {
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  work();  // warm
  std::vector<double> times;
  for (int i = 0; i < repetitions; ++i) {
    check(cudaEventRecord(begin, stream));
    work();
    check(cudaEventRecord(end, stream));
    check(cudaEventSynchronize(end));
    float ms = 0.0F;
    check(cudaEventElapsedTime(&ms, begin, end));
    times.push_back(double{ms});
  }
  check(cudaEventDestroy(begin));
  check(cudaEventDestroy(end));
  std::nth_element(times.begin(), times.begin() + repetitions / 2, times.end());
  return times[repetitions / 2];
}

struct Device {
  cudaStream_t stream = nullptr;
  int repetitions = 21;
  double copy_gb_s = 0.0;  // bytes read + written
  double h2d_gb_s = 0.0;
};

std::byte* device_memory(uint64_t bytes) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, bytes));
  return static_cast<std::byte*>(memory);
}

void measure_limits(Device& device, std::vector<Row>& rows, uint64_t bytes) {
  std::byte* a = device_memory(bytes);
  std::byte* b = device_memory(bytes);
  const double copy = median_ms(device.stream, device.repetitions, [&] {
    check(cudaMemcpyAsync(a, b, bytes, cudaMemcpyDeviceToDevice, device.stream));
  });
  device.copy_gb_s = 2.0 * static_cast<double>(bytes) / copy / 1e6;
  void* host = nullptr;
  check(cudaHostAlloc(&host, bytes, cudaHostAllocDefault));
  const double h2d = median_ms(device.stream, device.repetitions, [&] {
    check(cudaMemcpyAsync(a, host, bytes, cudaMemcpyHostToDevice, device.stream));
  });
  device.h2d_gb_s = static_cast<double>(bytes) / h2d / 1e6;
  const std::string size = std::to_string(bytes >> 20) + " MiB";
  rows.push_back({"limit.device_copy", size, device.copy_gb_s, "GB/s", 0, ""});
  rows.push_back({"limit.h2d", size, device.h2d_gb_s, "GB/s", 0, ""});
  check(cudaFreeHost(host));
  check(cudaFree(a));
  check(cudaFree(b));
}

// `sentences` of 5 blocks of 8 tokens for one (layer, kv head): random vectors, finite.
VectorPages random_pages(uint32_t sentences) {
  ModelDescriptor model;
  LayerDescriptor layer;
  layer.kv_heads = 1;
  layer.queries_per_kv_head = 4;
  layer.k_dim = 128;
  layer.v_dim = 128;
  model.layers = {layer};
  VectorPages pages(std::make_shared<RankPageLayout>(VectorsLayout(model, IndexDescriptor{})));
  const VectorRecordLayout at = VectorRecordLayout::of(IndexKind::kMeanSpreadRuns, 128, 20);
  std::mt19937 engine(1);
  for (uint32_t i = 0; i < sentences; ++i) {
    std::vector<std::byte> blob(at.bytes);
    for (std::byte& byte : blob) byte = static_cast<std::byte>(engine());
    for (uint32_t d = 0; d < 130; ++d) blob[2 * d + 1] = std::byte{0x30};  // halves around 1/8
    pages.append(5, blob);
  }
  return pages;
}

void measure_rank(Device& device, std::vector<Row>& rows, uint32_t sentences, uint32_t jobs_count) {
  const VectorPages host = random_pages(sentences);
  const RankView view = host.view(0, 0);
  const uint64_t page_bytes = host.layout().page_bytes();
  const uint32_t pages = (sentences + kPageSentences - 1) / kPageSentences;
  const uint32_t queries = 4;
  const auto upload = [](const void* from, uint64_t bytes) {
    std::byte* to = device_memory(bytes);
    check(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice));
    return to;
  };
  std::vector<std::byte*> allocations;
  const auto keep = [&allocations](std::byte* memory) {
    allocations.push_back(memory);
    return memory;
  };
  const auto* spans = reinterpret_cast<const RankSentence*>(
      keep(upload(view.sentences, sentences * sizeof(RankSentence))));
  std::vector<float> query(size_t{queries} * 128);
  std::mt19937 engine(2);
  for (float& value : query) value = static_cast<float>(engine() % 2000) / 1000.0F - 1.0F;
  const auto* device_query =
      reinterpret_cast<const float*>(keep(upload(query.data(), query.size() * 4)));
  std::vector<cuda::RankJob> jobs(jobs_count);
  for (cuda::RankJob& job : jobs) {
    std::byte* base = keep(device_memory(page_bytes * pages));
    std::vector<const std::byte*> addresses;
    for (uint32_t page = 0; page < pages; ++page) {
      check(cudaMemcpy(base + page * page_bytes, view.pages[page], page_bytes,
                       cudaMemcpyHostToDevice));
      addresses.push_back(base + page * page_bytes);
    }
    job.view = view;
    job.view.pages = reinterpret_cast<const std::byte* const*>(
        keep(upload(addresses.data(), addresses.size() * sizeof(void*))));
    job.view.sentences = spans;
    job.queries = device_query;
    job.query_count = queries;
    job.softmax_scale = 0.088F;
    job.options.full_scan_blocks = 0xFFFFFFFF;
    job.cut.budget_blocks = 256;
    const cuda::RankCapacity capacity{sentences, view.end_block, queries,
                                      view.block_tokens / view.run_tokens};
    const uint64_t bytes = cuda::carve(nullptr, capacity, job.work);
    cuda::carve(keep(device_memory(bytes)), capacity, job.work);
  }
  const auto* device_jobs = reinterpret_cast<const cuda::RankJob*>(
      keep(upload(jobs.data(), jobs.size() * sizeof(cuda::RankJob))));
  const double ms = median_ms(device.stream, device.repetitions, [&] {
    check(static_cast<cudaError_t>(
        cuda::launch_rank(device_jobs, jobs_count, sentences, device.stream)));
    check(static_cast<cudaError_t>(cuda::launch_cut(device_jobs, jobs_count, device.stream)));
  });
  const double bytes = 1796.0 * sentences * jobs_count;
  const double floor_ms = bytes / device.copy_gb_s / 1e6;
  rows.push_back({"cuda.rank",
                  std::to_string(sentences) + " sentences x " + std::to_string(jobs_count) +
                      " (layer, head), 4 queries, full scan",
                  ms, "ms", floor_ms, "bytes / device copy bandwidth"});
  for (std::byte* memory : allocations) check(cudaFree(memory));
}

void measure_gather(Device& device, std::vector<Row>& rows, uint32_t block_bytes, uint32_t blocks) {
  const uint64_t arena_bytes = uint64_t{block_bytes} * blocks * 4;
  void* arena = nullptr;
  check(cudaHostAlloc(&arena, arena_bytes, cudaHostAllocMapped));
  std::memset(arena, 1, arena_bytes);
  void* mapped = nullptr;
  check(cudaHostGetDevicePointer(&mapped, arena, 0));
  std::byte* slab = device_memory(uint64_t{block_bytes} * blocks);
  std::vector<cuda::GatherMove> moves;
  std::mt19937_64 engine(3);
  for (uint32_t i = 0; i < blocks; ++i) {
    moves.push_back({engine() % (uint64_t{blocks} * 4) * block_bytes, uint64_t{i} * block_bytes,
                     block_bytes, 0});
  }
  std::byte* list = device_memory(moves.size() * sizeof(cuda::GatherMove));
  check(cudaMemcpy(list, moves.data(), moves.size() * sizeof(cuda::GatherMove),
                   cudaMemcpyHostToDevice));
  cuda::GatherJob job;
  job.from = static_cast<const std::byte*>(mapped);
  job.to = slab;
  job.moves = reinterpret_cast<const cuda::GatherMove*>(list);
  job.move_count = blocks;
  const double ms = median_ms(device.stream, device.repetitions, [&] {
    check(static_cast<cudaError_t>(cuda::launch_gather(job, device.stream)));
  });
  rows.push_back({"cuda.gather",
                  std::to_string(blocks) + " x " + std::to_string(block_bytes) + " B",
                  static_cast<double>(block_bytes) * blocks / ms / 1e6, "GB/s", device.h2d_gb_s,
                  "pinned cudaMemcpy"});
  check(cudaFree(slab));
  check(cudaFree(list));
  check(cudaFreeHost(arena));
}

int run(bool quick, const std::string& json_path) {
  if (cuda::device_count() == 0) {
    std::printf("skipped: no CUDA device answers on this machine\n");
    return 77;
  }
  Device device;
  if (quick) device.repetitions = 3;
  check(cudaStreamCreate(&device.stream));
  std::vector<Row> rows;
  measure_limits(device, rows, quick ? uint64_t{16} << 20 : uint64_t{1} << 30);
  for (const uint32_t sentences :
       quick ? std::vector<uint32_t>{256} : std::vector<uint32_t>{1024, 4096}) {
    measure_rank(device, rows, sentences, quick ? 8 : 256);
  }
  for (const uint32_t bytes : {2048U, 4096U, 16384U}) {
    measure_gather(device, rows, bytes, quick ? 1000 : 64000);
  }
  nlohmann::json json = nlohmann::json::array();
  for (const Row& row : rows) {
    const double ratio = row.limit == 0     ? 0
                         : row.unit == "ms" ? row.limit / row.value
                                            : row.value / row.limit;
    std::printf("%-20s %-60s %10.3f %-5s", row.name.c_str(), row.variant.c_str(), row.value,
                row.unit.c_str());
    if (row.limit != 0)
      std::printf(" limit %10.3f (%s) ratio %.2f", row.limit, row.limit_name.c_str(), ratio);
    std::printf("\n");
    json.push_back({{"name", row.name},
                    {"case", row.variant},
                    {"value", row.value},
                    {"unit", row.unit},
                    {"limit", row.limit},
                    {"limit_name", row.limit_name},
                    {"ratio", ratio}});
  }
  if (!json_path.empty()) std::ofstream(json_path) << json.dump(2) << "\n";
  return 0;
}

}  // namespace
}  // namespace skv

int main(int argc, char** argv) {
  bool quick = false;
  std::string json;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--quick") == 0) quick = true;
    if (std::strcmp(argv[i], "--json") == 0 && i + 1 < argc) json = argv[++i];
  }
  return skv::run(quick, json);
}
