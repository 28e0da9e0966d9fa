"""The original formulas, written out plainly on a dictionary of original tensors.

Nothing here knows the models of this package: the functions take tensors under their ORIGINAL names and the ORIGINAL
configuration dictionary, and compute what AiT (arXiv 2301.02229) computes, step by step: position bias evaluated in
every block, softmax attention spelled out, cross-attention keys recomputed at every decoding step. The converter proves
its result against them, and a benchmark can time them as the plain formulation.
"""
