#pragma once

#include <array>
#include <bit>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "ipc/types/ids.h"
#include "ipc/types/result.h"

namespace skv {

static_assert(std::endian::native == std::endian::little,
              "the wire is little-endian, and shared structs are read in place");

// Most items of one vector or bytes of one string, whatever the frame could hold.
inline constexpr uint32_t kItemsMax = 32 * 1024;

// The tag that begins what a digest is taken of: the literal with its zero byte.
template <size_t kBytes>
constexpr std::string_view digest_tag(const char (&literal)[kBytes]) {
  return {literal, kBytes};
}

template <typename T>
concept WireScalar = std::is_arithmetic_v<T> || std::is_enum_v<T>;

// Writes and reads the canonical encoding of docs/protocol.md: little-endian scalars, no padding;
// a vector or string is a u32 count, then its items; a struct is its fields in order.
//
// A struct lists its fields once, either by SKV_FIELDS inside it or by a free
// `wire_fields(Archive&, T&)` found by argument lookup. Both archives walk that list, so the two
// directions cannot drift apart, and encode(decode(bytes)) == bytes for all bytes that decode.
//
// Thread  any; plain values.
class WireWriter {
 public:
  explicit WireWriter(std::vector<uint8_t>& out) : out_(out) {}

  template <typename... Fields>
  void operator()(const char* /*names*/, const Fields&... fields) {
    (put(fields), ...);
  }

  template <WireScalar T>
  void put(T value) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(&value);
    out_.insert(out_.end(), bytes, bytes + sizeof value);
  }
  void put(bool value) { out_.push_back(value ? 1 : 0); }
  void put(const Digest& digest) { put(digest.bytes); }
  template <size_t kCount>
  void put(const std::array<uint8_t, kCount>& bytes) {
    out_.insert(out_.end(), bytes.begin(), bytes.end());
  }
  void put(const std::string& text) {
    put(static_cast<uint32_t>(text.size()));
    out_.insert(out_.end(), text.begin(), text.end());
  }
  template <typename T>
  void put(const std::vector<T>& items) {
    put(static_cast<uint32_t>(items.size()));
    if constexpr (WireScalar<T>) {
      const auto* bytes = reinterpret_cast<const uint8_t*>(items.data());
      out_.insert(out_.end(), bytes, bytes + items.size() * sizeof(T));
    } else {
      for (const T& item : items) put(item);
    }
  }
  // `fields` is one list for both directions, so it takes a mutable value; the writer only reads.
  template <typename T>
  requires std::is_class_v<T>
  void put(const T& value) {
    auto& fields_of = const_cast<T&>(value);
    if constexpr (requires { fields_of.fields(*this); }) {
      fields_of.fields(*this);
    } else {
      wire_fields(*this, fields_of);
    }
  }

 private:
  std::vector<uint8_t>& out_;
};

// Bounds-checked; the first error stays and everything after it is left at its default. A count is
// held against kItemsMax and against the bytes that are left before anything is allocated for it.
class WireReader {
 public:
  explicit WireReader(std::span<const uint8_t> bytes) : rest_(bytes) {}

  // After the last field: the error, or an error if bytes are left over.
  Result<void> finish() {
    if (!error_ && !rest_.empty()) {
      error_ = Error{ErrorCode::kProtocol,
                     std::to_string(rest_.size()) + " bytes follow after the last field"};
    }
    if (error_) return *error_;
    return {};
  }
  bool failed() const { return error_.has_value(); }
  // For rules that bytes alone do not show (an enumerator that does not exist).
  void fail(std::string why) { refuse(std::move(why)); }

  template <typename... Fields>
  void operator()(const char* names, Fields&... fields) {
    size_t index = 0;
    (get_named(names, index++, fields), ...);
  }

  template <WireScalar T>
  void get(T& value) {
    take(&value, sizeof value);
  }
  void get(bool& value) {
    uint8_t byte = 0;
    get(byte);
    if (byte > 1) refuse("a bool is " + std::to_string(byte) + ", not 0 or 1");
    value = byte == 1;
  }
  void get(Digest& digest) { get(digest.bytes); }
  template <size_t kCount>
  void get(std::array<uint8_t, kCount>& bytes) {
    take(bytes.data(), kCount);
  }
  void get(std::string& text) {
    const uint32_t count = take_count(1);
    text.assign(reinterpret_cast<const char*>(rest_.data()), count);
    rest_ = rest_.subspan(count);
  }
  template <typename T>
  void get(std::vector<T>& items) {
    items.clear();
    if constexpr (WireScalar<T>) {
      const uint32_t count = take_count(sizeof(T));
      items.resize(count);
      if (count > 0) take(items.data(), count * sizeof(T));
    } else {
      // One at a time: memory grows only as bytes prove that there is something to hold.
      const uint32_t count = take_count(1);
      for (uint32_t i = 0; i < count && !failed(); ++i) get(items.emplace_back());
    }
  }
  template <typename T>
  requires std::is_class_v<T>
  void get(T& value) {
    if constexpr (requires { value.fields(*this); }) {
      value.fields(*this);
    } else {
      wire_fields(*this, value);
    }
  }

 private:
  template <typename Field>
  void get_named(const char* names, size_t index, Field& field) {
    if (failed()) return;
    get(field);
    if (!failed()) return;
    error_->message =
        "field " + std::to_string(index) + " (" + name_at(names, index) + "): " + error_->message;
  }

  // The index-th name of SKV_FIELDS' comma-separated text.
  static std::string name_at(std::string_view names, size_t index) {
    for (; index > 0; --index) {
      const size_t comma = names.find(',');
      if (comma == std::string_view::npos) return "?";
      names.remove_prefix(comma + 1);
    }
    names = names.substr(0, names.find(','));
    while (!names.empty() && names.front() == ' ') names.remove_prefix(1);
    return std::string(names);
  }

  void refuse(std::string why) {
    if (!error_) error_ = Error{ErrorCode::kProtocol, std::move(why)};
  }

  void take(void* to, size_t bytes) {
    if (failed()) return;
    if (bytes > rest_.size()) {
      refuse("needs " + std::to_string(bytes) + " bytes, " + std::to_string(rest_.size()) +
             " are left");
      return;
    }
    std::memcpy(to, rest_.data(), bytes);
    rest_ = rest_.subspan(bytes);
  }

  // 0 after an error, so that callers may go on.
  uint32_t take_count(size_t item_bytes) {
    uint32_t count = 0;
    take(&count, sizeof count);
    if (failed()) return 0;
    if (count > kItemsMax) {
      refuse("count " + std::to_string(count) + " is above " + std::to_string(kItemsMax));
    } else if (count > rest_.size() / item_bytes) {
      refuse("count " + std::to_string(count) + " of " + std::to_string(item_bytes) +
             "-byte items does not fit the " + std::to_string(rest_.size()) + " bytes left");
    }
    return failed() ? 0 : count;
  }

  std::span<const uint8_t> rest_;
  std::optional<Error> error_;
};

}  // namespace skv
