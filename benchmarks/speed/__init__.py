"""How fast the models and their training are: `python -m benchmarks.speed`; its reports lie beside this folder."""
