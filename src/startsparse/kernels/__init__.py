"""The code that computes sparse layers on the CPU, and no policy.

``Pattern`` says which weights live and in which order their values are kept; the operators ``sparse_linear``
and ``sparse_conv2d`` compute with them, on plain row-major tensors or on the blocked layout that neighbouring
layers can share (``to_blocked``, ``from_blocked``), as one operation for a chain of linear layers (``chained_linear``); ``dense_gradient`` gives the gradient of the dense weight,
a block of rows at a time.

The kernels are C++ behind a C interface (``csrc/``), built at first use; see ``library`` for what happens
without a compiler. Importing this package compiles and loads nothing.
"""

from startsparse.kernels.chain import Link as Link
from startsparse.kernels.chain import chained_linear as chained_linear
from startsparse.kernels.functional import from_blocked as from_blocked
from startsparse.kernels.functional import sparse_conv2d as sparse_conv2d
from startsparse.kernels.functional import sparse_linear as sparse_linear
from startsparse.kernels.functional import to_blocked as to_blocked
from startsparse.kernels.geometry import lanes_for as lanes_for
from startsparse.kernels.gradients import dense_gradient as dense_gradient
from startsparse.kernels.library import backend as backend
from startsparse.kernels.library import cache_folder as cache_folder
from startsparse.kernels.memory import keep_pages as keep_pages
from startsparse.kernels.memory import release_scratch as release_scratch
from startsparse.kernels.node import compile_node as compile_node
from startsparse.kernels.node import has_node as has_node
from startsparse.kernels.observe import watch as watch
from startsparse.kernels.pattern import Pattern as Pattern
from startsparse.kernels.ranking import highest as highest
