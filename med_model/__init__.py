"""What the stages of Med_model must agree on: paths, records, prompts, models, loss, generation, measures."""

import os

# No stage reports anything to anybody. huggingface_hub reads this once, when it is imported.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
