// What Python has given: the kernels, what of it is called, and each thread's scratch.
#pragma once

#include <ATen/Parallel.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/object_ptr.h>

#include <algorithm>

namespace startsparse {
namespace {

// `ss_forward` and `ss_backward` of entry.cpp.
using Forward = int64_t (*)(const void *layer, const void *pattern, int64_t bytes, const float *x, const float *values,
                            const float *bias, float *y, float *scratch, int64_t capacity, int32_t threads);
using Backward = int64_t (*)(const void *layer, const void *pattern, int64_t bytes, const float *x, const float *dy,
                             const float *values, float *dx, float *dw, float *db, float *scratch, int64_t capacity,
                             int32_t threads);

struct Given {
    Forward forward = nullptr; // none: there are no kernels, and every call is given back
    Backward backward = nullptr;
    PyObject *plan = nullptr;      // (kind, x, values, bias, pattern, *rest) -> what a Plan is made of
    PyObject *gradients = nullptr; // `eager.gradients`
    PyObject *scratch = nullptr;   // floats -> (address, floats) of this thread's scratch, grown to them
    int most_threads = 1;          // one in a forked child, whose pool is gone
    int64_t watched = 0;           // patterns that somebody watches in backward passes
} given;

struct Room {
    float *at = nullptr;
    int64_t floats = 0;
};
thread_local Room room; // this thread's scratch, which Python owns

int threads() { return std::min(at::get_num_threads(), given.most_threads); }

[[noreturn]] void throw_python_error() {
    python_error error;
    error.persist();
    throw error;
}

bool read(PyObject *number, int64_t &into) {
    if (!PyLong_CheckExact(number))
        return false;
    into = PyLong_AsLongLong(number);
    return into != -1 || !PyErr_Occurred();
}

bool read_room(PyObject *pair) {
    int64_t address;
    if (!PyTuple_CheckExact(pair) || PyTuple_GET_SIZE(pair) != 2 || !read(PyTuple_GET_ITEM(pair, 0), address) ||
        !read(PyTuple_GET_ITEM(pair, 1), room.floats))
        return false;
    room.at = reinterpret_cast<float *>(address);
    return true;
}

// Call a kernel, with more scratch where it asks for that; its status.
template <class Call> int64_t with_scratch(const Call &call) {
    const int64_t status = call(room.at, room.floats);
    if (status >= 0)
        return status;
    {
        pybind11::gil_scoped_acquire lock;
        THPObjectPtr pair(PyObject_CallFunction(given.scratch, "L", static_cast<long long>(-status)));
        if (!pair || !read_room(pair.get()))
            throw_python_error();
    }
    return call(room.at, room.floats);
}

// Without Python's lock; a plain one, which finds less of itself gone from the caches than pybind11's.
struct Unlocked {
    PyThreadState *state = PyEval_SaveThread();
    ~Unlocked() { PyEval_RestoreThread(state); }
};

} // namespace
} // namespace startsparse
