#include "tiers/slot_pool.h"

#include <cctype>

#include "tiers/slot_pool_none.h"
#include "tiers/worker/slot_pool_worker.h"

namespace skv {

std::string uuid_text(const std::array<uint8_t, 16>& uuid) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (size_t i = 0; i < uuid.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += kDigits[uuid[i] >> 4];
    text += kDigits[uuid[i] & 15];
  }
  return text;
}

std::optional<std::array<uint8_t, 16>> parse_uuid(const std::string& text) {
  std::array<uint8_t, 16> uuid{};
  size_t at = 0;
  for (size_t i = 0; i < uuid.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) {
      if (at >= text.size() || text[at++] != '-') return std::nullopt;
    }
    for (int digit = 0; digit < 2; ++digit) {
      if (at >= text.size()) return std::nullopt;
      const auto c = static_cast<unsigned char>(text[at++]);
      if (std::isxdigit(c) == 0) return std::nullopt;
      const int value = std::isdigit(c) != 0 ? c - '0' : std::tolower(c) - 'a' + 10;
      uuid[i] = static_cast<uint8_t>(uuid[i] * 16 + value);
    }
  }
  if (at != text.size()) return std::nullopt;
  return uuid;
}

Error no_room(uint64_t bytes, uint64_t used_bytes, uint64_t budget_bytes) {
  return Error{ErrorCode::kNoSpace, "a device slab of " + std::to_string(bytes) +
                                        " bytes does not fit beside the " +
                                        std::to_string(used_bytes) + " used of a budget of " +
                                        std::to_string(budget_bytes)};
}

Result<std::unique_ptr<SlotPool>> make_slot_pool(const SlotPoolOptions& options) {
  if (options.kind == "none") return std::unique_ptr<SlotPool>(new NoneSlotPool);
  return WorkerSlotPool::create(options);
}

}  // namespace skv
