"""Experiments: many runs as one command, and what may be said when they are compared. Needs ``startsparse[train]``."""
