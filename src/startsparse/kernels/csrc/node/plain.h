// Whether a call is a plain eager one at which nobody looks on: what `eager.is_plain` asks, without Python.
#pragma once

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

namespace at::autocast {
TORCH_API bool is_autocast_enabled(at::DeviceType); // its header has all of torch's functions behind it
}

namespace startsparse {

// No autocast, mode, transform or tracer is at work in this thread, and autograd is not left out.
inline bool nobody_looks_on() {
    if (at::autocast::is_autocast_enabled(at::kCPU) || at::impl::torch_function_mode_enabled() ||
        c10::impl::TorchDispatchModeTLS::any_modes_set())
        return false;
    const auto keys = c10::impl::tls_local_dispatch_key_set();
    return c10::default_included_set.has_all(keys.included_) &&
           (!c10::GradMode::is_enabled() || c10::default_excluded_set.has_all(keys.excluded_));
}

// An ordinary tensor on the CPU: strided, and no subclass, transform or lazy conjugate of any kind.
inline bool is_ordinary(const at::Tensor &tensor, at::ScalarType type) {
    static const c10::DispatchKeySet usual({c10::DispatchKey::CPU, c10::DispatchKey::ADInplaceOrView,
                                            c10::DispatchKey::AutogradCPU, c10::DispatchKey::AutocastCPU});
    return tensor.defined() && usual.has_all(tensor.key_set()) && tensor.scalar_type() == type;
}

} // namespace startsparse
