"""Renders the data graph and the human gates as Airflow tasks. What the tasks do is in ``flywheel_tasks``."""
