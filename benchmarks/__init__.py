"""Measures kdbench beside its peers: `python -m benchmarks`. Every row is a ratio of two things measured in one run.

Not part of the installed package. One module a group of rows; `measure` runs each measurement in a process of its own.
"""
