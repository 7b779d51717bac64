#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "client/context.h"
#include "ipc/types/result.h"

namespace skv::client {

// Bodies that are read in place in host memory, leased until release.
//
// What is in host memory is leased without a message (LeaseMap). Where some of it is not, all of
// the range is asked for; long ranges take several messages, so one lease here may be several at
// the daemon.
//
// Thread  any; immutable once open.
class Lease : public Object {
 public:
  static constexpr HandleKind kKind = HandleKind::kLease;

  static Result<std::shared_ptr<Lease>> open(const std::shared_ptr<Context>& context,
                                             const Load& range,
                                             Deadline deadline,
                                             skv_load_result& loaded);
  explicit Lease(std::shared_ptr<Context> context);
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  ~Lease() override;  // gives back what an open that failed half-way had got

  Result<skv_leased_layer> layer(uint32_t sentence, uint32_t layer) const;
  Result<void> release();
  const std::shared_ptr<MappedMemory>& host() const { return host_; }

 private:
  // Without a message; false: the daemon has to be asked.
  bool take_in_place(const Load& range, Deadline deadline, skv_load_result& loaded);
  Result<void> ask(const Load& range, Deadline deadline, skv_load_result& loaded);
  Result<void> take(const Session::Done& done, uint32_t sentence_count, skv_load_result& loaded);
  Result<void> check_extents() const;
  void give_back_in_place();

  const std::shared_ptr<Context> context_;
  std::shared_ptr<Connection> connection_;
  std::shared_ptr<MappedMemory> host_;
  LayerRange layers_;
  uint32_t first_chunk_ = 0;
  uint32_t chunk_count_ = 0;       // per sentence
  std::vector<uint32_t> blocks_;   // per sentence
  std::vector<uint64_t> extents_;  // [sentence][chunk], offsets into host_
  std::vector<uint64_t> leases_;   // by messages
  std::shared_ptr<LeaseMap> map_;  // else; null once given back
  LeaseMapReader::Range in_place_;
};

}  // namespace skv::client
