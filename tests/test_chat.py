"""A chat stores what is said, removes what is undone, and explains clearly what it cannot do."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_core.catalog import Catalog
from rlhf_core.chat import Chat, Pieces, Settings, read_columns
from rlhf_core.cli import rlhf
from rlhf_core.data import loading as data
from rlhf_core.data.chat_template import ChatTemplate
from rlhf_core.environment import Ended
from rlhf_core.errors import UserError
from rlhf_core.grammar import DataSpec, RewardSpec
from rlhf_core.rewards.binding import bind_all
from rlhf_core.rewards.runtime import RewardRuntime
from rlhf_core.ui.text import shown

SHORT = ("--max-new-tokens", "8", "--seed", "1")


@pytest.fixture(scope="module")
def loaded(tiny_model):
    template = ChatTemplate(AutoTokenizer.from_pretrained(tiny_model))
    return AutoModelForCausalLM.from_pretrained(tiny_model).eval(), template


@pytest.fixture
def chat(loaded):
    """A chat whose output is collected in `chat.said`, a list of (text, style)."""
    torch.manual_seed(0)
    said: list[tuple[str, str]] = []
    made = Chat(*loaded, lambda text, style="": said.append((text, style)), Settings(max_new_tokens=8))
    made.said = said
    return made


@pytest.fixture
def rewarded(chat, tmp_path):
    """The same with a reward that needs nothing, one that needs a column, and one that fails."""
    file = tmp_path / "mine.py"
    file.write_text(
        "def chars(completions, **_): return [float(len(c[0]['content'])) for c in completions]\n"
        "def right(completions, answer, **_): return [float(a in ('4', ['4'])) for a in answer]\n"
        "def broken(completions, **_): raise ValueError('no\\nluck')\n"
    )
    specs = [RewardSpec.read(f"{file}:{name}") for name in ("chars", "right", "broken")]
    chat.rewards = {
        r.name: RewardRuntime([r], chat.template.decode, opening=chat.template.opening)
        for r in bind_all(specs, Catalog())
    }
    return chat


def text(chat, style: str | None = None) -> str:
    return "".join(part for part, its in chat.said if style is None or its == style)


def roles(chat) -> str:
    return "".join(turn["role"][0] for turn in chat._with_system(chat.turns))


def piped(model, lines: str, *arguments):
    return CliRunner().invoke(rlhf, ["chat", str(model), *SHORT, *arguments], input=lines)


class Stops:
    """A model whose answer is interrupted after `count` tokens, by Ctrl-C unless `how` is another end."""

    def __init__(self, model, count: int, how: type[BaseException] = KeyboardInterrupt) -> None:
        self.model, self.count, self.how = model, count, how
        self.config, self.generation_config, self.device = model.config, model.generation_config, model.device
        self.modules, self.base_model = model.modules, model.base_model
        self.named_children = model.named_children

    def generate(self, streamer, input_ids, **_):
        streamer.put(input_ids)
        for token in [40, 41, 42, 43][: self.count]:
            streamer.put(torch.tensor([token]))
        raise self.how


def test_an_answer_comes_in_pieces_and_is_stored_as_shown(chat):
    chat.ask("发热怎么办？")
    pieces = [part for part, style in chat.said if style == ""]
    assert len(pieces) > 3
    assert "".join(pieces).removesuffix("\n") == chat.turns[-1]["content"]
    assert roles(chat) == "ua"
    assert "Cut off after 8 tokens" in text(chat, "note")


def test_the_model_reads_the_full_conversation_in_its_template(chat):
    chat.system = "Be brief."
    chat.ask("one")
    chat.ask("two")
    rendered = chat.template.tokenizer.decode(chat._render(chat.turns[:-1]))
    first = chat.turns[1]["content"]
    for part in ("system\nBe brief.<|im_end|>", "user\none<|im_end|>", f"{first}<|im_end|>", "user\ntwo<|im_end|>"):
        assert part in rendered
    assert rendered.endswith("<|im_start|>assistant\n")


def test_characters_of_several_tokens_are_shown_complete(loaded):
    tokenizer = loaded[1].tokenizer
    said: list[str] = []
    pieces = Pieces(
        lambda ids: tokenizer.decode(ids, skip_special_tokens=True), lambda part, style="": said.append(part)
    )
    pieces.put(torch.tensor([[1, 2, 3]]))
    ids = tokenizer("麤 fever 🩺\n再见", add_special_tokens=False)["input_ids"]
    for token in ids:
        pieces.put(torch.tensor([token]))
    pieces.end()
    assert "".join(said) == "麤 fever 🩺\n再见"
    assert not any("\N{REPLACEMENT CHARACTER}" in part for part in said)
    assert len(said) > 4


def test_half_a_character_at_the_end_is_shown_at_the_end(loaded):
    tokenizer = loaded[1].tokenizer
    said: list[str] = []
    pieces = Pieces(tokenizer.decode, lambda part, style="": said.append(part))
    pieces.put(torch.tensor([[1]]))
    for token in tokenizer("🩺", add_special_tokens=False)["input_ids"][:-1]:
        pieces.put(torch.tensor([token]))
    assert said == []
    pieces.end()
    assert said


def test_retry_samples_again_and_undo_removes(chat):
    chat.ask("one")
    chat.ask("two")
    before = [dict(turn) for turn in chat.turns]
    chat.retry()
    assert chat.turns[:3] == before[:3]
    assert chat.turns[3] != before[3]
    assert len(chat.answer_ids) == 2
    chat.undo()
    assert chat.turns == before[:2]
    chat.undo()
    assert (chat.turns, chat.answer_ids) == ([], [])
    for command in ("/undo", "/retry", "/reward", "/save x.jsonl"):
        with pytest.raises(UserError, match="There is no answer yet"):
            chat.do(command)


def test_greedy_repeats_itself(chat):
    chat.settings = Settings(max_new_tokens=8, greedy=True)
    chat.ask("one")
    before = chat.turns[-1]["content"]
    chat.retry()
    assert chat.turns[-1]["content"] == before


def test_an_interrupted_answer_is_stored(chat):
    model, chat.model = chat.model, Stops(chat.model, 3)
    chat.ask("one")
    assert chat.turns[-1]["content"] == chat.template.tokenizer.decode([40, 41, 42])
    assert chat.answer_ids == [[40, 41, 42]]
    assert "the answer up to here stays" in text(chat, "note")
    chat.model = model
    chat.ask("two")
    assert roles(chat) == "uaua"


def test_another_end_than_ctrl_c_ends_the_chat(chat):
    """SIGTERM, and a terminal that is closed."""
    chat.model = Stops(chat.model, 3, Ended)
    with pytest.raises(Ended):
        chat.ask("one")


def test_an_answer_interrupted_before_its_first_word_changes_nothing(chat):
    chat.ask("one")
    before = [dict(turn) for turn in chat.turns]
    chat.model = Stops(chat.model, 0)
    chat.ask("two")
    chat.retry()
    assert chat.turns == before
    assert len(chat.answer_ids) == 1
    assert "your question is removed" in text(chat, "note")
    assert "the previous answer is restored" in text(chat, "note")


def test_what_does_not_fit_is_left_out_from_the_start(chat):
    for i in range(12):
        chat.turns += [{"role": "user", "content": f"Q{i} " + "fever " * 120}, {"role": "assistant", "content": "yes"}]
        chat.answer_ids.append([1])
    chat.system = "Be brief."
    chat.model.config.max_position_embeddings, limit = 1024, chat.model.config.max_position_embeddings
    try:
        chat.turns.append({"role": "user", "content": "last"})
        ids = chat._prompt(chat.turns)
        shown = chat.template.tokenizer.decode(ids)
        assert len(ids) + 8 <= 1024
        assert "Be brief." in shown
        assert "last" in shown
        assert "Q0 " not in shown
        left_out = int(re.search(r"no longer sees the oldest (\d+)", text(chat, "note"))[1])
        assert left_out % 2 == 0
        assert f"Q{left_out // 2} " in shown
        said = len(chat.said)
        chat._prompt(chat.turns)
        assert len(chat.said) == said
        assert len(chat.turns) == 25
        chat.turns.pop()
        with pytest.raises(UserError, match=r"tokens, and the model reads 1,024 at most"):
            chat.ask("fever " * 2000)
        assert len(chat.turns) == 24
    finally:
        chat.model.config.max_position_embeddings = limit


def test_rewards_of_the_last_answer(rewarded):
    rewarded.ask("2 + 2?")
    rewarded.said.clear()
    rewarded.do("/reward")
    lines = text(rewarded).splitlines()
    assert re.fullmatch(r"chars   \d+\.\d+", lines[0])
    assert float(lines[0].split()[1]) == len(rewarded.turns[-1]["content"])
    assert lines[1] == "right   needs the column answer: /reward answer=…"
    assert lines[2] == "broken  failed: ValueError: no luck"
    rewarded.said.clear()
    rewarded.do("/reward answer=4")
    assert "right   1.000" in text(rewarded)


def test_without_rewards_the_message_shows_how_to_add_one(chat):
    chat.ask("one")
    with pytest.raises(UserError, match="--reward NAME"):
        chat.do("/reward")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("", {}),
        ("answer=肺炎", {"answer": "肺炎"}),
        ("answer=4", {"answer": "4"}),
        ("answer=acute  cough, dry kind=a", {"answer": "acute  cough, dry", "kind": "a"}),
        ('keywords=["a", "b=c"], answer=x=y', {"keywords": ["a", "b=c"], "answer": "x=y"}),
        ('answer="4"', {"answer": "4"}),
        ("answer=", {"answer": ""}),
    ],
)
def test_columns_are_read(written, expected):
    assert read_columns(written) == expected


@pytest.mark.parametrize(("written", "message"), [("肺炎", "is not column=value"), ("a=[1", "is not valid JSON")])
def test_columns_that_cant_be_read(written, message):
    with pytest.raises(UserError, match=message):
        read_columns(written)


def test_a_saved_conversation_is_data(chat, tmp_path):
    chat.system = "Be brief."
    chat.ask("one")
    chat.do(f"/save {tmp_path / 'talk'}")
    (tmp_path / "talk.jsonl").write_text((tmp_path / "talk.jsonl").read_text().rstrip("\n"))
    chat.ask("两个")
    chat.do(f"/save {tmp_path / 'talk.jsonl'}")
    assert "which holds 2 now" in text(chat, "note")
    lines = [json.loads(line) for line in (tmp_path / "talk.jsonl").read_text().splitlines()]
    assert [len(line["messages"]) for line in lines] == [3, 5]
    rows = data.load([DataSpec(str(tmp_path / "talk.jsonl"))], "conversations", Catalog()).train
    assert chat._with_system(chat.turns) in [row["messages"] for row in rows]


def test_files_that_cant_be_saved_to(chat, tmp_path):
    chat.ask("one")
    for command, message in (
        ("/save", "To which file"),
        (f"/save {tmp_path}/x.txt", "has to end in .jsonl"),
        (f"/save {tmp_path}/no/x.jsonl", "No such file"),
    ):
        with pytest.raises(UserError, match=message):
            chat.do(command)
    assert not list(tmp_path.iterdir())


def test_lines_that_are_not_questions(chat):
    assert chat.do("   ")
    assert chat.do("/help")
    assert "/retry" in text(chat)
    assert chat.do("/system Be brief.")
    assert chat.system == "Be brief."
    assert chat.do("/system ''")
    assert chat.system is None
    assert not chat.do("/quit")
    with pytest.raises(UserError, match=r"There is no command /retyr. Did you mean '/retry'\?"):
        chat.do("/retyr")
    assert chat.turns == []
    chat.do("//etc is a folder")
    assert chat.turns[0]["content"] == "/etc is a folder"


def test_thoughts_have_a_style_of_their_own(chat):
    parts = ("prompt", "<thi", "nk>", "a fever", "</think>", "Answer")
    pieces = Pieces(lambda ids: "".join(parts[i] for i in ids), chat.write)
    for i in range(len(parts)):
        pieces.put(torch.tensor([i]))
    assert [style for _, style in chat.said] == ["", "thought", "thought", "thought", ""]


def test_a_scripted_chat_through_a_pipe(tiny_model, tmp_path):
    file = tmp_path / "talk.jsonl"
    lines = f"one\\\nmore\n/retyr\n/retry\ntwo\n/undo\n/reward\n/save {file}\n/system 你好\n/quit\nnever\n"
    result = piped(tiny_model, lines, "--reward", "medical_format", "--system", "Be brief.")
    assert result.exit_code == 0, result.output + repr(result.exception)
    messages = json.loads(file.read_text())["messages"]
    assert [turn["role"] for turn in messages] == ["system", "user", "assistant"]
    assert messages[1]["content"] == "one\nmore"
    assert shown(messages[2]["content"]) in result.output
    for part in ("Did you mean '/retry'?", "Removed: two", "medical_format  0.000", "System: 你好"):
        assert part in result.output
    assert "> " not in result.output
    assert "\x1b" not in result.output


def test_the_end_of_the_input_is_the_end(tiny_model):
    assert piped(tiny_model, "").exit_code == 0
    result = piped(tiny_model, "one\\")
    assert result.exit_code == 0
    assert result.output


def test_a_seed_repeats_a_chat(tiny_model):
    assert piped(tiny_model, "one\ntwo\n").output == piped(tiny_model, "one\ntwo\n").output


@pytest.fixture
def run(tiny_model, tmp_path):
    """A run's folder with an adapter in it."""
    folder = tmp_path / "run"
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")).save_pretrained(
        folder / "model"
    )
    (folder / "config.yaml").write_text("method: grpo\nreward: [medical_format, no_such_reward]\nsystem_prompt: null\n")
    return folder


def test_a_run_brings_its_rewards_and_their_system_prompt(run):
    result = piped(run, "one\n/reward\n/system\n")
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert "The run's reward no_such_reward is left out: there is no reward" in result.output
    assert re.search(r"^medical_format  \d", result.output, re.MULTILINE)
    assert "System: Think inside <think></think>" in result.output
    assert "No system message." in piped(run, "/system\n", "--system", "").output


def test_rewards_get_strings_where_the_runs_prompts_were_text(run):
    (run / "kinds.py").write_text("def kind(prompts, **_): return [float(isinstance(p, str)) for p in prompts]\n")
    reward = ("--reward", f"{run / 'kinds.py'}:kind", "--system", "S.")
    (run / "samples.jsonl").write_bytes(b"\xff\n")  # damaged
    assert "kind  0" in piped(run, "one\n/reward\n", *reward).output
    (run / "samples.jsonl").write_text('{"prompt": [], "completion": "", "text_prompt": true}\n')
    assert "kind  1" in piped(run, "one\n/reward\n", *reward).output


def test_a_system_message_without_a_place_is_told_once(run, tmp_path):
    (tmp_path / "t.jinja").write_text("{% for m in messages %}{{ m.content if m.role != 'system' }}{% endfor %}")
    said = piped(run, "one\ntwo\n", "--system", "S.", "--chat-template", str(tmp_path / "t.jinja")).output
    assert said.count("t.jinja has no place for a system message, which goes before the first question") == 1


def refused(model, *arguments) -> str:
    result = piped(model, "one\n", *arguments)
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


def test_mistakes(run, tiny_model, tmp_path):
    assert "there is no such folder" in refused(tmp_path / "nowhere")
    assert "Did you mean 'medical_format'" in refused(tiny_model, "--reward", "medical_formt")
    config = run / "model" / "adapter_config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "task_type": "SEQ_CLS"}))
    assert "is a reward model" in refused(run)
    config.write_text(json.dumps({**values, "base_model_name_or_path": "/gone"}))
    assert "an adapter of /gone, and there is no such folder" in refused(run)
    wrong = {
        "temperature": ["0", "nan", "inf", "1e-320", "1e30"],
        "top-p": ["0", "nan"],
        "max-new-tokens": ["0", "1e9"],
    }
    for option, values in wrong.items():
        for value in values:
            assert piped(tiny_model, "", f"--{option}", value).exit_code == 2, (option, value)


@pytest.mark.slow
def test_mistakes_are_reported_before_torch_is_imported_and_exit_with_2(tmp_path):
    code = (
        "import sys\nfrom rlhf_core.cli import main\n"
        "try: main()\nexcept SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    for arguments in (["chat", "./nowhere"], ["merge", "./nowhere"], ["chat", "--help"], ["merge", "--help"]):
        said = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path)
        assert said.stdout.endswith("0 False\n" if "--help" in arguments else "2 False\n")
        assert "Traceback" not in said.stderr
    assert not list(Path(tmp_path).iterdir())
