"""startsparse: train neural networks that are sparse from the first step to the last."""

from . import distributions as distributions
from . import methods as methods
from . import sources as sources
from . import theory as theory
from .artifact import load as load
from .artifact import save as save
from .distributions import Scaled as Scaled
from .execution.convert import densify_execution as densify_execution
from .execution.convert import sparsify_execution as sparsify_execution
from .methods import ACDC as ACDC
from .methods import GGR as GGR
from .methods import GMP as GMP
from .methods import ITOP as ITOP
from .methods import MEST as MEST
from .methods import SET as SET
from .methods import SNIP as SNIP
from .methods import GraNet as GraNet
from .methods import GraSP as GraSP
from .methods import Magnitude as Magnitude
from .methods import RigL as RigL
from .methods import Static as Static
from .methods import SynFlow as SynFlow
from .planning import Plan as Plan
from .planning import plan as plan
from .report import Report as Report
from .sources import DenseSource as DenseSource
from .sources import MaskSource as MaskSource
from .sources import RandomSource as RandomSource
from .sources import ZerosSource as ZerosSource
from .sparsifier import Sparsifier as Sparsifier
from .sparsifier import attach as attach

__version__ = "0.1.0.dev0"
