"""Weights: their records, how their files are downloaded and verified, and how they are loaded into a model."""
