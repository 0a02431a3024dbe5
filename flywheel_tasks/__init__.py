"""CharacterFlywheel: turn real chat traffic into a better character-chat model, every week, safely."""
