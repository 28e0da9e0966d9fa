"""Kill -9 over every training script and every save: what is left is whole, and what goes on ends in the same bits.

`python -m tests.torture_kill --help` says how to run it; `make torture-kill` runs all of it.
"""
