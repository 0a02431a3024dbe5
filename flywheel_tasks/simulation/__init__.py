"""Simulated users and annotators for the demo. Nothing that learns may import this."""
