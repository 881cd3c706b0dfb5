"""One question with its answer, drawn at random from the table of conditions."""

import random
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from scripts.make_builtin import arithmetic, phrases
from scripts.make_builtin.conditions import CONDITIONS, DEPARTMENTS, ZH, Condition

LANGUAGES = ("zh", "en")
KINDS = {"diagnosis": 60, "department": 15, "choice": 13, "number": 12}  # shares in percent


@dataclass(frozen=True)
class Case:
    """A patient with some of the symptoms of a condition, as asked about in one language."""

    condition: Condition
    signs: tuple[str, ...]
    language: int

    @property
    def name(self) -> str:
        return self.condition.name[self.language]

    @property
    def department(self) -> str:
        return DEPARTMENTS[self.condition.department][self.language]


@dataclass(frozen=True)
class Item:
    """One question with its answer: what is thought, and what is replied."""

    kind: str
    language: int
    question: str
    answer: str  # the short gold answer
    thought: str
    reply: str
    keywords: tuple[str, ...]
    key: Hashable  # items with equal keys go to the same split
    case: Case | None = None  # absent from sums and follow-up questions


def item(rng: random.Random, shares: dict[str, int] = KINDS) -> Item:
    kind = rng.choices(list(shares), weights=list(shares.values()))[0]
    return DRAW[kind](rng)


def diagnosis(rng: random.Random) -> Item:
    return diagnosis_of(draw_case(rng), rng)


def diagnosis_of(case: Case, rng: random.Random) -> Item:
    question = opening(case, rng) + request("diagnosis", case.language, rng)
    thought, reply = diagnose(case, rng)
    return Item(
        "diagnosis", case.language, question, case.name, thought, reply,
        (case.name, *case.signs[:2]), key(case), case,
    )  # fmt: skip


def department(rng: random.Random) -> Item:
    case = draw_case(rng)
    question = opening(case, rng) + request("department", case.language, rng)
    thought, reply = refer(case, rng)
    return Item(
        "department", case.language, question, case.department, thought, reply,
        (case.department, case.name), key(case), case,
    )  # fmt: skip


def choice(rng: random.Random) -> Item:
    """Four conditions to choose from, by their symptoms or, one time in four, by another name."""
    case = draw_case(rng)
    language = case.language
    options = [case.condition, *rng.sample([c for c in CONDITIONS if c != case.condition], 3)]
    rng.shuffle(options)
    names = [option.name[language] for option in options]
    letter = "ABCD"[options.index(case.condition)]
    listed = "\n".join(
        phrases.OPTION[language].format(letter=mark, name=name) for mark, name in zip("ABCD", names, strict=True)
    )
    alias = case.condition.alias[language]
    keywords: tuple[str, ...]
    found: Hashable
    if alias and rng.random() < 0.25:
        stem = rng.choice(phrases.ALIAS_QUESTIONS[language]).format(alias=alias)
        thought = phrases.ALIAS_THOUGHT[language].format(alias=alias, condition=case.name)
        keywords, found = (case.name, alias), (language, stem, *sorted(names))
    else:
        stem = phrases.CHOICE[language].format(
            symptoms=join(case.signs, language), request=rng.choice(phrases.REQUESTS["choice"][language])
        )
        thought = think(case, rng)
        keywords, found = (case.name, *case.signs[:2]), key(case)
    return Item(
        "choice", language, f"{stem}\n{listed}", letter,
        thought + phrases.OPTION_THOUGHT[language].format(letter=letter),
        phrases.LETTER[language].format(letter=letter),
        keywords, found, case,
    )  # fmt: skip


def number(rng: random.Random) -> Item:
    language = rng.randrange(2)
    problem = rng.choice(arithmetic.PROBLEMS)
    who, _, youngest, oldest = rng.choice(phrases.PERSONS[1:])
    fields = {"who": who[language], "age": rng.randint(max(youngest, 12), oldest)}
    fields |= problem.draw(rng)
    question = rng.choice(problem.questions[language]).format(**fields)
    result = str(fields["result"])
    reply = phrases.NUMBER[language].format(result=result, unit=problem.unit[language])
    return Item(
        "number", language, question, result, problem.thought[language].format(**fields),
        reply.rstrip(), tuple(problem.keywords[language]), question,
    )  # fmt: skip


DRAW: dict[str, Callable[[random.Random], Item]] = {
    "diagnosis": diagnosis, "department": department, "choice": choice, "number": number,
}  # fmt: skip


def follow_up(case: Case, rng: random.Random) -> Item:
    """A second question about the condition just diagnosed."""
    language, condition = case.language, case.condition
    kind = rng.choice(list(phrases.FOLLOW_UPS))
    youngest, oldest = condition.ages
    question = rng.choice(phrases.FOLLOW_UPS[kind][language]).format(
        condition=case.name, age=rng.randint(youngest, oldest)
    )
    if kind == "department":
        gold = case.department
        thought = phrases.TREATED_BY[language].format(condition=case.name, department=gold, Department=capital(gold))
        reply = phrases.DEPARTMENT[language].format(department=gold)
    else:
        gold = condition.red_flag[language]
        thought = phrases.WARNING[language].format(condition=case.name, flag=gold)
        reply = phrases.URGENT[language].format(flag=gold)
    return Item(kind, language, question, gold, thought, reply, (case.name, gold), question)


# Wording


def draw_case(rng: random.Random) -> Case:
    language = rng.randrange(2)
    condition = rng.choice(CONDITIONS)
    signs = rng.sample(condition.symptoms(language), rng.choice([3, 3, 3, 4]))
    return Case(condition, tuple(signs), language)


def key(case: Case) -> Hashable:
    return case.language, case.condition.name, frozenset(case.signs)


def opening(case: Case, rng: random.Random) -> str:
    language, condition = case.language, case.condition
    who, sex, low, high = rng.choice(people(condition))
    age = rng.randint(low, high)
    words, fewest, most = phrases.COURSES[condition.course]
    symptoms = join(case.signs, language)
    templates = phrases.ABOUT_SOMEONE if sex else phrases.ABOUT_ME
    return rng.choice(templates[language]).format(
        who=who[language],
        sex=phrases.SEXES[sex, age >= 18][language] if sex else "",
        age=age,
        time=words[language].format(rng.randint(fewest, most)),
        symptoms=symptoms,
        first=case.signs[0],
        rest=join(case.signs[1:], language),
    )


def people(condition: Condition) -> list[tuple[tuple[str, str], str, int, int]]:
    """Who can have the condition, with the ages that fit both the person and the condition."""
    found = []
    for who, sex, youngest, oldest in phrases.PERSONS:
        low, high = max(youngest, condition.ages[0]), min(oldest, condition.ages[1])
        if low <= high and (not sex or condition.sex in ("", sex)):
            found.append((who, sex, low, high))
    return found


def request(kind: str, language: int, rng: random.Random) -> str:
    text = rng.choice(phrases.REQUESTS[kind][language])
    return text if language == ZH else f" {text}"


def think(case: Case, rng: random.Random) -> str:
    signs = join(case.signs[:2], case.language)
    return rng.choice(phrases.THOUGHTS[case.language]).format(signs=signs, condition=case.name)


def diagnose(case: Case, rng: random.Random) -> tuple[str, str]:
    language = case.language
    reply = phrases.DIAGNOSIS[language].format(
        condition=case.name,
        signs=join(case.signs[:2], language),
        advice=case.condition.advice[language],
    )
    return think(case, rng), reply


def refer(case: Case, rng: random.Random) -> tuple[str, str]:
    return think(case, rng), phrases.DEPARTMENT[case.language].format(department=case.department)


def join(parts: tuple[str, ...], language: int) -> str:
    if language == ZH:
        return "、".join(parts)
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def capital(text: str) -> str:
    return text[0].upper() + text[1:]
