"""List the modules and folders of med_model. A folder imports only from itself and from the lines above it.

No stage folder (pre_training, sft, dpo) imports another.

paths, language, screen, errors, files, command, allocator   modules that every folder may import
data/         find, read and split records; render prompts; fill blocks
model/        make the GPT-2, compute its output layer and loss, load and publish model directories
generation/   decode, sample, chat
measures/     measure models: every figure with its interval
training/     train: trainer, optimizer, KL regularization, pre-flight, progress, health
"""

from huggingface_hub import constants

# Turn off the telemetry of huggingface_hub. An environment variable would have no effect if a script imports trl
# first, because trl imports huggingface_hub.
constants.HF_HUB_DISABLE_TELEMETRY = True
