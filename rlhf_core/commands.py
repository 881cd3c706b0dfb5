"""What commands of plugins are made of: runs, models, data, rewards and the screen, as rlhf's own commands use them.

`rlhf compare` of rlhf-tools is an example. Importing this imports no torch.
"""

# ruff: noqa: F401  (all that is imported here is for plugins)

from rlhf_core.config import read_file as read_config
from rlhf_core.data.cache import folder as cache_folder
from rlhf_core.data.chat_template import NO_SYSTEM
from rlhf_core.data.encoding import tools_of
from rlhf_core.data.labels import (
    SUFFIX,
    Label,
    Labels,
    append_label,
    by_pair,
    check_writable,
    labels_in,
    now,
    own_order,
    pair_id,
    read_labels,
    votes,
)
from rlhf_core.data.labels import current as current_labels
from rlhf_core.data.left_out import BadData, LeftOut
from rlhf_core.data.loading import load as load_data
from rlhf_core.data.pairs import Pair, Pairs, pair_row, read_pairs, text_of
from rlhf_core.data.preparing import with_system
from rlhf_core.data.projecting import prompt_of
from rlhf_core.data.sources import read as read_rows
from rlhf_core.data_report.near import THRESHOLD as SIMILAR
from rlhf_core.data_report.near import runs, similarity
from rlhf_core.errors import did_you_mean
from rlhf_core.estimate.answer import REWARD as ESTIMATED_REWARD
from rlhf_core.estimate.answer import Question
from rlhf_core.estimate.hardware import Device, device_of
from rlhf_core.grammar import DataSpec, RewardSpec, read_entry
from rlhf_core.grammar import read_data as read_data_specs
from rlhf_core.inputs import library_errors, parse_yaml, path_of, read_text
from rlhf_core.method import read_kwargs
from rlhf_core.models.context import context_length, max_tokens
from rlhf_core.models.loading import ModelInfo
from rlhf_core.models.loading import inspect as inspect_model
from rlhf_core.models.loading import load as load_model
from rlhf_core.models.precision import device, frozen_dtype, gpu_has_bfloat16
from rlhf_core.models.resolve import ModelReference, quiet_libraries
from rlhf_core.models.resolve import find as find_model
from rlhf_core.models.template import template_of
from rlhf_core.outputs import claim, new_file, read_lines, write_whole
from rlhf_core.report.groups import read_all as read_samples
from rlhf_core.report.metrics import finite
from rlhf_core.reward_report import agreeing, agreement
from rlhf_core.reward_report.against import verdicts
from rlhf_core.reward_report.answers import Answer, Answers
from rlhf_core.reward_report.human import of_people
from rlhf_core.reward_report.measuring import scored as score_answers
from rlhf_core.rewards.batch import RewardBatch, columns_of
from rlhf_core.rewards.before_run import said_before
from rlhf_core.rewards.binding import BoundReward, check_columns
from rlhf_core.rewards.binding import bind_all as bind_rewards
from rlhf_core.rewards.pairwise import Comparison, check_pairwise, compare_answers
from rlhf_core.rewards.runtime import RewardRuntime
from rlhf_core.rewards.smoke_test import PLACEHOLDERS
from rlhf_core.statistics import Estimate, bootstrap_mean, histogram, mean, same
from rlhf_core.training.manifest import contents as content_of
from rlhf_core.training.manifest import of_reward as files_of_reward
from rlhf_core.training.manifest import versions as library_versions
from rlhf_core.training.plan import system_prompt_for
from rlhf_core.ui.page import document, template
from rlhf_core.ui.screen import Screen, Terminal, question, text
from rlhf_core.ui.streams import stdout_to_stderr
from rlhf_core.ui.text import duration, gb, shown, to_json
from rlhf_core.words import language, say
