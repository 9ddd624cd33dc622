// cpu/threads.h: OpenMP's threads, made to outlive a fork, or threads of our own.
//
// OpenMP's threads are the ones that torch's own operators run on. Threads beside those would have to compete with them: an
// OpenMP thread keeps its core for milliseconds after each parallel operator, waiting for the next.
//
// fork() copies the calling thread alone. GCC's OpenMP does not notice: the copy's next parallel region, ours or torch's,
// waits forever for threads that are not there. So before each fork the calling thread gives its OpenMP threads up, and the
// next region of parent or child starts new ones.
//
// The module is not linked with OpenMP: PyTorch's copy has another name or folder on each system, and a second copy would be
// a second set of threads. Who imports the module hands over the functions of the copy that PyTorch calls.
#include "cpu/threads.h"

#ifdef __linux__
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#endif

#include <cstddef>
#include <new>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <vector>

namespace svdrd {
namespace {

// They are joined before the call returns, so that no fork can lose them.
void on_own_threads(int count, const std::function<void(int)>& task) {
  std::vector<std::thread> started;
  started.reserve(static_cast<size_t>(count));
  try {
    for (int i = 1; i < count; ++i) started.emplace_back(std::cref(task), i);
  } catch (const std::system_error&) {
    // No more threads to be had: those that started and this one do all the work.
  } catch (const std::bad_alloc&) {
    // The same.
  }
  task(0);
  for (std::thread& thread : started) thread.join();
}

#ifdef __linux__

OpenMP openmp{};
constexpr int keep_settings = 1;  // omp_pause_soft: what omp_set_num_threads has set stays

// Whether this process was forked and runs its parent's program, as of now; true where that cannot be known. In such a
// process the first thread may have lost its OpenMP threads before this module was here to see to it.
bool forked() {
  char stat[1024];
  std::FILE* file = std::fopen("/proc/self/stat", "r");
  if (file == nullptr) return true;
  const size_t size = std::fread(stat, 1, sizeof stat - 1, file);
  std::fclose(file);
  stat[size] = 0;
  // The program's name is in parentheses, and may hold anything. The flags are the seventh field behind it.
  const char* field = std::strrchr(stat, ')');
  for (int i = 0; i < 7 && field != nullptr; ++i) field = std::strchr(field + 1, ' ');
  if (field == nullptr) return true;
  unsigned long flags = 0;
  for (const char* digit = field + 1; *digit >= '0' && *digit <= '9'; ++digit) {
    flags = 10 * flags + static_cast<unsigned long>(*digit - '0');
  }
  constexpr unsigned long forked_and_no_exec = 0x40;  // PF_FORKNOEXEC of Linux' sched.h
  return (flags & forked_and_no_exec) != 0;
}

enum class Threads { unknown, openmp, own };

thread_local Threads threads = Threads::unknown;
thread_local bool kept_over_fork = false;

bool loaded_after_fork = false;

Threads threads_here() {
  // A thread that the forked process has started itself has OpenMP threads of its own to start, too.
  if (threads == Threads::unknown) {
    const bool lost = loaded_after_fork && syscall(SYS_gettid) == getpid();
    threads = lost || openmp.parallel == nullptr ? Threads::own : Threads::openmp;
  }
  return threads;
}

// OpenMP refuses inside a parallel region.
void before_fork() { kept_over_fork = threads_here() == Threads::openmp && openmp.give_up_threads(keep_settings) != 0; }

void in_child() {
  if (kept_over_fork) threads = Threads::own;
}

void one_of_region(void* data) noexcept {
  const auto& task = *static_cast<const std::function<void(int)>*>(data);
  task(openmp.thread_number());
}

#endif

}  // namespace

void use_openmp(const OpenMP& library) {
#ifdef __linux__
  if (openmp.parallel != nullptr) return;  // svdrd is imported again
  openmp = library;
  loaded_after_fork = forked();
  pthread_atfork(before_fork, nullptr, in_child);
#else
  static_cast<void>(library);
  throw std::logic_error("OpenMP's threads are used on Linux alone");
#endif
}

void on_threads(int count, const std::function<void(int)>& task) {
#ifdef __linux__
  if (threads_here() == Threads::openmp) {
    // What GCC makes of "#pragma omp parallel num_threads(count)".
    openmp.parallel(one_of_region, const_cast<std::function<void(int)>*>(&task), static_cast<unsigned>(count), 0);
    return;
  }
#endif
  on_own_threads(count, task);
}

const char* threads_of() {
#ifdef __linux__
  if (threads_here() == Threads::openmp) return "OpenMP";
#endif
  return "own";
}

}  // namespace svdrd
