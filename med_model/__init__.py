"""What the stages of Med_model must agree on: paths, records, prompts, models, loss, generation, measures."""

from huggingface_hub import constants

# No stage reports anything to anybody. The environment variable would be too late where a script imports trl first.
constants.HF_HUB_DISABLE_TELEMETRY = True
