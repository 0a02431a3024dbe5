"""Events to conversations: turn order, edits, regenerated replies, derived signals."""
