"""Annotation batches out, labels in, preference pairs."""
