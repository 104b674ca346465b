"""Evaluation: figures with intervals, thresholds, calibration, and the report that holds them."""
