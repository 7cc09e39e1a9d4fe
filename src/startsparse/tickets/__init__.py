"""Lottery tickets: levels of training and pruning, what they are compared with, and what they cost."""

from .branches import BRANCHES as BRANCHES
from .branches import randomise as randomise
from .branches import reinitialise as reinitialise
from .branches import retrain as retrain
from .branches import shuffle as shuffle
from .budget import Budget as Budget
from .connectivity import Connection as Connection
from .connectivity import connect as connect
from .connectivity import reestimate as reestimate
from .level import Level as Level
from .lottery import Lottery as Lottery
from .lottery import Trained as Trained
from .lottery import lottery as lottery
from .ticket import Ticket as Ticket
