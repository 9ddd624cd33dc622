// cpu/memory.h: a few blocks wait here for the next call, which need not ask the system for them. The system clears
// each page that it hands out, which takes a part of the time that one notices where the matrices are few.
#include "cpu/memory.h"

#include <atomic>
#include <cstddef>
#include <cstdlib>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace svdrd {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr int64_t most_kept = 0;  // or the sanitizer would not see who uses what is not his any more
#else
constexpr int64_t most_kept = int64_t(64) << 20;
#endif
constexpr int slots = 32;

struct Kept {
  void* memory;
  int64_t bytes;
};

Kept kept[slots] = {};
int64_t kept_bytes = 0;

// Nobody waits for the other: who comes in between does without. So a fork at the wrong moment costs its child no more
// than that.
class Access {
 public:
  Access() : granted_(!taken_.test_and_set(std::memory_order_acquire)) {}
  Access(const Access&) = delete;
  Access& operator=(const Access&) = delete;
  ~Access() {
    if (granted_) taken_.clear(std::memory_order_release);
  }
  explicit operator bool() const { return granted_; }

 private:
  static std::atomic_flag taken_;
  const bool granted_;
};

std::atomic_flag Access::taken_ = ATOMIC_FLAG_INIT;

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace

void* take_memory(int64_t& bytes) {
  if (const Access access; access) {
    Kept* best = nullptr;
    for (Kept& candidate : kept)
      if (candidate.bytes >= bytes && (best == nullptr || candidate.bytes < best->bytes)) best = &candidate;
    // What is much too large waits for somebody who needs it.
    if (best != nullptr && best->bytes <= 4 * bytes) {
      void* memory = best->memory;
      bytes = best->bytes;
      kept_bytes -= bytes;
      *best = {};
      return memory;
    }
  }
  // The rows of a large matrix lie on more pages of 4 KB than the processor remembers the addresses of, so larger
  // blocks ask for pages of 2 MB. That is a wish: where it is not granted, the memory is as good.
  constexpr int64_t huge_page = int64_t(2) << 20;
  const bool huge = bytes >= huge_page;
  const int64_t alignment = huge ? huge_page : 64;
  bytes = round_up(bytes, alignment);
  void* memory = std::aligned_alloc(static_cast<size_t>(alignment), static_cast<size_t>(bytes));
#ifdef MADV_HUGEPAGE
  if (huge && memory != nullptr) madvise(memory, static_cast<size_t>(bytes), MADV_HUGEPAGE);
#endif
  return memory;
}

// Where there is no room, it takes the place of the smallest one that is smaller.
void give_memory_back(void* memory, int64_t bytes) {
  Kept superfluous{memory, bytes};
  if (const Access access; access) {
    Kept* place = &kept[0];
    for (Kept& candidate : kept)
      if (candidate.bytes < place->bytes) place = &candidate;
    if (place->bytes < bytes && kept_bytes - place->bytes + bytes <= most_kept) {
      kept_bytes += bytes - place->bytes;
      superfluous = *place;
      *place = {memory, bytes};
    }
  }
  std::free(superfluous.memory);
}

}  // namespace svdrd
