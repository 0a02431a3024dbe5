"""Raw logs in: event format, ingestion, importers of public formats."""
