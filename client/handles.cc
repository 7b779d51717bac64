#include "client/handles.h"

#include <atomic>
#include <utility>

#include "client/process.h"

namespace skv::client {
namespace {

constexpr uint32_t kIndexBits = 20;
constexpr uint32_t kGenerationBits = 28;
constexpr uint32_t kTagBits = 12;
constexpr uint32_t kIndexMax = (1U << kIndexBits) - 1;
constexpr uint32_t kGenerationMax = (1U << kGenerationBits) - 1;
constexpr uint32_t kTagMax = (1U << kTagBits) - 1;

std::atomic<HandleTable*> table{nullptr};

struct Parts {
  uint32_t kind, tag, generation, index;
};

Parts parts_of(uint64_t handle) {
  return Parts{static_cast<uint32_t>(handle >> 60), static_cast<uint32_t>(handle >> 48) & kTagMax,
               static_cast<uint32_t>(handle >> kIndexBits) & kGenerationMax,
               static_cast<uint32_t>(handle) & kIndexMax};
}

Error unknown(HandleKind kind, const std::string& why) {
  return Error{ErrorCode::kUnknownHandle, std::string("not an open ") + name(kind) + ": " + why};
}

}  // namespace

const char* name(HandleKind kind) {
  switch (kind) {
    case HandleKind::kSession:
      return "session";
    case HandleKind::kModel:
      return "model";
    case HandleKind::kContext:
      return "context";
    case HandleKind::kWindow:
      return "window";
    case HandleKind::kMemory:
      return "memory";
    case HandleKind::kLease:
      return "lease";
    case HandleKind::kHold:
      return "hold";
    case HandleKind::kKeys:
      return "keys";
  }
  return "handle";
}

Result<HandleTable*> HandleTable::current() {
  HandleTable* now = table.load(std::memory_order_acquire);
  if (now == nullptr) return current_or_new();
  if (now->process_ != own_pid()) {
    return Error{ErrorCode::kDenied, "this process was forked from process " +
                                         std::to_string(now->process_) +
                                         ", whose sessions are not its own: open a session here"};
  }
  return now;
}

HandleTable* HandleTable::current_or_new() {
  const pid_t process = own_pid();
  HandleTable* now = table.load(std::memory_order_acquire);
  while (now == nullptr || now->process_ != process) {
    const uint32_t tag = now == nullptr ? 1 : (now->tag_ % kTagMax) + 1;
    auto* fresh = new HandleTable(process, tag);
    if (table.compare_exchange_strong(now, fresh, std::memory_order_acq_rel)) return fresh;
    delete fresh;
  }
  return now;
}

Result<uint64_t> HandleTable::add(HandleKind kind, std::shared_ptr<Object> object) {
  const std::lock_guard lock(mutex_);
  uint32_t index = 0;
  if (!free_.empty()) {
    index = free_.back();
    free_.pop_back();
  } else if (entries_.size() <= kIndexMax) {
    index = static_cast<uint32_t>(entries_.size());
    entries_.emplace_back();
  } else {
    return Error{ErrorCode::kTooLarge, std::to_string(entries_.size()) +
                                           " handles are open, the limit is " +
                                           std::to_string(kIndexMax + 1)};
  }
  Entry& entry = entries_[index];
  entry.object = std::move(object);
  entry.kind = kind;
  return static_cast<uint64_t>(kind) << 60 | static_cast<uint64_t>(tag_) << 48 |
         static_cast<uint64_t>(entry.generation) << kIndexBits | index;
}

Result<HandleTable::Entry*> HandleTable::entry_of(uint64_t handle, HandleKind kind) {
  if (handle == 0) return unknown(kind, "NULL");
  const Parts parts = parts_of(handle);
  if (parts.kind < 1 || parts.kind > static_cast<uint32_t>(HandleKind::kKeys)) {
    return unknown(kind, "no handle of this library");
  }
  if (parts.tag != tag_) {
    if (parts.tag == 0 || parts.tag > tag_) return unknown(kind, "no handle of this library");
    return Error{ErrorCode::kDenied, std::string("this ") + name(kind) +
                                         " belongs to the process that this one was forked from"};
  }
  if (parts.kind != static_cast<uint32_t>(kind)) {
    return unknown(kind, std::string("it is a ") + name(static_cast<HandleKind>(parts.kind)));
  }
  if (parts.index >= entries_.size()) return unknown(kind, "never opened");
  Entry& entry = entries_[parts.index];
  if (entry.generation != parts.generation || entry.object == nullptr) {
    return unknown(kind, "closed, or its session is");
  }
  return &entry;
}

Result<std::shared_ptr<Object>> HandleTable::find_object(uint64_t handle, HandleKind kind) {
  const std::lock_guard lock(mutex_);
  const Result<Entry*> entry = entry_of(handle, kind);
  if (!entry.ok()) return entry.error();
  return entry.value()->object;
}

Result<std::shared_ptr<Object>> HandleTable::take_object(uint64_t handle, HandleKind kind) {
  const std::lock_guard lock(mutex_);
  const Result<Entry*> entry = entry_of(handle, kind);
  if (!entry.ok()) return entry.error();
  return remove(parts_of(handle).index);
}

std::shared_ptr<Object> HandleTable::remove(uint32_t index) {
  Entry& entry = entries_[index];
  std::shared_ptr<Object> object = std::move(entry.object);
  entry.object = nullptr;
  if (++entry.generation <= kGenerationMax) free_.push_back(index);
  return object;
}

std::vector<std::shared_ptr<Object>> HandleTable::take_all_of(uint64_t owner) {
  std::vector<std::shared_ptr<Object>> taken;
  const std::lock_guard lock(mutex_);
  for (uint32_t i = 0; i < entries_.size(); ++i) {
    const Entry& entry = entries_[i];
    if (entry.object == nullptr || entry.object->owner != owner) continue;
    if (entry.kind == HandleKind::kHold) continue;
    taken.push_back(remove(i));
  }
  return taken;
}

}  // namespace skv::client
