"""Prediction with trained models, and the models made fast for it."""
