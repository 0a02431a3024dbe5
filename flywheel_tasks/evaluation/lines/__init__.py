"""More lines that train the refusal detector, a file a kind of dialogue, in the form of ``refusal_lines.txt``."""

FILES = (
    "assistants.txt",
    "companions.txt",
    "contrasts.txt",
    "early_assistants.txt",
    "early_assistants_willing.txt",
    "fantasy.txt",
    "ordinary.txt",
    "science_fiction.txt",
    "small_models.txt",
    "tasks.txt",
)
