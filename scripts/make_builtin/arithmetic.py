"""Small sums from medical practice, with numbers a tiny model can learn."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from scripts.make_builtin.conditions import Pair

Numbers = dict[str, int]

# Height in cm and weight in kg that give an integer body mass index.
INTEGER_BMI = [
    (150, 36, 16), (150, 45, 20), (150, 54, 24), (150, 63, 28), (160, 64, 25), (175, 98, 32),
]  # fmt: skip


@dataclass(frozen=True)
class Problem:
    draw: Callable[[random.Random], Numbers]  # the numbers of one question, with the `result`
    questions: tuple[tuple[str, ...], tuple[str, ...]]
    thought: Pair
    unit: Pair
    keywords: tuple[list[str], list[str]]  # what the answer mentions


def tablets(rng: random.Random) -> Numbers:
    each, times, days = rng.randint(1, 2), rng.randint(1, 3), rng.choice([3, 5, 7])
    return {"each": each, "times": times, "days": days, "result": each * times * days}


def supply(rng: random.Random) -> Numbers:
    daily, days = rng.choice([2, 3]), rng.randint(4, 10)
    return {"daily": daily, "box": daily * days, "result": days}


def dose(rng: random.Random) -> Numbers:
    rate, weight = rng.choice([5, 10]), rng.choice([10, 12, 15, 20])
    return {"rate": rate, "weight": weight, "result": rate * weight}


def pulse(rng: random.Random) -> Numbers:
    beats = rng.randint(15, 22)
    return {"beats": beats, "result": 4 * beats}


def top_heart_rate(rng: random.Random) -> Numbers:
    age = rng.randrange(20, 80, 10)
    return {"age": age, "result": 220 - age}


def water(rng: random.Random) -> Numbers:
    cup, cups = rng.choice([200, 250]), rng.choice([4, 6, 8])
    return {"cup": cup, "cups": cups, "result": cup * cups}


def body_mass_index(rng: random.Random) -> Numbers:
    height, weight, result = rng.choice(INTEGER_BMI)
    return {"height": height, "weight": weight, "result": result}


PROBLEMS = [
    Problem(
        tablets,
        (
            (
                "医生给我{who}开了药：每次{each}片，每天{times}次，吃{days}天。一共要多少片？",
                "{age}岁的{who}服药{days}天，每天{times}次，每次{each}片，共需几片药？",
            ),
            (
                "My {who} takes {each} x {times} tablets a day for {days} days. How many tablets is that?",
                "Dose for my {who}, {age}: {each} at a time, {times} times a day, {days} days. "
                "How many tablets in all?",
            ),
        ),
        (
            "每天的片数乘天数：{each}×{times}×{days}={result}。",
            "Tablets a day by days: {each}×{times}×{days}={result}.",
        ),
        ("片", "tablets"),
        (["片", "每天"], ["tablets", "day"]),
    ),
    Problem(
        supply,
        (
            (
                "一盒药有{box}片，我{who}每天吃{daily}片，够吃几天？",
                "{age}岁的{who}每天服{daily}片药，{box}片能用多少天？",
            ),
            (
                "A box holds {box} tablets and my {who} takes {daily} a day. How many days does it last?",
                "My {who}, {age}, needs {daily} tablets a day. For how many days are {box} enough?",
            ),
        ),
        ("总片数除以每天的片数：{box}÷{daily}={result}。", "Tablets by tablets a day: {box}÷{daily}={result}."),
        ("天", "days"),
        (["片", "天"], ["tablets", "days"]),
    ),
    Problem(
        dose,
        (
            (
                "某药每公斤体重用{rate}毫克，体重{weight}公斤的孩子每次用多少毫克？",
                "患儿{weight}公斤，按每公斤{rate}毫克给药，剂量是多少毫克？",
            ),
            (
                "A drug is given at {rate} mg per kg. How many mg does a child of {weight} kg need?",
                "A child weighs {weight} kg. What is the dose in mg at {rate} mg/kg?",
            ),
        ),
        ("剂量是{rate}×{weight}={result}。", "The dose is {rate}×{weight}={result}."),
        ("毫克", "mg"),
        (["剂量", "毫克"], ["dose", "mg"]),
    ),
    Problem(
        pulse,
        (
            (
                "我{who}15秒内脉搏跳了{beats}下，每分钟心率是多少？",
                "给{age}岁的{who}数脉搏，15秒{beats}次，一分钟多少次？",
            ),
            (
                "My {who} has {beats} pulse beats in 15 seconds. What is the rate per minute?",
                "I counted {beats} beats in 15 seconds for my {who}, {age}. What is the pulse rate?",
            ),
        ),
        ("一分钟的脉搏是{beats}×4={result}。", "The pulse per minute is {beats}×4={result}."),
        ("次", "beats"),
        (["脉搏", "次"], ["pulse", "beats"]),
    ),
    Problem(
        top_heart_rate,
        (
            ("按220减年龄估算，{age}岁的人最大心率是多少？", "{age}岁，运动时最大心率（220减年龄）约为多少？"),
            (
                "With the rule 220 minus age, what is the maximum heart rate at {age}?",
                "Estimate the maximum heart rate (220 minus age) of a person aged {age}.",
            ),
        ),
        ("最大心率是220-{age}={result}。", "The maximum heart rate is 220-{age}={result}."),
        ("次", "beats"),
        (["心率", "次"], ["heart rate", "beats"]),
    ),
    Problem(
        water,
        (
            (
                "医生让我{who}每天喝{cups}杯水，每杯{cup}毫升，共多少毫升？",
                "{age}岁的{who}一天喝水{cups}杯，一杯{cup}毫升，饮水量是多少毫升？",
            ),
            (
                "My {who} should drink {cups} cups of {cup} ml a day. How many ml is that?",
                "My {who}, {age}, drinks {cups} cups of water of {cup} ml. How many ml in all?",
            ),
        ),
        ("饮水量是{cup}×{cups}={result}。", "The water intake is {cup}×{cups}={result}."),
        ("毫升", "ml"),
        (["饮水", "毫升"], ["water", "ml"]),
    ),
    Problem(
        body_mass_index,
        (
            (
                "我{who}身高{height}厘米，体重{weight}公斤，体质指数BMI是多少？",
                "{age}岁的{who}体重{weight}公斤、身高{height}厘米，请计算BMI。",
            ),
            (
                "My {who} is {height} cm tall and weighs {weight} kg. What is the BMI?",
                "Please work out the BMI of my {who}, {age}: {weight} kg and {height} cm.",
            ),
        ),
        ("BMI是体重除以身高的平方，得{result}。", "BMI is weight by height squared, here {result}."),
        ("", ""),
        (["BMI", "体重"], ["BMI", "weight"]),
    ),
]
