"""Which values of a graph are changed in place, and whether nobody else has them.

A value that is kept in two layouts, or whose neighbours run as one operation, must not change behind the back of another
use of it; where it has no other use, it may.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx, nn

_NEW = ("torch.nn.modules." + kind for kind in ("conv", "linear", "batchnorm", "normalization", "pooling"))
_NEW_OF = (*_NEW, "startsparse.execution.modules")
_ARITHMETIC = {"add", "sub", "mul", "truediv", "matmul", "cat", "stack", "relu"}


def check(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
    """Refuse what changes a value in place that is used elsewhere: two layouts of it would differ."""
    for node in graph.nodes:
        target = node.args[0] if _in_place(node, modules) and node.args else None
        if _in_place(node, modules) and not (isinstance(target, fx.Node) and _owned(target, modules)):
            raise ValueError(f"{node.name} changes a value in place that is used elsewhere")


def _in_place(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    if node.op != "call_function":
        return False
    name = getattr(node.target, "__name__", "")
    operators = (
        getattr(node.target, "__module__", "") == "_operator" and name[:1] == "i" and name[1:] in _OPERATORS
    )
    asked = node.kwargs.get("inplace") is True or node.kwargs.get("out") is not None
    return operators or asked or (name.endswith("_") and not name.endswith("__")) or name == "setitem"


_OPERATORS = {
    "add", "and", "concat", "floordiv", "lshift", "matmul", "mod", "mul", "or", "pow", "rshift", "sub", "truediv", "xor"
}  # fmt: skip


def _owned(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a value, and all that it may be a view of, has no other use."""
    if len(node.users) > 1:
        return False
    if _in_place(node, modules):
        return isinstance(node.args[0], fx.Node) and _owned(node.args[0], modules)
    if node.op == "call_module" and type(modules[str(node.target)]).__module__.startswith(_NEW_OF):
        return True
    if node.op in ("call_function", "call_method"):
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        if name in _ARITHMETIC:
            return True
    return node.op != "get_attr" and all(_owned(one, modules) for one in node.all_input_nodes)
