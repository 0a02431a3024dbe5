"""Offline evaluation of a candidate against the champion, and the gate."""
