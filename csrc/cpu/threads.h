// The threads of one call.
#pragma once

#include <functional>

namespace svdrd {

// Calls task(0) .. task(count - 1), each on a thread of its own and task(0) on the calling one, and returns when all have
// ended. Where fewer threads are to be had, only the first tasks are called. Nothing may be thrown by a task.
void on_threads(int count, const std::function<void(int)>& task);

// Whose threads they are if the calling thread asks for them: "OpenMP" or "own".
const char* threads_of();

}  // namespace svdrd
