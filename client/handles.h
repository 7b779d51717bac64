#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "ipc/types/result.h"

namespace skv::client {

enum class HandleKind : uint8_t {
  kSession = 1,
  kModel = 2,
  kContext = 3,
  kWindow = 4,
  kMemory = 5,
  kLease = 6,
  kHold = 7,
  kKeys = 8
};
const char* name(HandleKind kind);

// What a handle stands for. `owner` is the serial of its session: closing that removes it.
struct Object {
  explicit Object(uint64_t owner_serial) : owner(owner_serial) {}
  virtual ~Object() = default;
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;

  const uint64_t owner;
};

// Numbers for objects, so that a closed or made-up handle is an error and not a crash.
//
// Shape   from the top: 4 bits kind, 12 bits tag, 28 bits generation, 20 bits index. The generation
//         of an index grows at each removal, an index whose generations are used up is retired. The
//         tag tells the process: a child that opens its own session gets a table of its own with
//         the next tag, and knows an inherited handle by its older one.
// Thread  any; one mutex for a few instructions. A table is never freed: in a forked child the lock
//         of the parent's may be held by a thread that does not exist there.
// Owns    a shared reference to each object; a call in progress keeps another.
class HandleTable {
 public:
  // Of this process. kDenied in a forked child that has no table yet.
  static Result<HandleTable*> current();
  // The same, but a child gets a table (skv_session_open).
  static HandleTable* current_or_new();

  Result<uint64_t> add(HandleKind kind, std::shared_ptr<Object> object);

  template <typename T>
  Result<std::shared_ptr<T>> find(uint64_t handle) {
    Result<std::shared_ptr<Object>> object = find_object(handle, T::kKind);
    if (!object.ok()) return object.error();
    return std::static_pointer_cast<T>(std::move(object).value());
  }
  // Removes it too: of two closers one gets the object, the other kUnknownHandle.
  template <typename T>
  Result<std::shared_ptr<T>> take(uint64_t handle) {
    Result<std::shared_ptr<Object>> object = take_object(handle, T::kKind);
    if (!object.ok()) return object.error();
    return std::static_pointer_cast<T>(std::move(object).value());
  }
  // All but holds. The references, to be dropped outside of any lock.
  std::vector<std::shared_ptr<Object>> take_all_of(uint64_t owner);

 private:
  struct Entry {
    std::shared_ptr<Object> object;
    HandleKind kind{};
    uint32_t generation = 1;
  };

  HandleTable(pid_t process, uint32_t tag) : process_(process), tag_(tag) {}
  Result<std::shared_ptr<Object>> find_object(uint64_t handle, HandleKind kind);
  Result<std::shared_ptr<Object>> take_object(uint64_t handle, HandleKind kind);
  Result<Entry*> entry_of(uint64_t handle, HandleKind kind);
  std::shared_ptr<Object> remove(uint32_t index);

  const pid_t process_;
  const uint32_t tag_;
  std::mutex mutex_;
  std::vector<Entry> entries_;
  std::vector<uint32_t> free_;
};

}  // namespace skv::client
