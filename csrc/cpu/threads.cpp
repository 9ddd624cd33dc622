// cpu/threads.h: OpenMP's threads, made to outlive a fork, or threads of our own.
//
// OpenMP's threads are the ones that torch's own operators run on. Threads beside those would have to compete with them: an
// OpenMP thread keeps its core for milliseconds after each parallel operator, waiting for the next.
//
// fork() copies the calling thread alone. GCC's OpenMP does not notice: the copy's next parallel region, ours or torch's,
// waits forever for threads that are not there. So before each fork the calling thread gives its OpenMP threads up, and the
// next region of parent or child starts new ones.
#include "cpu/threads.h"

#ifdef _OPENMP
#include <dlfcn.h>
#include <omp.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fstream>
#include <sstream>
#include <string>
#endif

#include <cstddef>
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
  }
  task(0);
  for (std::thread& thread : started) thread.join();
}

#ifdef _OPENMP

// omp_pause_resource_all of OpenMP 5 (GCC 9); null where the OpenMP that is loaded is older than the compiler's and lacks it.
using Pause = int (*)(int);
Pause give_up_threads = nullptr;
constexpr int keep_settings = 1;  // omp_pause_soft: what omp_set_num_threads has set stays

// Whether this process was forked and runs its parent's program, as of now; true where that cannot be known. In such a
// process the first thread may have lost its OpenMP threads before this module was here to see to it.
bool forked() {
  std::ifstream file("/proc/self/stat");
  std::ostringstream text;
  text << file.rdbuf();
  const std::string stat = text.str();
  const size_t name_end = stat.rfind(')');  // the program's name is in parentheses, and may hold anything
  if (name_end == std::string::npos) return true;
  std::istringstream fields(stat.substr(name_end + 1));
  std::string skipped;
  for (int i = 0; i < 6; ++i) fields >> skipped;
  unsigned long flags = 0;
  fields >> flags;
  constexpr unsigned long forked_and_no_exec = 0x40;  // PF_FORKNOEXEC of Linux' sched.h
  return !fields || (flags & forked_and_no_exec) != 0;
}

enum class Threads { unknown, openmp, own };

thread_local Threads threads = Threads::unknown;
thread_local bool kept_over_fork = false;

bool loaded_after_fork = false;

Threads threads_here() {
  // A thread that the forked process has started itself has OpenMP threads of its own to start, too.
  if (threads == Threads::unknown) {
    const bool lost = loaded_after_fork && syscall(SYS_gettid) == getpid();
    threads = lost || give_up_threads == nullptr ? Threads::own : Threads::openmp;
  }
  return threads;
}

// OpenMP refuses inside a parallel region.
void before_fork() { kept_over_fork = threads_here() == Threads::openmp && give_up_threads(keep_settings) != 0; }

void in_child() {
  if (kept_over_fork) threads = Threads::own;
}

const bool prepared = [] {
  give_up_threads = reinterpret_cast<Pause>(dlsym(RTLD_DEFAULT, "omp_pause_resource_all"));
  loaded_after_fork = forked();
  pthread_atfork(before_fork, nullptr, in_child);
  return true;
}();

#endif

}  // namespace

void on_threads(int count, const std::function<void(int)>& task) {
#ifdef _OPENMP
  if (threads_here() == Threads::openmp) {
#pragma omp parallel num_threads(count)
    task(omp_get_thread_num());
    return;
  }
#endif
  on_own_threads(count, task);
}

const char* threads_of() {
#ifdef _OPENMP
  if (threads_here() == Threads::openmp) return "OpenMP";
#endif
  return "own";
}

}  // namespace svdrd
