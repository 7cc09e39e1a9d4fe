// A layer's passes, and its node in autograd's graph.
#pragma once

#include "given.h"
#include "plain.h"
#include "plans.h"

#include "../abi.h"

#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/PyInterpreter.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <array>
#include <mutex>
#include <stdexcept>

namespace startsparse {
namespace {

using at::Tensor;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;
using Held = std::shared_ptr<const Plan>;

Tensor fresh(at::IntArrayRef shape) { return Tensor(at::detail::empty_cpu(shape, at::kFloat)); }

Tensor dense(const Tensor &tensor) {
    if (tensor.is_contiguous())
        return tensor;
    at::AutoDispatchBelowADInplaceOrView guard;
    return tensor.contiguous();
}

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
    THPObjectPtr found(PyObject_CallFunctionObjArgs(given.gradients, held, wants.get(), given_dy.get(),
                                                    given_x.get(), given_values.get(), given_pattern.get(), nullptr));
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
        throw std::runtime_error("startsparse: compiled autograd takes sparse layers with STARTSPARSE_NODE=python in "
                                 "the environment, set before the program starts");
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

} // namespace
} // namespace startsparse
