// A sparse layer as a node of autograd's own: what `eager.run` does, less the time that Python takes for it.
//
// Compiled against torch's and Python's headers, for the one version of each on this machine; never needed. It
// only knows the plain case. Anything else, forward or backward, is given back to Python, which does all there is.
#define PY_SSIZE_T_CLEAN
#include "layer.h"

#include <torch/csrc/autograd/functions/utils.h>

#include <pthread.h>

namespace startsparse {
namespace {

Plans plans;

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
    if (!found || !PyArg_ParseTuple(found.get(), "LLO!LipO", &ahead, &back, &PyTuple_Type, &shape, &outputs, &team,
                                    &blocked, &held))
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
    pthread_atfork(nullptr, nullptr, [] { startsparse::given.most_threads = 1; });
    return PyModule_Create(&startsparse::definition);
}
