"""Code that a model brings is not run, and nobody is asked about it on standard input, unless it is trusted by a flag."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

import rlhf_core
from rlhf_core import builtin
from rlhf_core.cli import rlhf
from rlhf_core.config import read_rewards
from rlhf_core.errors import UserError
from rlhf_core.models import checks
from rlhf_core.models import loading as models
from rlhf_core.models.resolve import find, quiet_libraries

ROWS = [{"question": f"What helps against symptom {i}?", "answer": f"Rest {i}"} for i in range(8)]
VALUES = {"method": "sft"}
RAN = "import pathlib; pathlib.Path(__file__).with_name('ran').touch(); pathlib.Path({at!r}).touch()\n"
CONFIGURATION = """
from transformers import LlamaConfig

class OwnConfig(LlamaConfig):
    model_type = "own_llama"
"""
MODELING = """
from torch import nn
from transformers import LlamaForCausalLM, LlamaModel, LlamaPreTrainedModel
from .configuration_own import OwnConfig

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

class OwnForSequenceClassification(LlamaPreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.model, self.score = LlamaModel(config), nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()
"""


def write(folder: Path, ran: Path) -> Path:
    """A small Llama under another name, with its code beside it, which leaves the file `ran` when it is imported."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=2048, **sizes)).save_pretrained(folder)
    for file in builtin.MODEL.iterdir():
        if file.name.startswith(("tokenizer", "chat_template")):
            shutil.copy(file, folder)
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    names["AutoModelForSequenceClassification"] = "modeling_own.OwnForSequenceClassification"
    config |= {"model_type": "own_llama", "architectures": ["OwnForCausalLM"], "auto_map": names}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration_own.py").write_text(RAN.format(at=str(ran)) + CONFIGURATION)
    (folder / "modeling_own.py").write_text(MODELING)
    return folder


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The model's folder. Whoever asks on standard input fails."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("standard input was read"))
    return write(tmp_path / "own", tmp_path / "ran")


def adapter_of(base: Path, folder: Path) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(base)}))
    return folder


REFUSING = {
    "run": lambda own: models.inspect(find(str(own), "--model")),
    "reward model": lambda own: models.check_scorer(str(own)),
    "adapter": lambda own: models.inspect(find(str(adapter_of(own, own.parent / "adapter")))),
    "merge": lambda own: invoke("merge", str(adapter_of(own, own.parent / "adapter"))),
    "chat": lambda own: invoke("chat", str(own)),
    "dry run": lambda own: invoke("run", "--method", "sft", "--dry-run", "--model", str(own)),
}


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(rlhf, arguments, input="yes\n" * 20)
    if result.exception is not None:
        raise result.exception
    return result.output


@pytest.mark.parametrize("name", REFUSING)
def test_code_of_a_model_is_refused(name, own, tmp_path):
    with pytest.raises(UserError, match=r"brings code of its own \(configuration_own.OwnConfig, .*--trust-remote-code"):
        REFUSING[name](own)
    assert not (tmp_path / "ran").exists()


def test_code_of_a_tokenizer_is_not_run(own, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "tokenized")
    (folder / "own.py").write_text(RAN.format(at=str(tmp_path / "ran")))
    file = folder / "tokenizer_config.json"
    settings = {
        **json.loads(file.read_text()),
        "tokenizer_class": "Own",
        "auto_map": {"AutoTokenizer": ["own.Own", None]},
    }
    file.write_text(json.dumps(settings))
    models.inspect(find(str(folder)))
    assert not (tmp_path / "ran").exists()


def test_attention_from_the_hub_is_code(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "attending")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attn_implementation": "someone/kernel"}))
    with pytest.raises(UserError, match="attn_implementation in its config.json: someone/kernel is code from the Hub"):
        models.inspect(find(str(folder)))
    info = models.inspect(find(str(tiny_model)))
    with pytest.raises(UserError, match="--attn-implementation kernels-community/flash-attn: .* is code from the Hub"):
        checks.without_weights(info.config, "causal_lm", info.reference, "kernels-community/flash-attn")


def test_a_trusted_model_is_trained_resumed_and_talked_with(own, go, tmp_path, monkeypatch):
    code, folder = go(model=str(own), trust_remote_code=True, max_steps=1)
    assert code == 0
    assert (tmp_path / "ran").exists()
    assert yaml.safe_load((folder / "config.yaml").read_text())["trust_remote_code"] is True
    assert json.loads((folder / "manifest.json").read_text())["trust_remote_code"] is True
    invoke("run", "--resume", str(folder), "--dry-run")
    with pytest.raises(UserError, match="--trust-remote-code"):
        invoke("chat", str(folder))
    lines = iter(["hello", "/quit"])
    monkeypatch.setattr("builtins.input", lambda *_: next(lines))
    assert "Cut off after 2 tokens" in invoke("chat", str(folder), "--trust-remote-code", "--max-new-tokens", "2")


def test_a_trusted_reward_model(own):
    reference = find(str(own), trust_remote_code=True)
    assert type(models.inspect(reference, "sequence_classification").empty).__name__ == "OwnForSequenceClassification"
    trusted, other = (read_rewards([], "scorer", trust_remote_code=trust)[0] for trust in (True, False))
    assert trusted.parameters == {"path": "scorer", "trust_remote_code": True}
    assert other.parameters == {"path": "scorer"}


def test_transformers_does_not_ask(own):
    with quiet_libraries(), pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoConfig.from_pretrained(own)


def test_transformers_is_never_left_to_ask():
    """Each call that may load code says whether it may."""
    root = Path(rlhf_core.__file__).parent
    calls = []
    for file in [*root.rglob("*.py"), *root.parent.glob("plugins/*/rlhf_*/**/*.py")]:
        text = file.read_text()
        for node in ast.walk(ast.parse(text)) if "from_pretrained" in text or "from_config" in text else ():
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = ast.unparse(node.func.value)
                if node.func.attr in ("from_pretrained", "from_config") and "auto" in owner.lower():
                    calls.append((file.relative_to(root.parent), node.lineno, {word.arg for word in node.keywords}))
    said = [call for call in calls if "trust_remote_code" in call[2]]
    others = [call for call in calls if call not in said and call[0].name != "tiny.py"]  # of the built-in model
    assert len(said) == 5
    assert not [call for call in others if call[0].name != "precision.py"], "say trust_remote_code="  # quantizers
