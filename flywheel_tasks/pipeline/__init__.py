"""Runs the stages of dvc.yaml: graph, inputs, locks, resume state, DVC."""
