// What one matrix's computation needs of the machine: scratch memory, and the threads that share its work.
#pragma once

#include <cstdint>
#include <new>

#include "cpu/memory.h"
#include "cpu/team.h"

namespace svdrd {
namespace SVDRD_ISA {
namespace dense {

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
constexpr int64_t round_down(int64_t n, int64_t multiple) { return n / multiple * multiple; }

// Scratch memory in stack order. Grows by blocks and keeps them for the next matrix; throws std::bad_alloc.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    while (first_ != nullptr) {
      Block* next = first_->next;
      give_memory_back(first_, first_->capacity + header_bytes);
      first_ = next;
    }
  }

  // Those who share the work on this matrix; null where it is one thread's.
  Team* team = nullptr;

  struct Mark {
    void* block;
    int64_t used;
  };
  Mark mark() const { return {current_, used_}; }
  void release(Mark to) {
    current_ = static_cast<Block*>(to.block);
    used_ = to.used;
  }

  template <typename T>
  T* take(int64_t count) {
    const int64_t bytes = round_up(count * static_cast<int64_t>(sizeof(T)), alignment);
    while (current_ == nullptr || used_ + bytes > current_->capacity) {
      Block*& next = current_ == nullptr ? first_ : current_->next;
      if (next == nullptr) next = new_block(bytes);
      current_ = next;
      used_ = 0;
    }
    char* memory = reinterpret_cast<char*>(current_) + header_bytes + used_;
    used_ += bytes;
    return reinterpret_cast<T*>(memory);
  }

  template <typename T>
  T* take_zeros(int64_t count) {
    T* memory = take<T>(count);
    for (int64_t i = 0; i < count; ++i) memory[i] = T(0);
    return memory;
  }

 private:
  struct Block {
    Block* next;
    int64_t capacity;
  };
  static constexpr int64_t alignment = 64;
  static constexpr int64_t header_bytes = 64;
  static constexpr int64_t smallest_block = int64_t(1) << 20;

  // Each as large as all before it together, so that they are few.
  Block* new_block(int64_t bytes) {
    int64_t size = bytes + header_bytes;
    size = size > size_ ? size : size_;
    size = size > smallest_block ? size : smallest_block;
    void* memory = take_memory(size);
    if (memory == nullptr) throw std::bad_alloc();
    size_ += size;
    return new (memory) Block{nullptr, size - header_bytes};
  }

  Block* first_ = nullptr;
  Block* current_ = nullptr;
  int64_t used_ = 0;
  int64_t size_ = 0;  // of all blocks
};

// Calls part(0) .. part(count - 1), in any order and on any thread of the team. A part must take no scratch memory, and
// what it computes must not depend on who computes it: a matrix has the same bits with any number of threads.
template <typename Part>
inline void share(Scratch& scratch, int64_t count, const Part& part) {
  if (scratch.team == nullptr || count == 1) {
    for (int64_t i = 0; i < count; ++i) part(i);
    return;
  }
  scratch.team->share(
      count, [](const void* context, int64_t i) { (*static_cast<const Part*>(context))(i); }, &part);
}

// The same for the ranges [first, last) of 0 .. count - 1, each of `size` but the last.
template <typename Part>
inline void share_ranges(Scratch& scratch, int64_t count, int64_t size, const Part& part) {
  if (scratch.team == nullptr) {
    if (count > 0) part(0, count);
    return;
  }
  share(scratch, (count + size - 1) / size, [&](int64_t i) {
    const int64_t first = i * size;
    part(first, count - first < size ? count : first + size);
  });
}

// Calls first() and second(), by one thread each. Unlike parts they may take scratch memory, second() none of this.
template <typename First, typename Second>
inline void share_two(Scratch& scratch, const First& first, const Second& second) {
  Team* const team = scratch.team;
  bool failed[2] = {};
  scratch.team = nullptr;
  const auto task = [&](int64_t part) {
    try {
      part == 0 ? first() : second();
    } catch (const std::bad_alloc&) {
      failed[part] = true;
    }
  };
  team->share(2, [](const void* context, int64_t part) { (*static_cast<decltype(&task)>(context))(part); }, &task);
  scratch.team = team;
  if (failed[0] || failed[1]) throw std::bad_alloc();
}

// Returns the scratch memory taken inside a scope.
class ScratchScope {
 public:
  explicit ScratchScope(Scratch& scratch) : scratch_(scratch), mark_(scratch.mark()) {}
  ScratchScope(const ScratchScope&) = delete;
  ScratchScope& operator=(const ScratchScope&) = delete;
  ~ScratchScope() { scratch_.release(mark_); }

 private:
  Scratch& scratch_;
  Scratch::Mark mark_;
};

}  // namespace dense
}  // namespace SVDRD_ISA
}  // namespace svdrd
