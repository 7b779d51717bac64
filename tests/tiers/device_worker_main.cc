// A device worker on its own, for the tests of its pool: what `skvd --device-worker` runs.
#include <cstring>

#include "tiers/worker/device_worker.h"

int main(int argc, char** argv) {
  skv::DeviceWorkerOptions options;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--device-worker") == 0) {
      options.device_uuid = skv::parse_uuid(argv[i + 1]).value_or(options.device_uuid);
    }
    if (std::strcmp(argv[i], "--device-kind") == 0) options.kind = argv[i + 1];
  }
  return skv::run_device_worker(options);
}
