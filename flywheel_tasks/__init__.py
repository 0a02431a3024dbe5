"""CharacterFlywheel: turn real chat traffic into a better character-chat model, every week, safely."""

import os

# Libraries that report their use home read these when they are imported. Chat data and model names stay here.
for _name in ("HF_HUB_DISABLE_TELEMETRY", "DVC_NO_ANALYTICS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("GX_ANALYTICS_ENABLED", "False")
