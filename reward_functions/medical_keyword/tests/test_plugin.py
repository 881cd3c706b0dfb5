"""What scores, and every way of scoring without an answer."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from rlhf_reward_medical_keyword import FROM_PROMPT, MedicalKeyword

from rlhf_core.catalog import Catalog
from rlhf_core.errors import UserError
from rlhf_core.grammar import RewardSpec
from rlhf_core.rewards.binding import bind

REWARD = MedicalKeyword()
KEYWORDS = ["低血糖", "饥饿时手抖", "眼前发黑"]
HONEST = "诊断：低血糖\n依据：饥饿时手抖、眼前发黑\n建议：先吃几块糖，尽快告诉家人。"
OTHERS = ["头痛", "头晕", "呕吐", "腹泻", "便秘", "失眠", "皮疹"]
REFERENCE = "考虑是肺炎，表现为发热和咳嗽，可以服用阿莫西林。"
SHARED = Path(__file__).parents[4] / "shared" / "data"


def score(completion, answer="A", keywords=None, prompt=None):
    rows = {"keywords": [keywords]} if keywords is not None else {}
    return REWARD([completion], [answer], prompts=[prompt] if prompt else None, **rows)[0]


KEYWORD_CASES = {
    "right": (HONEST, 1.0),
    "right, with tags": (f"<think>肺炎？</think><answer>{HONEST}</answer>", 1.0),
    "only thought": (f"<think>{HONEST}</think><answer>不清楚</answer>", 0.0),
    "only thought, without an answer's tags": (f"<think>{HONEST}</think>不清楚", 0.0),
    "thought first, without an answer's tags": (f"<think>肺炎？</think>{HONEST}", 1.0),
    "only thought, at the end": (f"不清楚<think>{HONEST}", 0.0),
    "only the last answer counts": (f"<answer>{HONEST}</answer><answer>不清楚</answer>", 0.0),
    "one of three": ("我认为你得的是低血糖。", 1 / 3),
    "wrong": ("诊断：肺炎\n建议：多喝水。", 0.0),
    "empty": ("", 0.0),
    "only space": (" \n", 0.0),
    "huge": ("我" * 1_000_000 + HONEST, 1.0),
    "control characters": ("\x00\x1b[31m", 0.0),
    "lone surrogate": ("\ud800低血糖也许是这样", 1 / 3),
    "right to left": ("שלום مرحبا", 0.0),
    "emoji": ("🤔🩺", 0.0),
    "not closed": ("<answer>我认为是低血糖", 1 / 3),
    "after the answer": (f"<answer>不清楚</answer>{HONEST}", 0.0),
    "thought twice": (f"<think>{HONEST}</think>不清楚<think>肺炎？</think>", 0.0),
    "thinking ended twice": (f"<think>肺炎？</think>{HONEST}</think>不清楚", 0.0),
    "many tags": ("<answer><think>" * 100_000, 0.0),
}


@pytest.mark.parametrize("case", KEYWORD_CASES)
def test_the_row_s_keywords(case):
    text, expected = KEYWORD_CASES[case]
    assert score(text, keywords=KEYWORDS) == pytest.approx(expected)


REFERENCE_CASES = {
    "itself": (REFERENCE, REFERENCE, 1.0),
    "in English": ("It is pneumonia with fever and a cough; amoxicillin helps in most cases.", REFERENCE, 1.0),
    "by synonyms": ("你这是肺部感染，发烧又干咳，应该用青霉素才好。", REFERENCE, 1.0),
    "full-width letters and case": ("ＣＯＰＤ", "copd", 1.0),
    "short and right": ("肺炎", "肺炎", 1.0),
    "a kind of it": ("支气管肺炎", "肺炎", 1.0),
    "a kind of it, denied": ("不是支气管肺炎", "肺炎", 0.0),
    "a longer name of another": ("关节炎", "关节", 0.0),
    "two languages": ("fever, 是因为得了肺炎", "肺炎，发热", 1.0),
    "what it leads to is something else": ("发热门诊在二楼", "发热", 1.0),
    "plural": ("headaches", "headache", 1.0),
    "plural in es": ("rashes", "rash", 1.0),
    "inside a word": ("the fluent speaker", "flu", 0.0),
    "the reference denies it": ("发热", "无发热，有咳嗽", 0.0),
    "the reference affirms and denies it": ("发热", "有发热。不是发热。", None),
    "the reference affirms and denies one of two": ("咳嗽", "有发热。不是发热。有咳嗽。", 1.0),
    "a list, as the reference is": ("肺炎、发热、咳嗽、胸痛", "肺炎、发热、咳嗽、胸痛", 1.0),
    "no terms at all": ("肺炎", "42", None),
    "no reference": ("肺炎", None, None),
}


@pytest.mark.parametrize("case", REFERENCE_CASES)
def test_the_reference_s_terms(case):
    text, reference, expected = REFERENCE_CASES[case]
    assert score(text, reference) == (None if expected is None else pytest.approx(expected))


DENIED = {
    "无发热": True, "患者没有发热。": True, f"{'患者来诊，' * 20}无慢性阻塞性肺疾病、发热": True, "未见发热": True, "否认发热": True, "不发热": True, "未发热": True,
    "无咳嗽、发热": True, "无畏光、流泪和发热": True, "没有明显发热": True, "已排除发热": True, "发热已排除": True,
    "有咳嗽，无发热": True, "发热阴性": True, "无发热、咳嗽": True, "发热。其实不是发热。": True,
    "无发热, today": True, "denies fever, 无咳嗽": True, "非典型发热": False, "、发热": False,
    "无咳嗽，发热三天": False, "不排除发热": False, "不能排除发热": False, "无论是否发热": False, "不仅发热": False,
    "四肢无力，发热": False, "没有咳嗽但发热": False, "发热": False, "无咳嗽。发热三天": False,
    "no fever": True, "No cough or fever": True, "no cough, chills, or fever": True, "denies fever": True,
    "without fever": True, "negative for fever": True, "he doesn't have fever": True, "fever was ruled out": True,
    "no sign of fever": True, "no fever today": True, "no cough but fever": False, "fever, no cough": False, "not only fever": False,
    "without rest for more than two days fever returns": False, "No cough, fever today. Sore or stiff": False,
    "No cough, fever today. Sore or stiff. Bye": False, "no big marks, fever, or chills": True, "没有想到会突然发热": False,
    "我无力还发热": False,
    "cannot rule out fever": False, "no cough. Fever": False, "no cough, fever for three days": False,
}  # fmt: skip


@pytest.mark.parametrize("text", DENIED)
def test_denied_terms_are_not_present(text):
    assert score(text, "发热") == (0.0 if DENIED[text] else 1.0)


@pytest.mark.parametrize("term", ["发热", "支气管肺炎"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("我觉得应该有{}，其实想一想不是{}的样子。", 0.0),
        ("我觉得应该不是{}，其实想一想还是有{}的样子。", 0.0),
        ("我觉得应该有{}，再想一想还是有{}的。但有人说不是{}的样子。", 1.0),
        ("有人说应该不是{}，再想一想还是有{}的。我看就是有{}的样子。", 1.0),
    ],
)
def test_a_term_counts_where_it_is_affirmed_more_often_than_denied(text, expected, term):
    """It, or a kind of it."""
    assert score(text.format(term, term, term), term.removeprefix("支气管")) == expected


@pytest.mark.parametrize("term", ["无力", "无尿", "不孕", "不育", "无精症"])
def test_a_term_that_begins_like_a_denial_is_a_term(term):
    assert score(f"考虑{term}", term) == 1.0


def stuffed(reference, terms, draw):
    """Ways to name the reference's terms without an answer."""
    every = [synonym for synonym in REWARD.lexicon.concepts if not synonym.isascii()]
    return {
        "all terms": "、".join(every),
        "each five times": "、".join(terms * 5),
        "each five times, after the answer": reference + "，".join(terms * 5),
        "listed twice": "、".join(terms * 2),
        "with thirty others": "、".join([*terms, *draw.sample(every, 30)]),
        "with thirty others, after the answer": reference + "、".join(draw.sample(every, 30)),
    }


def generated():
    draw = random.Random(0)
    names = sorted(set(REWARD.lexicon.concepts.values()))
    for _ in range(50):
        terms = draw.sample(names, draw.randint(1, 6))
        yield prose(terms)


def shared():
    path = SHARED / "medical_grpo_question_answer.jsonl"
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)["answer"]


@pytest.mark.parametrize("source", [generated, shared])
def test_stuffing_scores_below_the_honest_answer(source):
    draw = random.Random(1)
    for reference in source():
        honest = score(reference, reference)
        if honest is None:
            continue
        terms = sorted(REWARD._read(reference).said)
        for way, text in stuffed(reference, terms, draw).items():
            assert score(text, reference) < honest, (way, reference)


def test_a_bare_list_scores_below_a_sentence():
    wanted = ["肺炎", "发热", "咳嗽", "胸痛"]
    prose = "您发热、咳嗽，呼吸时又有胸痛，这些放在一起看，最像是肺炎。"
    assert score("、".join(wanted), keywords=wanted) < score(prose, keywords=wanted) == 1.0


def test_terms_that_are_in_the_prompt_weigh_less():
    keywords = ["扁桃体炎", "发热", "咽痛"]
    prompt = [{"role": "system", "content": "扁桃体炎"}, {"role": "user", "content": "发热、咽痛两天，是什么病？"}]
    assert score("您说的是发热和咽痛。", keywords=keywords, prompt=prompt) == pytest.approx(
        2 * FROM_PROMPT / (1 + 2 * FROM_PROMPT)
    )
    assert score("您得的是扁桃体炎。", keywords=keywords, prompt=prompt) > 0.5
    turns = [{"role": "user", "content": "fever"}, {"role": "user", "content": "cough"}]
    assert score("发热。", keywords=["发热", "肺炎"], prompt=turns) == FROM_PROMPT / (1 + FROM_PROMPT)


def test_the_share_of_letters_that_belong_to_terms():
    """Neither spaces nor hyphens are letters."""
    assert REWARD._read("it is high blood pressure").density == 17 / 21
    assert REWARD._read("obsessive-compulsive disorder").density == 1.0


# Keywords that the lexicon does not have.
UNKNOWN = {
    "at the start": ("smile", 1.0),
    "plural": ("many smiles", 1.0),
    "inside a word": ("she smiled", 0.0),
    "end of a word": ("an asmile", 0.0),
    "that begins with a letter, inside a word": ("he has an AB型肽", 0.0),
    "said too often": ("I say smile where others only say smile, and smile or smile, but rarely smile", 1 / 3),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_a_keyword_that_is_no_term_is_a_full_word(case):
    text, expected = UNKNOWN[case]
    assert score(text, keywords=["b型肽" if "型" in text else "smile"]) == pytest.approx(expected)


def test_keywords_go_before_terms_inside_them_and_the_longest_first():
    """肺炎 is a term of the lexicon."""
    assert score("应该打肺炎球菌疫苗才对。", keywords=["肺炎球菌疫苗"]) == 1.0
    keywords, prompt = ["肺炎球菌", "肺炎球菌疫苗"], "是肺炎球菌吗？"
    assert score("应该打肺炎球菌疫苗才对。", keywords=keywords, prompt=prompt) == 1 / (1 + FROM_PROMPT)
    assert score("应该是肺炎球菌才对。", keywords=keywords, prompt=prompt) == FROM_PROMPT / (1 + FROM_PROMPT)


def prose(terms):
    return "根据您的描述，我觉得应当想到" + "，另外还要想一想".join(terms) + "，请您放心。"


ADDED = {"as many as allowed": (6, 1.0), "one more": (7, 10 / 11)}


@pytest.mark.parametrize("case", ADDED)
def test_terms_beyond_the_wanted_cost_from_a_number_on(case):
    added, expected = ADDED[case]
    text = prose(["肺炎", "发热", "咳嗽", "胸痛", *OTHERS[:added]])
    assert score(text, keywords=["肺炎", "发热", "咳嗽", "胸痛"]) == pytest.approx(expected)


def test_one_more_may_be_added_for_every_four_wanted():
    wanted = ["肺炎", "发热", "咳嗽", "胸痛", "低血糖"]
    assert score(prose([*wanted, *OTHERS]), keywords=wanted) == pytest.approx(11 / 12)


def test_what_costs_is_multiplied():
    """Seven terms beyond the wanted, and one of eleven said once too often."""
    wanted = ["肺炎", "发热", "咳嗽", "胸痛"]
    assert score(prose([*wanted, *OTHERS]) + prose(["肺炎"] * 3), keywords=wanted) == pytest.approx(10 / 11 * 11 / 12)


def test_terms_of_the_reference_are_not_beyond_the_wanted():
    assert score(prose(["低血糖", *OTHERS]), prose(OTHERS), keywords=["低血糖"]) == 1.0


LISTS = {"each once": (1, 0.3), "each twice": (2, 0.3 * 4 / 8)}


@pytest.mark.parametrize("case", LISTS)
def test_a_bare_list_earns_a_share(case):
    times, expected = LISTS[case]
    wanted = ["肺炎", "发热", "咳嗽", "胸痛"]
    assert score("、".join(wanted * times), keywords=wanted) == pytest.approx(expected)


MALFORMED_KEYWORDS = {"none": None, "empty": [], "numbers": [1, 2], "blank": [" "], "a number": 3}


@pytest.mark.parametrize("case", MALFORMED_KEYWORDS)
def test_without_usable_keywords_the_reference_counts(case):
    assert REWARD(["肺炎"], ["肺炎"], keywords=[MALFORMED_KEYWORDS[case]]) == [1.0]


def test_a_row_without_terms_has_no_score_and_the_others_have_theirs():
    assert REWARD(["肺炎"] * 3, ["42", "肺炎", "发热"]) == [None, 1.0, 0.0]


def test_keywords_in_one_string():
    assert score("低血糖会使人头晕", keywords="低血糖；头晕") == 1.0


def test_the_shipped_lexicon_is_well_formed():
    """Reading it refuses empty and doubled terms, so that it loads says both."""
    assert len(set(REWARD.lexicon.concepts.values())) > 500


def test_the_longest_term_is_found_and_latin_ends_are_those_of_words(tmp_path):
    path = tmp_path / "terms.txt"
    path.write_text("糖尿\n糖尿病\n维生素c\nx线片", encoding="utf-8")
    reward = MedicalKeyword(str(path))
    assert reward(["糖尿病"], [""], keywords=[["糖尿病"]]) == [1.0]
    texts = ["糖尿病", "维生素C", "维生素CT检查", "X线片", "AX线片"]
    assert reward(texts, [*texts[:2], *["维生素C、X线片"] * 3]) == [1.0, 1.0, 0.0, 0.5, 0.0]


def test_what_a_term_ends_with_is_a_kind_of(tmp_path):
    path = tmp_path / "terms.txt"
    path.write_text("肺炎\n大肺炎\nflu\nswine flu\nbigflu", encoding="utf-8")
    texts = ["大肺炎", "swine flu", "bigflu", "flu"]
    assert MedicalKeyword(str(path))(texts, ["肺炎", "flu", "flu", "swine flu"]) == [1.0, 1.0, 0.0, 0.0]


def test_a_lexicon_in_english(tmp_path):
    path = tmp_path / "terms.txt"
    path.write_text("gout", encoding="utf-8")
    assert MedicalKeyword(str(path))(["It is gout", "痛风"], ["gout"] * 2) == [1.0, 0.0]


def test_another_lexicon(tmp_path):
    path = tmp_path / "terms.txt"
    path.write_text("# mine\n甲物 | Foo\n\n乙物  # comment\n", encoding="utf-8-sig")
    assert MedicalKeyword(str(path))(["foo"], ["甲物和肺炎"]) == [1.0]


BAD = {
    "doubled": ("甲物\n乙物 | 甲物\n", "line 2: '甲物' is on line 1"),
    "empty term": ("甲物 | | 乙物\n", "line 1: '' is too short"),
    "nothing": ("# only this\n", "has no terms"),
    "not text": (b"\xff\xfe\x00", "can't be read"),
    "missing": (None, "can't be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_lexicon_is_an_error_before_anything_runs(case, tmp_path):
    content, message = BAD[case]
    path = tmp_path / "terms.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        MedicalKeyword(str(path))
    with pytest.raises(UserError, match="terms.txt"):
        bind(RewardSpec.read(f"medical_keyword:lexicon={path}"), Catalog())


def test_bound_by_its_name_with_its_columns():
    reward = bind(RewardSpec.read("medical_keyword"), Catalog())
    assert (reward.signature.columns, reward.signature.optional) == (("answer",), ("keywords",))
    assert reward.reward.range == (0.0, 1.0)
    assert reward.call({"answer": ["肺炎"], "other": [1]}, {"completions": ["肺炎"], "prompts": ["?"]}) == [1.0]
