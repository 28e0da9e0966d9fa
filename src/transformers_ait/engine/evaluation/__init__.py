"""Figures of checkpoint folders on a dataset."""
