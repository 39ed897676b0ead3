"""What the stages of Med_model must agree on: paths, records, prompts, models, loss, generation, measures."""

import os

# No stage reports anything to anybody. Read by huggingface_hub when it is imported, so it stands before every other import.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
