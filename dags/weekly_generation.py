"""The weekly generation DAG, built from dvc.yaml (see ``flywheel_dag/weekly.py``). Airflow looks here."""

from flywheel_dag.weekly import weekly_generation
from flywheel_dag.workspace import workspace

dag = weekly_generation(workspace())
