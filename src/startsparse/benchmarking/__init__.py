"""How fast and how small truly sparse execution is on this machine, beside everything it can be compared with.

Each suite is a file here and returns rows of plain numbers; ``startsparse bench`` prints them.
"""
