// A sparse layer as a node of autograd's own: what `eager.run` does, less the time that Python takes for it.
//
// Compiled against torch's and Python's headers, for the one version of each on this machine; never needed. It
// only knows the plain case. Anything else, forward or backward, is given back to Python, which does all there is.
#define PY_SSIZE_T_CLEAN
#include "plain.h"
#include "plans.h"

#include "../abi.h"

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/PyInterpreter.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/utils/object_ptr.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <stdexcept>

#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace startsparse {
namespace {

using at::Tensor;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;
using Held = std::shared_ptr<const Plan>;

// `ss_forward` and `ss_backward` of entry.cpp.
using Forward = int64_t (*)(const void *layer, const void *pattern, int64_t bytes, const float *x, const float *values,
                            const float *bias, float *y, float *scratch, int64_t capacity, int32_t threads);
using Backward = int64_t (*)(const void *layer, const void *pattern, int64_t bytes, const float *x, const float *dy,
                             const float *values, float *dx, float *dw, float *db, float *scratch, int64_t capacity,
                             int32_t threads);

// ---- what Python has given ----------------------------------------------------------------------------------

struct Given {
    Forward forward = nullptr; // none: there are no kernels, and every call is given back
    Backward backward = nullptr;
    PyObject *plan = nullptr;      // (kind, x, values, bias, pattern, *rest) -> what a Plan is made of
    PyObject *gradients = nullptr; // `eager.gradients`
    PyObject *scratch = nullptr;   // floats -> (address, floats) of this thread's scratch, grown to them
    int most_threads = 1;          // one in a forked child, whose pool is gone
    int64_t watched = 0; // patterns that somebody watches in backward passes
} given;

Plans plans;

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

Tensor fresh(at::IntArrayRef shape) { return Tensor(at::detail::empty_cpu(shape, at::kFloat)); }

Tensor dense(const Tensor &tensor) {
    if (tensor.is_contiguous())
        return tensor;
    at::AutoDispatchBelowADInplaceOrView guard;
    return tensor.contiguous();
}

// ---- the passes ---------------------------------------------------------------------------------------------

// y, or the status of the kernel that refused.
int64_t forward(const Plan &plan, const Tensor &x, const Tensor &values, const Tensor &bias, const Tensor &pattern,
                Tensor &y) {
    y = fresh(plan.shape);
    const Tensor dense_x = dense(x), dense_values = dense(values), dense_bias = bias.defined() ? dense(bias) : bias;
    const float *b = bias.defined() ? dense_bias.const_data_ptr<float>() : nullptr;
    return with_scratch([&](float *at, int64_t floats) {
        const Unlocked unlocked;
        return given.forward(plan.ahead, pattern.const_data_ptr(), pattern.numel(), dense_x.const_data_ptr<float>(),
                             dense_values.const_data_ptr<float>(), b, y.data_ptr<float>(), at, floats, plan.threads);
    });
}

int64_t backward(const Plan &plan, const Tensor &dy, const Tensor &x, const Tensor &values, const Tensor &pattern,
                 variable_list &found) {
    const Tensor dense_dy = dense(dy), dense_x = dense(x), dense_values = dense(values);
    const auto at_of = [](Tensor &tensor) { return tensor.defined() ? tensor.data_ptr<float>() : nullptr; };
    const int team = std::min<int>(plan.threads, threads()); // fewer than in the forward pass, perhaps
    return with_scratch([&](float *at, int64_t floats) {
        return given.backward(plan.back, pattern.const_data_ptr(), pattern.numel(), dense_x.const_data_ptr<float>(),
                              dense_dy.const_data_ptr<float>(), dense_values.const_data_ptr<float>(), at_of(found[0]),
                              at_of(found[1]), at_of(found[2]), at, floats, team);
    });
}

using Wanted = std::array<bool, 3>; // gradients of x, values and bias

PyObject *truth(bool is) { return Py_NewRef(is ? Py_True : Py_False); }

// `eager.gradients`, in this thread.
variable_list ask_python(const Plan &plan, const Tensor &dy, const Tensor &x, const Tensor &values,
                         const Tensor &pattern, const Wanted &wanted) {
    pybind11::gil_scoped_acquire lock;
    THPObjectPtr wants(PyTuple_New(3));
    if (!wants)
        throw_python_error();
    for (int i = 0; i < 3; i++)
        PyTuple_SET_ITEM(wants.get(), i, truth(wanted[i]));
    THPObjectPtr given_dy(THPVariable_Wrap(dy)), given_x(THPVariable_Wrap(x)),
        given_values(THPVariable_Wrap(values)), given_pattern(THPVariable_Wrap(pattern));
    PyObject *held = plan.held.ptr(getPyInterpreter());
    THPObjectPtr found(PyObject_CallFunctionObjArgs(given.gradients, held, wants.get(), given_dy.get(), given_x.get(),
                                                          given_values.get(), given_pattern.get(), nullptr));
    if (!found)
        throw_python_error();
    variable_list grads(3);
    for (int i = 0; i < 3; i++) {
        PyObject *grad = PyTuple_GetItem(found.get(), i);
        if (!grad)
            throw_python_error();
        if (grad != Py_None)
            grads[i] = THPVariable_Unpack(grad);
    }
    return grads;
}

struct SparseLayerBackward : Node {
    Held plan;
    SavedVariable x_, values_;
    Tensor pattern;

    std::string name() const override { return "SparseLayerBackward"; }

    // Overrides what of torch's versions has it so.
    void compiled_args(torch::dynamo::autograd::CompiledNodeArgs &) const {
        throw std::runtime_error("startsparse: compiled autograd takes sparse layers with STARTSPARSE_NODE=python in the "
                                 "environment, set before the program starts");
    }

    void release_variables() override {
        std::lock_guard<std::mutex> lock(mutex_);
        x_.reset_data();
        values_.reset_data();
    }

    variable_list apply(variable_list &&grads) override {
        Tensor x, values, dy = std::move(grads[0]);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            x = x_.unpack();
            values = values_.unpack();
        }
        const Wanted wanted{task_should_compute_output(0), task_should_compute_output(1),
                            task_should_compute_output(2)};
        if (!dy.defined())
            dy = at::zeros(plan->shape);
        if (is_plain(dy, x, values)) {
            variable_list found(3);
            if (wanted[0])
                found[0] = fresh(plan->x_shape);
            if (wanted[1])
                found[1] = fresh(plan->weights);
            if (wanted[2])
                found[2] = fresh(plan->outputs);
            if (backward(*plan, dy, x, values, pattern, found) == OK)
                return found;
        }
        return ask_python(*plan, dy, x, values, pattern, wanted); // refuses in words what the kernel has refused
    }

  private:
    bool is_plain(const Tensor &dy, const Tensor &x, const Tensor &values) const {
        return !(c10::GradMode::is_enabled() || (given.watched && !plan->blocked)) && given.backward &&
               nobody_looks_on() && is_ordinary(dy, at::kFloat) && is_ordinary(x, at::kFloat) &&
               is_ordinary(values, at::kFloat) && dy.sizes() == plan->shape && x.sizes() == plan->x_shape &&
               values.dim() == 1 && values.numel() == plan->weights;
    }
};

template <class T> auto make_node() {
#if __has_include(<torch/csrc/autograd/node.h>)
    return c10::make_intrusive<T>();
#else
    return std::shared_ptr<T>(new T(), torch::autograd::deleteNode);
#endif
}

// ---- a call -------------------------------------------------------------------------------------------------

// Kinds of layers: what follows x, values, bias and pattern, in the order of the registered operators.
enum Kind : int64_t { LINEAR, CONV2D };
constexpr Py_ssize_t REST[] = {2, 7}; // outputs, [kernel size, stride, padding, dilation, groups], batch

bool append(PyObject *number, Key &key) {
    key.push_back(0);
    return read(number, key.back());
}

// The integers of a call, one after the other; false where they are not what is usual.
bool read_rest(Kind kind, PyObject *const *rest, Key &key) {
    const Py_ssize_t last = REST[kind] - 1;
    bool fits = append(rest[0], key);
    for (Py_ssize_t i = 1; fits && i < last; i++) {
        PyObject *one = rest[i];
        if (i == last - 1) // groups
            fits = append(one, key);
        else
            fits = PyTuple_CheckExact(one) && PyTuple_GET_SIZE(one) == 2 && append(PyTuple_GET_ITEM(one, 0), key) &&
                   append(PyTuple_GET_ITEM(one, 1), key);
    }
    key.push_back(-1); // no batch: row-major
    if (fits && rest[last] != Py_None)
        fits = read(rest[last], key.back()) && key.back() >= 0;
    if (!fits)
        PyErr_Clear();
    return fits;
}

// Whether values and bias are those of a pattern with these outputs.
bool belong(const Tensor &pattern, const Tensor &values, const Tensor &bias, int64_t outputs, int64_t groups) {
    if (pattern.dim() != 1 || !pattern.is_contiguous() || pattern.numel() < static_cast<int64_t>(sizeof(Header)))
        return false;
    const auto &header = *static_cast<const Header *>(pattern.const_data_ptr());
    return header.magic == MAGIC && values.dim() == 1 && values.numel() == header.nnz && header.rows == outputs &&
           header.groups == groups && (!bias.defined() || (bias.dim() == 1 && bias.numel() == outputs));
}

std::vector<int64_t> read_shape(PyObject *shape) {
    std::vector<int64_t> sizes(PyTuple_Size(shape));
    for (size_t i = 0; i < sizes.size(); i++)
        if (!read(PyTuple_GET_ITEM(shape, i), sizes[i]))
            sizes[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape, i));
    return sizes;
}

// A new plan, or null where Python has raised an error.
Held ask_for_plan(Kind kind, PyObject *const *args, Py_ssize_t count, const Tensor &x, const Tensor &values) {
    THPObjectPtr all(PyTuple_New(count + 1));
    if (!all)
        return nullptr;
    PyTuple_SET_ITEM(all.get(), 0, PyLong_FromLong(kind));
    for (Py_ssize_t i = 0; i < count; i++)
        PyTuple_SET_ITEM(all.get(), i + 1, Py_NewRef(args[i]));
    THPObjectPtr found(PyObject_CallObject(given.plan, all.get()));
    long long ahead, back, outputs;
    int team, blocked;
    PyObject *shape, *held;
    if (!found || !PyArg_ParseTuple(found.get(), "LLO!LipO", &ahead, &back, &PyTuple_Type, &shape, &outputs, &team, &blocked,
                                    &held))
        return nullptr;
    auto sizes = read_shape(shape);
    if (PyErr_Occurred())
        return nullptr;
    return std::make_shared<const Plan>(
        Plan{reinterpret_cast<const void *>(ahead), reinterpret_cast<const void *>(back), x.sizes().vec(),
             std::move(sizes), outputs, values.numel(), team, blocked != 0,
             c10::SafePyObject(Py_NewRef(held), getPyInterpreter())});
}

// The output, or NotImplemented: Python must see to this call.
PyObject *call(Kind kind, PyObject *const *args, Py_ssize_t count) {
    HANDLE_TH_ERRORS
    const auto is_tensor = [](PyObject *object) { return THPVariable_CheckExact(object); };
    if (!given.forward || count != 4 + REST[kind] || !is_tensor(args[0]) || !is_tensor(args[1]) ||
        !(args[2] == Py_None || is_tensor(args[2])) || !is_tensor(args[3]) || !nobody_looks_on())
        Py_RETURN_NOTIMPLEMENTED;
    const Tensor &x = THPVariable_Unpack(args[0]), &values = THPVariable_Unpack(args[1]),
                 &pattern = THPVariable_Unpack(args[3]);
    const Tensor bias = args[2] == Py_None ? Tensor() : THPVariable_Unpack(args[2]);
    if (!is_ordinary(x, at::kFloat) || !is_ordinary(values, at::kFloat) || !is_ordinary(pattern, at::kByte) ||
        (bias.defined() && !is_ordinary(bias, at::kFloat)))
        Py_RETURN_NOTIMPLEMENTED;
    if (torch::autograd::isFwGradDefined(x) || torch::autograd::isFwGradDefined(values) ||
        torch::autograd::isFwGradDefined(bias))
        Py_RETURN_NOTIMPLEMENTED;
    Key key{kind};
    if (!read_rest(kind, args + 4, key))
        Py_RETURN_NOTIMPLEMENTED;
    if (!belong(pattern, values, bias, key[1], kind == CONV2D ? key[key.size() - 2] : 1))
        Py_RETURN_NOTIMPLEMENTED;
    key.push_back(values.numel());
    key.push_back(threads());
    key.append(x.sizes().begin(), x.sizes().end());
    auto plan = plans.find(key);
    if (!plan) {
        plan = ask_for_plan(kind, args, count, x, values);
        if (!plan)
            return nullptr;
        plans.keep(key, plan);
    }
    const bool tracked = torch::autograd::compute_requires_grad(x, values, bias);
    Tensor y;
    if (forward(*plan, x, values, bias, pattern, y) != OK)
        Py_RETURN_NOTIMPLEMENTED; // which says why
    if (tracked) {
        auto node = make_node<SparseLayerBackward>();
        node->set_next_edges(torch::autograd::collect_next_edges(x, values, bias));
        node->plan = std::move(plan);
        node->x_ = SavedVariable(x, false);
        node->values_ = SavedVariable(values, false);
        node->pattern = pattern;
        torch::autograd::set_history(y, node);
    }
    return THPVariable_Wrap(std::move(y));
    END_HANDLE_TH_ERRORS
}

PyObject *linear(PyObject *, PyObject *const *args, Py_ssize_t count) { return call(LINEAR, args, count); }

PyObject *conv2d(PyObject *, PyObject *const *args, Py_ssize_t count) { return call(CONV2D, args, count); }

// ---- the module ---------------------------------------------------------------------------------------------

PyObject *begin(PyObject *, PyObject *args) {
    long long forward, backward;
    int most;
    PyObject *plan, *gradients, *scratch;
    if (!PyArg_ParseTuple(args, "LLiOOO", &forward, &backward, &most, &plan, &gradients, &scratch))
        return nullptr;
    given.forward = reinterpret_cast<Forward>(forward);
    given.backward = reinterpret_cast<Backward>(backward);
    given.most_threads = most;
    given.plan = Py_NewRef(plan); // kept until the process ends
    given.gradients = Py_NewRef(gradients);
    given.scratch = Py_NewRef(scratch);
    plans.clear();
    Py_RETURN_NONE;
}

PyObject *watched(PyObject *, PyObject *count) {
    const long long now = PyLong_AsLongLong(count);
    if (now == -1 && PyErr_Occurred())
        return nullptr;
    given.watched = now;
    Py_RETURN_NONE;
}

PyObject *lend(PyObject *, PyObject *pair) {
    if (!read_room(pair)) {
        PyErr_SetString(PyExc_TypeError, "lend takes (address, floats)");
        return nullptr;
    }
    Py_RETURN_NONE;
}

template <class F> PyCFunction as_method(F function) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef methods[] = {
    {"linear", as_method(linear), METH_FASTCALL, "A linear layer's output, or NotImplemented."},
    {"conv2d", as_method(conv2d), METH_FASTCALL, "A convolution's output, or NotImplemented."},
    {"begin", begin, METH_VARARGS, "Take the kernels, and what of Python is called."},
    {"watched", watched, METH_O, "Take how many patterns are watched."},
    {"lend", lend, METH_O, "Take where this thread's scratch is."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_startsparse_node", nullptr, -1, methods, nullptr, nullptr, nullptr,
                          nullptr};

} // namespace
} // namespace startsparse

PyMODINIT_FUNC PyInit__startsparse_node() {
#if !defined(_WIN32)
    pthread_atfork(nullptr, nullptr, [] { startsparse::given.most_threads = 1; });
#endif
    return PyModule_Create(&startsparse::definition);
}
