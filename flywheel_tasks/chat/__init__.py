"""Character cards, conversations and how they become a prompt."""
