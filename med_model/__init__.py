"""List the modules and folders of med_model. A folder imports only itself and what is above it in this list.

No stage folder (pre_training, sft, dpo) imports another.

paths, language, screen, errors, files, command, allocator   modules that every folder may import
data/         find, read and split records; render prompts; fill blocks
model/        make the GPT-2, compute its output layer and loss, load and publish model directories
generation/   decode, sample, chat
measures/     compute the measures of a model and their confidence intervals
training/     train: trainer, optimizer, KL regularization, pre-flight, progress, health
"""

from huggingface_hub import constants

# Turn off the telemetry of huggingface_hub. An environment variable could be set too late: huggingface_hub reads it
# at import. trl imports huggingface_hub, and a script may import trl before med_model.
constants.HF_HUB_DISABLE_TELEMETRY = True
