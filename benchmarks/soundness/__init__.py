"""Whether results hold in half precision, and whether memory stays bounded; the reports lie in `benchmarks/`."""
