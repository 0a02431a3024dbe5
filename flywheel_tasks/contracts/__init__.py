"""Runs the data contracts of data_contracts/ and keeps the quarantine."""
