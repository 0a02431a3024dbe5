"""What a person reads before approving."""
