"""A tiny model and a small medical data set, so that `rlhf run` works offline out of the box.

    MODEL                              folder of the model, for `AutoModelForCausalLM.from_pretrained`
    DATA                               folder of the data
    data_file("prompts", "train")      one JSONL file of it

Both are generated: `python -m scripts.make_builtin.build`. They teach and test the trainer; nothing in
them is medical advice.
"""

from pathlib import Path
from typing import Literal

MODEL = Path(__file__).parent / "model"
DATA = Path(__file__).parent / "data"


def data_file(kind: Literal["prompts", "preferences", "conversations"], split: Literal["train", "heldout"]) -> Path:
    return DATA / f"{kind}.{split}.jsonl"
