"""The methods, one file per paper family, and their names."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..distributions import Scaled
from ..names import nearest
from .acdc import ACDC as ACDC
from .at_init import GraSP as GraSP
from .at_init import SynFlow as SynFlow
from .base import Method as Method
from .cht import CHT as CHT
from .deep_r import DeepR as DeepR
from .drop_grow import SET as SET
from .drop_grow import RigL as RigL
from .dsr import DSR as DSR
from .dst_ee import DSTEE as DSTEE
from .edge_popup import Biprop as Biprop
from .edge_popup import EdgePopup as EdgePopup
from .edge_popup import EdgePopupAnnealed as EdgePopupAnnealed
from .edge_popup import Hydra as Hydra
from .edge_popup import MovementFrozen as MovementFrozen
from .ggr import GGR as GGR
from .granet import GraNet as GraNet
from .gse import GSE as GSE
from .iterative import IMP as IMP
from .iterative import EarlyBird as EarlyBird
from .itop import ITOP as ITOP
from .jackpot import Jackpot as Jackpot
from .jackpot import Jackpot2021 as Jackpot2021
from .jackpot import JackpotNM as JackpotNM
from .jackpot import JackpotReleased as JackpotReleased
from .maskllm import MaskLLM as MaskLLM
from .mest import MEST as MEST
from .prune import GMP as GMP
from .prune import SNIP as SNIP
from .prune import Magnitude as Magnitude
from .rst import RST as RST
from .search import SearchMethod as SearchMethod
from .snfs import SNFS as SNFS
from .soft_gmp import SoftGMP as SoftGMP
from .soft_masks import ContinuousSparsification as ContinuousSparsification
from .soft_masks import ProbMask as ProbMask
from .srigl import SRigL as SRigL
from .static import Static as Static
from .str_ import STR as STR
from .supermask import Piggyback as Piggyback
from .supermask import Supermask as Supermask
from .topkast import TopKAST as TopKAST
from .view import Change as Change
from .view import DenseView as DenseView
from .view import LayerView as LayerView

REGISTRY: dict[str, type[Any]] = {
    method.name: method
    for method in (
        Static,
        Magnitude,
        SNIP,
        GMP,
        SET,
        RigL,
        ITOP,
        MEST,
        GraNet,
        ACDC,
        SNFS,
        DSR,
        SRigL,
        TopKAST,
        SoftGMP,
        STR,
        GSE,
        DSTEE,
        DeepR,
        CHT,
        GGR,
        GraSP,
        SynFlow,
        RST,
        IMP,
        EarlyBird,
    )
}
SEARCHES: tuple[type[SearchMethod], ...] = (
    Jackpot,
    Jackpot2021,
    JackpotNM,
    JackpotReleased,
    Biprop,
    EdgePopup,
    EdgePopupAnnealed,
    Hydra,
    MovementFrozen,
    Piggyback,
    Supermask,
    ContinuousSparsification,
    ProbMask,
    MaskLLM,
)
REGISTRY |= {method.name: method for method in SEARCHES}
ALIASES = {"jackpot-2023-intended": "jackpot"}
KINDS = ("attach", "search", "lottery")


def names(kind: str | None = None) -> list[str]:
    """Names of the methods, all or of one kind: "attach", "search" or "lottery".

    Example:
        >>> {"rigl", "set", "snip", "static"} <= set(names("attach"))
        True
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}: {nearest(str(kind), KINDS)}")
    return sorted(name for name, method in REGISTRY.items() if kind in (None, method.kind))


def get(name: str) -> type[Any]:
    """The class of a method.

    Raises:
        ValueError: no method has this name; the nearest one is named.
    """
    name = ALIASES.get(name, name) if isinstance(name, str) else name
    if not isinstance(name, str) or name not in REGISTRY:
        raise ValueError(f"unknown method {name!r}: {nearest(str(name), names())}")
    return REGISTRY[name]


def make(name: str, **hyper_parameters: Any) -> Any:
    """A method by name; hyper-parameters are spelled as in Python.

    Raises:
        ValueError: unknown name, unknown or missing hyper-parameter, or a value out of range.

    Example:
        >>> make("rigl", density=0.05).update_interval
        100
    """
    method = get(name)
    known = [field.name for field in dataclasses.fields(method)]
    for given in hyper_parameters:
        if given not in known:
            hint = "density is 1 - sparsity; " if given == "sparsity" and "density" in known else ""
            raise ValueError(f"{name} has no hyper-parameter {given!r}: {hint}{nearest(given, known)}")
    required = {field.name for field in dataclasses.fields(method) if field.default is dataclasses.MISSING}
    if "density" in required - hyper_parameters.keys():
        raise ValueError(f"{name} needs a density in (0, 1]")
    distribution = hyper_parameters.get("distribution")
    if isinstance(distribution, dict) and set(distribution) == {"scaled"}:
        hyper_parameters = hyper_parameters | {"distribution": Scaled(distribution["scaled"])}
    return method(**hyper_parameters)
