"""Let the base model continue a text.

Reads base_model__after_pretraining/ (or --model DIR)

    python pre_training/py/base_model_chat.py
    python pre_training/py/base_model_chat.py --prompt "高血压是指"
    echo "高血压是指" | python pre_training/py/base_model_chat.py --temperature 0
"""

from med_model import paths
from med_model.command import run
from med_model.generation.chat import run_chat
from med_model.language import tr

if __name__ == "__main__":
    run(lambda: run_chat(tr("Let the base model continue a text."), __doc__, paths.BASE_MODEL, turns=False))
