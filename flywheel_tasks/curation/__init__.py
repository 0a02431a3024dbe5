"""From validated conversations to the prompts of this generation."""
