"""The gateway: an OpenAI-compatible server that routes users to their arm's model and records what happens."""
