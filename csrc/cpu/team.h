// Threads that work on one matrix together.
#pragma once

#include <atomic>
#include <cstdint>

namespace svdrd {

// One thread leads: it computes, and shares out what can be divided. The others help from the first part to the
// dismissal and wait in between by looking, so that a part costs some tenths of a microsecond to hand over. The leader
// takes parts like the rest and waits only for those that another has begun: a helper that is not there, or has lost its
// core, costs nothing but its help. One that gets nothing to do for some milliseconds sleeps between looks.
class Team {
 public:
  using Task = void (*)(const void* context, int64_t part);

  explicit Team(int size) : size(size) {}

  const int size;  // how many threads there are at most

  // Of the leader. Calls task(context, 0) .. task(context, count - 1), each on one of the team's threads, and returns
  // when all have ended. The leader takes the first parts and the others the last ones, so that what is divided the same
  // way again lies in the caches of who takes it. Nothing may be thrown by a task, and none may share in its turn.
  void share(int64_t count, Task task, const void* context);

  // Of the leader, once, at the end.
  void dismiss() { dismissed_.store(true, std::memory_order_release); }

  // Of the others: returns when the leader has dismissed them.
  void help();

 private:
  bool take_part(bool first);

  Task task_ = nullptr;
  const void* context_ = nullptr;
  int64_t offset_ = 0;
  // The parts that nobody has taken are [begin, end): 16 bits each, above them 32 that count what was shared.
  std::atomic<uint64_t> open_{0};
  std::atomic<int64_t> unfinished_{0};
  std::atomic<bool> dismissed_{false};
};

}  // namespace svdrd
