"""Bad and odd input to everything public, by seeded numbers: `python -m tests.torture` from the repository root.

A case is a kind and a number. Whatever it does, the code must accept it, or refuse it with a typed error whose message
names the argument or file, in seconds, within 2 GiB, and without half a file left behind. See `judge`.
"""
