"""The training loop on Accelerate and what it is made of: order of data, streams, checkpoints, averaged weights."""
