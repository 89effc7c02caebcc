// What a kernel is told: 8-byte words, of which the first two are counters that all threads share.
//
// The same words serve the kernels that numba compiles (see ../../parallel.py and ../../jobs.py).
#pragma once

#include <cstdint>
#include <cstring>

namespace evenflow {
// Unnamed, here and in all headers, so that each instruction set gets functions of its own: were
// they shared, the linker would keep one of them, perhaps one that this processor cannot run.
namespace {

static_assert(sizeof(void*) == 8, "a word holds an address");

constexpr int NEXT_TASK = 0, NEXT_THREAD = 1, FIRST_ARGUMENT = 2;

// Return a counter's value and add one to it, as one step that no thread can come between.
inline int64_t take_ticket(int64_t words, int counter) {
    return __atomic_fetch_add(reinterpret_cast<int64_t*>(words) + counter, 1, __ATOMIC_ACQ_REL);
}

// Return the argument words as a struct of int64_t, double and pointers: a copy, so that no store
// can seem to change it and it stays in registers.
template <class Job>
inline Job arguments(int64_t words) {
    Job job;
    std::memcpy(&job, reinterpret_cast<const void*>(words + 8 * FIRST_ARGUMENT), sizeof job);
    return job;
}

inline int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

inline int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

// Return a pointer moved on by so many bytes.
template <class T>
inline T* moved(T* pointer, int64_t bytes) {
    return reinterpret_cast<T*>(reinterpret_cast<intptr_t>(pointer) + bytes);
}

}  // namespace
}  // namespace evenflow
