"""Ablations: suites of variants over recipes, run once each by content, and tables with intervals of them."""
