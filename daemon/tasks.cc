#include "daemon/tasks.h"

#include <algorithm>
#include <utility>

namespace skv {

TaskId Tasks::begin(SessionId session, std::vector<ChunkLease> leases, Done done) {
  const TaskId id{next_++};
  tasks_.emplace(id, Task{session, std::move(leases), std::move(done)});
  return id;
}

void Tasks::finish(TaskDone event, Session session) {
  const auto found = tasks_.find(event.task);
  if (found == tasks_.end()) {
    return;  // of a session that ended: SessionClosed stood for it
  }
  const Task task = std::move(found->second);
  tasks_.erase(found);
  release(task);
  if (session == Session::kLives) {
    task.done(event);
  }
}

void Tasks::drop(SessionId session) {
  std::vector<Task> dropped;
  for (auto it = tasks_.begin(); it != tasks_.end();) {
    if (it->second.session == session) {
      dropped.push_back(std::move(it->second));
      it = tasks_.erase(it);
    } else {
      ++it;
    }
  }
  for (const Task& task : dropped) {
    release(task);
  }
}

size_t Tasks::count(SessionId session) const {
  return static_cast<size_t>(std::count_if(tasks_.begin(), tasks_.end(), [&](const auto& entry) {
    return entry.second.session == session;
  }));
}

void Tasks::release(const Task& task) { placement_.release(task.leases); }

}  // namespace skv
