"""What is trained: tokenizers, dense tasks, objects, all of them together, poses; and the rows each reads."""
