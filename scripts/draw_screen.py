"""Draw a run's screen and `rlhf runs` as pictures: 80 and 120 columns, dark and light, English and Chinese answers.

    .venv/bin/python scripts/draw_screen.py FOLDER_OF_PICTURES [RUN]

Of RUN, a run that is done (else of made-up numbers), the view is as it was at its last step. Where Chromium
is installed, each SVG gets a PNG beside it.
"""

from __future__ import annotations

import html
import io
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from rich.cells import cell_len
from rich.terminal_theme import DEFAULT_TERMINAL_THEME, MONOKAI, TerminalTheme
from transformers import TrainerState

from rlhf_core.training.progress import ProgressCallback
from rlhf_core.ui.screen import Terminal

THEMES: dict[str, TerminalTheme] = {"dark": MONOKAI, "light": DEFAULT_TERMINAL_THEME}
CELL = 12.2  # of a column, in rich's SVG
QUESTION = "主诉：近期过度劳累、皮肤灼痛、衣服碰到就痛，3天。患者男性，45岁。麻烦判断一下是什么病。"
ANSWER = (
    "<think>\n见皮肤灼痛、衣服碰到就痛，符合带状疱疹。\n</think>\n<answer>\n诊断：带状疱疹\n依据：皮肤灼痛\n</answer>"
)
NOTE = "the length of an answer explains its reward (correlation 0.83 since step 12): rlhf diagnose runs/first"


def made_up() -> tuple[list[dict], list[dict]]:
    """(lines of metrics, samples) of a run that learns."""
    lines = []
    for step in range(1, 25):
        done = 1 / (1 + math.exp(6 - step / 2))
        lines.append(
            {
                "step": step,
                "reward": 0.1 + 0.8 * done,
                "completions/mean_length": 40 + 9 * math.sin(step),
                "kl": done / 20,
            }
        )
        lines[-1] |= {"eval_reward": 0.15 + 0.7 * done} if step % 6 == 0 else {}
        lines[-1] |= {"memory/peak_gb": 0.31, "memory/free_gb": 20.4}
    sample = {
        "prompt": [{"role": "user", "content": QUESTION}],
        "completion": ANSWER,
        "rewards": {"medical_format": 1.0},
        "tokens": 56,
    }
    return lines, [sample] * 16


def recorded(folder: Path) -> tuple[list[dict], list[dict]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if "loss" in line], samples[-16:]


def view(terminal: Terminal, lines: list[dict], samples: list[dict]) -> ProgressCallback:
    """The screen after these lines of metrics."""
    progress = ProgressCallback(terminal, SimpleNamespace(samples=SimpleNamespace(last=[])))
    state, args = TrainerState(max_steps=lines[-1]["step"] * 3 // 2), SimpleNamespace(world_size=1)
    progress.on_train_begin(args, state, None)
    progress.close()
    progress.live = SimpleNamespace(close=lambda: None)
    for line in lines:
        progress.rewards.samples.last = list(samples)
        progress.since -= 2.0
        state.global_step = line["step"]
        progress.on_step_end(args, state, None)
        progress.on_log(args, state, None, logs=line)
    progress.notes = [NOTE]
    return progress


def wide(svg: str) -> str:
    """`svg` with the length of each text in columns: rich counts characters, of which Chinese ones take two."""

    def measured(found: re.Match[str]) -> str:
        return f"{found[1]}{CELL * cell_len(html.unescape(found[3])):g}{found[2]}{found[3]}"

    return re.sub(r'(<text [^>]*?textLength=")[\d.]+("[^>]*>)([^<]*)', measured, svg)


def draw(folder: Path, name: str, terminal: Terminal) -> None:
    for theme, colours in THEMES.items():
        file = folder / f"{name}-{theme}.svg"
        svg = terminal.export_svg(title="rlhf run", theme=colours, clear=False)
        file.write_text(wide(svg), encoding="utf-8")
        if browser := shutil.which("chromium"):
            picture = f"--screenshot={file.with_suffix('.png')}"
            size = "--window-size=1500,760" if terminal.width > 80 else "--window-size=1020,760"
            command = [browser, "--headless", "--no-sandbox", "--disable-gpu", size, picture, str(file.resolve())]
            subprocess.run(command, check=True, capture_output=True)


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    lines, samples = recorded(Path(sys.argv[2])) if len(sys.argv) > 2 else made_up()
    for width in (80, 120):
        terminal = Terminal(
            file=io.StringIO(), force_terminal=True, width=width, height=24, record=True, color_system="truecolor"
        )
        progress = view(terminal, lines, samples)
        terminal.export_text()  # forgets what was shown until now
        terminal.print(progress._render())
        draw(folder, f"screen-{width}", terminal)


if __name__ == "__main__":
    main()
