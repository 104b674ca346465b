"""Weights: what they are, where their bytes come from, and how they get into a model."""
