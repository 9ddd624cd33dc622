// The threads of one call.
#pragma once

#include <functional>

namespace svdrd {

// What is called of an OpenMP library.
struct OpenMP {
  void (*parallel)(void (*region)(void*), void* data, unsigned threads, unsigned flags);  // GOMP_parallel
  int (*thread_number)();                                                                  // omp_get_thread_num
  int (*give_up_threads)(int keep_settings);                                               // omp_pause_resource_all
};

// From now on threads are those of this library. The first call decides; it comes before any thread computes.
void use_openmp(const OpenMP& library);

// Calls task(0) .. task(count - 1), each on a thread of its own and task(0) on the calling one, and returns when all have
// ended. Where fewer threads are to be had, only the first tasks are called. Nothing may be thrown by a task.
void on_threads(int count, const std::function<void(int)>& task);

// Whose threads they are if the calling thread asks for them: "OpenMP" or "own".
const char* threads_of();

}  // namespace svdrd
