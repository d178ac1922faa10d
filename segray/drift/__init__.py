"""Drift detection: compare the images and predictions of a run with an earlier run or a model version."""
