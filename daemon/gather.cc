#include "daemon/gather.h"

#include <utility>

namespace skv {
namespace {

void finish(Core& core, const std::shared_ptr<Gather>& gather, const GatherRequest& request) {
  if (Session* const session = core.find_session(request.session); session != nullptr) {
    session->gathers.erase(gather);
  }
  if (gather->failure.ok()) {
    request.done(std::move(gather->leases));
    return;
  }
  for (size_t i = 0; i < gather->came.size(); ++i) {
    if (gather->came[i]) {
      core.placement.release(gather->leases[i]);
    }
  }
  request.done(gather->failure.error());
}

}  // namespace

void gather(Core& core, GatherRequest request) {
  Session* const session = core.find_session(request.session);
  if (session == nullptr || session->state == SessionState::kEnding) {
    return;  // its leases were returned, nothing more may be posted for it
  }
  const auto state = std::make_shared<Gather>();
  state->leases.resize(request.chunks.size());
  state->came.assign(request.chunks.size(), false);
  state->left = request.chunks.size();
  const auto shared = std::make_shared<GatherRequest>(std::move(request));
  if (state->left == 0) {
    shared->done(std::vector<ChunkLease>{});
    return;
  }
  session->gathers.insert(state);
  for (size_t i = 0; i < shared->chunks.size(); ++i) {
    Placement::AcquireRequest acquire;
    acquire.session = shared->session;
    acquire.uid = shared->chunks[i].uid;
    acquire.chunk = shared->chunks[i].chunk;
    acquire.deadline_ns = shared->deadline_ns;
    acquire.done = [&core, state, shared, i](Result<ChunkLease> lease) {
      if (lease.ok()) {
        state->leases[i] = lease.value();
        state->came[i] = true;
      } else if (state->failure.ok()) {
        state->failure = lease.error();
      }
      if (--state->left == 0) {
        finish(core, state, *shared);
      }
    };
    core.placement.acquire(std::move(acquire));
  }
}

}  // namespace skv
