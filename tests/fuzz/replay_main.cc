// Runs a fuzz target over the files of a corpus folder, each whole, cut at every length, and with
// every byte flipped: what a compiler without a fuzzer can do.

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

// An exact copy on the heap, so that a sanitizer sees the first byte read past the end.
void run(const std::vector<uint8_t>& bytes, size_t length) {
  const std::vector<uint8_t> exact(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(length));
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s CORPUS_FOLDER\n", argv[0]);
    return 2;
  }
  size_t files = 0;
  size_t runs = 0;
  for (const auto& entry : std::filesystem::directory_iterator(argv[1])) {
    std::ifstream file(entry.path(), std::ios::binary);
    std::vector<uint8_t> bytes(std::istreambuf_iterator<char>(file), {});
    ++files;
    for (size_t length = 0; length <= bytes.size(); ++length, ++runs) run(bytes, length);
    for (size_t at = 0; at < bytes.size(); ++at) {
      for (const uint8_t flip : {0x01, 0x80, 0xFF}) {
        bytes[at] = static_cast<uint8_t>(bytes[at] ^ flip);
        run(bytes, bytes.size());
        bytes[at] = static_cast<uint8_t>(bytes[at] ^ flip);
        ++runs;
      }
    }
  }
  std::printf("%zu files, %zu runs\n", files, runs);
  return files > 0 ? 0 : 1;
}
