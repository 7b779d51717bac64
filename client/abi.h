#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <string>
#include <type_traits>

#include "client/last_error.h"
#include "client/skv.h"
#include "ipc/types/result.h"

namespace skv::client {

// The border of the C ABI: size-prefixed structs in and out, results to codes, nothing thrown.

inline constexpr uint32_t kStructBytesMax = 4096;  // of a struct from a newer caller

// Copies a caller's struct: fields it does not have are zero; fields that we do not know must be
// zero. `T::size` of the copy is sizeof(T).
template <typename T>
Result<T> read_struct(const T* given, const char* name) {
  static_assert(std::is_trivially_copyable_v<T>);
  if (given == nullptr) {
    return Error{ErrorCode::kInvalidArgument, std::string(name) + " is NULL"};
  }
  const uint32_t size = given->size;
  if (size < sizeof(uint32_t) || size > kStructBytesMax) {
    return Error{ErrorCode::kInvalidArgument, std::string(name) + "::size is " +
                                                  std::to_string(size) + ", set it to sizeof (" +
                                                  std::to_string(sizeof(T)) + " here)"};
  }
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  for (uint32_t i = sizeof(T); i < size; ++i) {
    if (bytes[i] != 0) {
      return Error{ErrorCode::kUnsupported, std::string(name) + " has a field at byte " +
                                                std::to_string(i) + " that this library (" +
                                                std::to_string(sizeof(T)) +
                                                " bytes) does not know"};
    }
  }
  T copy{};
  std::memcpy(&copy, bytes, size < sizeof(T) ? size : sizeof(T));
  copy.size = sizeof(T);
  return copy;
}

template <typename T>
Result<void> check_out_struct(const T* out, const char* name) {
  if (out == nullptr) {
    return Error{ErrorCode::kInvalidArgument, std::string(name) + " is NULL"};
  }
  if (out->size < sizeof(uint32_t) || out->size > kStructBytesMax) {
    return Error{ErrorCode::kInvalidArgument,
                 std::string(name) + "::size is " + std::to_string(out->size) +
                     ", set it to sizeof (" + std::to_string(sizeof(T)) + " here)"};
  }
  return {};
}

// Requires: check_out_struct. `size` stays the caller's; bytes past our struct become zero.
template <typename T>
void write_struct(T* out, T value) {
  const uint32_t size = out->size;
  value.size = size;
  std::memset(out, 0, size);
  std::memcpy(out, &value, size < sizeof(T) ? size : sizeof(T));
}

inline Error invalid(std::string message) {
  return Error{ErrorCode::kInvalidArgument, std::move(message)};
}
inline Error stale(std::string message) { return Error{ErrorCode::kStale, std::move(message)}; }

// Runs the body of one C function, which returns Result<void>.
template <typename Body>
int guarded(Body&& body) {
  try {
    const Result<void> result = body();
    return result.ok() ? 0 : fail(result.error());
  } catch (const std::bad_alloc&) {
    return fail(Error{ErrorCode::kInternal, "out of memory"});
  } catch (...) {
    return fail(Error{ErrorCode::kInternal, "an exception reached the border of the library"});
  }
}

}  // namespace skv::client

// Leaves the function with the error of a Result; `name` is its value otherwise: a reference that
// is declared. NOLINTBEGIN(bugprone-macro-parentheses)
#define SKV_TRY(name, expression)                        \
  auto name##_result = (expression);                     \
  if (!name##_result.ok()) return name##_result.error(); \
  auto& name = name##_result.value()
// NOLINTEND(bugprone-macro-parentheses)
#define SKV_CHECK_OK(expression)                                                                 \
  do {                                                                                           \
    if (auto checked_result = (expression); !checked_result.ok()) return checked_result.error(); \
  } while (false)
