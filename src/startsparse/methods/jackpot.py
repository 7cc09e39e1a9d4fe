"""Lottery jackpots: a mask searched over the frozen weights of a pre-trained net, begun at its largest weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .ranked import RankedSearch


@dataclass(frozen=True)
class Jackpot(RankedSearch):
    """A jackpot as the paper's final version intends it: magnitude start, raw scores, restricted swaps.

    Scores begin at 1 for the weights of largest magnitude and at ``1 - gap`` for the others; after every step the
    layer's highest scores are active, but only a share ``(1 - progress)**4`` of the wanted swaps is made. Meant for
    SGD with learning rate 0.1, momentum 0.9, weight decay 5e-4 (CIFAR) or 1e-4 (ImageNet) and a cosine schedule.

    References:
        Zhang, Lin, Zhong, Chao, Ji, Lottery Jackpots Exist in Pre-trained Models, TPAMI 2023,
        https://arxiv.org/abs/2104.08700

    Fidelity:
        After the released code of 2023, whose restriction is switched off by a misplaced rounding
        (``jackpot-2023-released`` is what it runs); the quartic decay is what that code writes down, here per step
        instead of per epoch. Counts are exact with ties, where the code makes no swap at all in a layer with tied
        scores; channels-last weights are searched like others. The paper's text was not at hand.

    Example:
        >>> Jackpot(density=0.1).restriction
        'quartic'
    """

    restriction: str | float = "quartic"

    name: ClassVar[str] = "jackpot"
    paper: ClassVar[str] = "Zhang et al. 2023"
    summary: ClassVar[str] = "search a mask over frozen pre-trained weights, from the largest ones"


@dataclass(frozen=True)
class JackpotReleased(RankedSearch):
    """A jackpot as the released code of 2023 runs: plain layer-wise top-k of raw scores, no restriction.

    References:
        Zhang et al., Lottery Jackpots Exist in Pre-trained Models, TPAMI 2023, https://arxiv.org/abs/2104.08700

    Fidelity:
        The rule of the released code without its defects: its CIFAR script searches random weights by mistake, ties
        block a layer, channels-last weights never change.

    Example:
        >>> JackpotReleased(density=0.1).restriction
        'none'
    """

    name: ClassVar[str] = "jackpot-2023-released"
    paper: ClassVar[str] = "Zhang et al. 2023"
    summary: ClassVar[str] = "the jackpot search without restricted swaps"


@dataclass(frozen=True)
class Jackpot2021(RankedSearch):
    """A jackpot as first released in 2021: scores ranked by absolute value, first levels 1 and 0.95.

    References:
        Zhang et al., Lottery Jackpots Exist in Pre-trained Models, 2021 (first versions),
        https://arxiv.org/abs/2104.08700

    Fidelity:
        The code sorts scores in every forward pass; here the mask is renewed once after every step, which is the same
        mask.

    Example:
        >>> Jackpot2021(density=0.1).gap, Jackpot2021(density=0.1).rank
        (0.05, 'absolute')
    """

    gap: float = 0.05
    rank: str = "absolute"

    name: ClassVar[str] = "jackpot-2021"
    paper: ClassVar[str] = "Zhang et al. 2021"
    summary: ClassVar[str] = "the first jackpot search: absolute scores, wider gap"


@dataclass(frozen=True)
class JackpotNM(RankedSearch):
    """A jackpot with exactly N of every M consecutive inputs active, at every step of the search.

    Scores compete within their group; restricted swaps are pairs within groups, over the whole layer the widest gap
    first. One score a weight: with SGD's momentum 2 numbers, where six categorical logits per four weights and two
    Adam moments need 4.5.

    References:
        Zhang et al., Lottery Jackpots Exist in Pre-trained Models, TPAMI 2023, https://arxiv.org/abs/2104.08700
        Fang et al., MaskLLM, 2024 (categorical masks over frozen weights), https://arxiv.org/abs/2409.17481

    Fidelity:
        Neither paper's method: the first one's search with the second one's pattern.

    Example:
        >>> JackpotNM().scope, JackpotNM(density=0.25, scope="1:4").density
        ('2:4', 0.25)
    """

    density: float = 0.5
    scope: str = "2:4"
    restriction: str | float = "quartic"

    name: ClassVar[str] = "jackpot-nm"
    paper: ClassVar[str] = "Zhang et al. 2023"
    summary: ClassVar[str] = "a jackpot with exactly N of every M weights"

    def __post_init__(self):
        super().__post_init__()
        if ":" not in self.scope or self.scope.startswith("block"):
            raise ValueError(f"{self.name}: scope must be an N:M pattern such as '2:4', got {self.scope!r}")
