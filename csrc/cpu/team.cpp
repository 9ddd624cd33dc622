#include "cpu/team.h"

#include <chrono>
#include <thread>

namespace svdrd {
namespace {

constexpr int64_t most_parts = 0xffff;

constexpr uint64_t begin_of(uint64_t open) { return open >> 16 & 0xffff; }
constexpr uint64_t end_of(uint64_t open) { return open & 0xffff; }

// Waiting for what takes microseconds; should it take longer, letting others have the core.
class Patience {
 public:
  void look_again() {
    if (looks_ >= most_looks) {
      std::this_thread::yield();
      ++yields_;
      return;
    }
    ++looks_;
    relax();
  }

  // The same, and after some milliseconds in vain asleep most of the time: where the process may use fewer cores than it
  // has threads, who only looks takes the time of who computes.
  void look_again_or_sleep() {
    if (yields_ < most_yields) return look_again();
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }

 private:
  static constexpr int most_looks = 4096, most_yields = 4096;

  static void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
  }

  int looks_ = 0;
  int64_t yields_ = 0;
};

}  // namespace

// Whoever takes a part may read what share() wrote: it was written before open_ was, and is not again before this part
// has ended. The upper bits keep a thread that was asleep from taking a part of another task than it saw.
bool Team::take_part(bool first) {
  uint64_t open = open_.load(std::memory_order_acquire), rest;
  do {
    if (begin_of(open) == end_of(open)) return false;
    rest = first ? open + (1 << 16) : open - 1;
  } while (!open_.compare_exchange_weak(open, rest, std::memory_order_acquire));
  task_(context_, offset_ + static_cast<int64_t>(first ? begin_of(open) : end_of(rest)));
  unfinished_.fetch_sub(1, std::memory_order_release);
  return true;
}

void Team::share(int64_t count, Task task, const void* context) {
  task_ = task;
  context_ = context;
  for (offset_ = 0; offset_ < count; offset_ += most_parts) {
    const int64_t parts = count - offset_ < most_parts ? count - offset_ : most_parts;
    unfinished_.store(parts, std::memory_order_relaxed);
    const uint64_t times = (open_.load(std::memory_order_relaxed) >> 32) + 1;
    open_.store(times << 32 | static_cast<uint64_t>(parts), std::memory_order_release);
    while (take_part(true)) {
    }
    for (Patience patience; unfinished_.load(std::memory_order_acquire) != 0;) patience.look_again();
  }
}

void Team::help() {
  for (Patience patience; !dismissed_.load(std::memory_order_acquire);) {
    if (take_part(false))
      patience = {};
    else
      patience.look_again_or_sleep();
  }
}

}  // namespace svdrd
