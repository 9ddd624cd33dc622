// Blocks of scratch memory, kept from call to call.
#pragma once

#include <cstdint>

namespace svdrd {

// At least `bytes`, aligned to 64; `bytes` becomes the size. Null where there is no memory.
void* take_memory(int64_t& bytes);

// What take_memory gave, with its size.
void give_memory_back(void* memory, int64_t bytes);

}  // namespace svdrd
