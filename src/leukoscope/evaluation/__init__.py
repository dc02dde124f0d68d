"""Metrics with intervals, calibration, thresholds, baselines, and what is fitted into a release after training."""
