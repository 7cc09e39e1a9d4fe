"""The training room: data, models, optimizers, the loop, checkpoints, and runs described by one recipe.

It takes a sparsifier and does not know which method it carries. Importing it needs torch and NumPy alone; what a
recipe needs besides is the extra ``startsparse[train]``, asked for by name where it is missing.
"""
