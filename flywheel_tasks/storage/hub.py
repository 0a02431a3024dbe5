"""Models from the Hugging Face hub: what a policy or a judge needs, and nothing that would have to be unpickled."""

from pathlib import Path

_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]


def hub_model(model: str) -> Path:
    """The folder of a model that the hub gives, or gave before.

    Args:
        model: hub id.

    Raises:
        OSError: the hub does not give it, and it is not here.
        ValueError: this is no hub id.
    """
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, allow_patterns=_FILES))
