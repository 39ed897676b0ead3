"""Talk with the final model, after DPO.

Reads final_model__after_dpo/ (or --model DIR)

    python dpo/py/dpo_model_chat.py
    python dpo/py/dpo_model_chat.py --prompt "高血压要注意什么？"
    echo "高血压要注意什么？" | python dpo/py/dpo_model_chat.py --temperature 0
"""

from med_model import paths
from med_model.command import run
from med_model.generation.chat import run_chat
from med_model.language import tr

if __name__ == "__main__":
    run(lambda: run_chat(tr("Talk with the final model, after DPO."), __doc__, paths.FINAL_MODEL))
