"""What counts as the right answer: tables of reference, completion and score."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import rlhf_reward_verifier
from rlhf_reward_verifier import SYSTEM_PROMPT, maths, verifier
from rlhf_reward_verifier.extract import final_answer

from rlhf_core import UserError
from rlhf_core.catalog import Catalog
from rlhf_core.grammar import RewardSpec
from rlhf_core.rewards.binding import bind
from rlhf_core.rewards.worker import Worker

DATA = Path(__file__).parents[4] / "shared" / "data"
MILLION = 1_000_000


def score(completion, answer, **parameters):
    columns = {name: [parameters.pop(name)] for name in ("aliases", "options") if name in parameters}
    return verifier([completion], [answer], **columns, **parameters)[0]


def table(cases):
    return pytest.mark.parametrize(("completion", "answer", "expected"), cases.values(), ids=list(cases))


WHERE = {
    "block": ("<think>2 or 3</think>\n<answer>\n18\n</answer>", "18", 1.0),
    "block beats what is boxed after it": ("<answer>18</answer> \\boxed{19}", "18", 1.0),
    "last of two blocks, right": ("<answer>17</answer><answer>18</answer>", "18", 1.0),
    "last of two blocks, wrong": ("<answer>18</answer><answer>17</answer>", "18", 0.0),
    "everything doubled": ("<think>a</think><answer>18</answer>" * 2, "18", 1.0),
    "block that is too long for an answer": (f"<answer>{'word ' * 1000}18</answer>", "18", 0.0),
    "block not closed": ("<think>a</think><answer>18", "18", 1.0),
    "thinking not closed, then a block": ("<think>a<answer>18</answer>", "18", 1.0),
    "thinking not closed, and a block alone": ("<think><answer>18</answer>", "18", 1.0),
    "thinking not closed, two blocks": ("<think><answer>17</answer><answer>18</answer>", "18", 1.0),
    "block inside thinking": ("<think>a<answer>18</answer></think>", "18", 0.0),
    "thinking never ends": ("<think>It must be 18", "18", 0.0),
    "thinking never ends, and its last character": ("<think>It must be 8", "8", 0.0),
    "thinking opened by the prompt": ("Is it 17?</think>The answer is 18.", "18", 1.0),
    "only thought, opened by the prompt": ("It is 18.</think>", "18", 0.0),
    "around thoughts": ("1<think>a</think>8<think>b</think>", "18", 1.0),
    "thinking opened twice": ("<think>It is 18.<think>b</think>", "18", 0.0),
    "answer before thinking": ("<answer>18</answer><think>19</think>", "18", 1.0),
    "empty block": ("It is 18. <answer></answer>", "18", 0.0),
    "boxed": ("So \\boxed{18}.", "18", 1.0),
    "boxed twice": ("\\boxed{17}, no: \\boxed{18}", "18", 1.0),
    "boxed with braces": ("\\boxed{\\frac{3}{4}}", "3/4", 1.0),
    "boxed inside the block": ("<answer>The result is \\boxed{18} for 3 days</answer>", "18", 1.0),
    "boxed, not closed": ("\\boxed{18", "18", 1.0),
    "boxed, not closed, then a farewell": ("\\boxed{18\nThanks for 3", "18", 1.0),
    "hashes": ("16 - 3 = 13\n#### 18", "18", 1.0),
    "hashes, then a farewell": ("#### 18\nHope this helps!", "18", 1.0),
    "hashes as a heading": ("#### Summary\nThe answer is 18.", "18", 1.0),
    "last sentence": ("She has 16 eggs. She eats 3. She sells 13.", "13", 1.0),
    "an earlier sentence": ("She sells 13. She eats 3.", "13", 0.0),
    "last line without an end": ("步骤一\n一共18", "18", 1.0),
    "cue before the last sentence": ("The answer is 18. I hope that helps you 100%.", "18", 1.0),
    "changed its mind": ("The answer is 18. Wait, actually it is 19.", "18", 0.0),
    "changed its mind, rightly": ("The answer is 17. Wait, actually it is 18.", "18", 1.0),
    "cue with nothing after it": ("The answer is B.\nConclusion:", "B", 1.0),
    "two cues": ("The answer is 17. The answer is 18.", "18", 1.0),
    "cue far from the end": (f"The answer is 18. {'word ' * 1000}", "18", 0.0),
    "cue on a line of its own": ("Answer:\n18\nThanks for 3 questions.", "18", 1.0),
    "cue, then an empty line": ("Answer: gout\n\nThanks.", "gout", 1.0),
    "cue in Chinese": ("共有16个，吃掉3个。答案是13。", "13", 1.0),
    "bold cue": ("**Answer:** 18", "18", 1.0),
    "bold answer": ("The answer is **18**.", "18", 1.0),
}


@table(WHERE)
def test_where_the_answer_is_found(completion, answer, expected):
    assert score(completion, answer) == expected


NUMBERS = {
    "same": ("18", "18", 1.0),
    "other": ("19", "18", 0.0),
    "part of another": ("180", "18", 0.0),
    "negative": ("-18", "-18", 1.0),
    "sign missing": ("18", "-18", 0.0),
    "Unicode minus": ("−18", "-18", 1.0),
    "zeros after the point": ("18.00", "18", 1.0),
    "point without a zero": (".5", "0.5", 1.0),
    "point without a zero in the reference": ("0.5", ".5", 1.0),
    "thousands": ("1,234.5", "1234.5", 1.0),
    "thousands in the reference": ("2125", "2,125", 1.0),
    "full-width": ("１，２３４", "1234", 1.0),
    "LaTeX thousands": ("\\boxed{1{,}234}", "1234", 1.0),
    "a list is no thousand": ("1,23", "123", 0.0),
    "currency": ("$18", "18", 1.0),
    "currency both ways": ("18 dollars", "$18", 1.0),
    "LaTeX currency": ("\\boxed{\\$18}", "18", 1.0),
    "other currency": ("18元", "$18", 0.0),
    "unit": ("18 kg", "18", 1.0),
    "unit left out": ("18", "18 kg", 1.0),
    "same unit by another name": ("18公斤", "18 kg", 1.0),
    "other unit": ("18 g", "18 kg", 0.0),
    "LaTeX unit": ("\\boxed{18\\text{ kg}}", "18 kg", 1.0),
    "squared unit": ("25 kg/m^2", "25 kg/m²", 1.0),
    "unknown unit of the reference": ("72", "72 beats", 1.0),
    "unknown unit": ("72 beats", "72", 1.0),
    "unit in Chinese": ("每天100毫克", "100 mg", 1.0),
    "percent": ("50%", "50%", 1.0),
    "percent in words": ("50 percent", "50%", 1.0),
    "percent in Chinese": ("百分之50", "50%", 1.0),
    "percent in Chinese as a decimal": ("百分之50", "0.5", 1.0),
    "LaTeX percent": ("\\boxed{50\\%}", "50%", 1.0),
    "percent as a decimal": ("0.5", "50%", 1.0),
    "percent sign left out": ("50", "50%", 1.0),
    "decimal as a percentage": ("50%", "0.5", 1.0),
    "percentages are not their hundredth": ("100%", "1%", 0.0),
    "fraction": ("3/4", "0.75", 1.0),
    "fraction reference": ("0.75", "3/4", 1.0),
    "fraction in LaTeX": ("$\\frac{3}{4}$", "0.75", 1.0),
    "fraction sign": ("¾", "3/4", 1.0),
    "mixed": ("2 1/2", "2.5", 1.0),
    "unreduced": ("6/8", "3/4", 1.0),
    "divided by zero": ("1/0", "1", 0.0),
    "rounded too much": ("0.33", "1/3", 0.0),
    "rounded enough": ("0.3333333", "1/3", 1.0),
    "large and off by one": ("2000001", "2000000", 0.0),
    "large scale": ("1.5万", "15000", 1.0),
    "scale in English": ("2 million", "2000000", 1.0),
    "exponent": ("1.5e3", "1500", 1.0),
    "power of ten": ("1.5 \\times 10^3", "1500", 1.0),
    "raised digit": ("10²", "100", 1.0),
    "huge exponent": ("1e999999999", "1", 0.0),
    "root": ("\\sqrt{324}", "18", 1.0),
    "root by name": ("sqrt(324)", "18", 1.0),
    "root of it": ("\\sqrt{18}", "18", 0.0),
    "factorial of it": ("3!", "3", 0.0),
    "sum of it": ("18 + 18", "18", 0.0),
    "rate": ("18 mg/d", "18", 1.0),
    "listed with a dash": ("- 18", "18", 1.0),
    "sum left open": ("9+9", "18", 1.0),
    "sum of a fraction left open": ("1/4 + 1/4", "0.5", 1.0),
    "equation": ("9 * 2 = 18", "18", 1.0),
    "equation, then another number": ("x = 18 eggs in 3 days", "18", 1.0),
    "equation, wrong": ("18 = 9 + 8", "18", 0.0),
    "variable": ("x = 18", "18", 1.0),
    "several, cued": ("Answer: 18 eggs in 3 days", "18", 1.0),
    "several, cued, three": ("Answer: 18 eggs in 3 days of 2 hens", "18", 1.0),
    "several in a sentence, three": ("With 3 hens and 2 ducks she makes 18 dollars", "18", 1.0),
    "several in a sentence": ("With 3 hens she makes 18 dollars", "18", 1.0),
    "or": ("18 or 19", "18", 0.0),
    "or, right one last": ("17 or 18", "18", 0.0),
    "or in Chinese": ("17或18", "18", 0.0),
    "maybe twice": ("maybe 17, maybe 18", "18", 0.0),
    "letter that only looks like a unit's": ("18 mın", "18 minutes", 1.0),
    "letters that only look like a scale's": ("18 mıllıon", "18", 1.0),
    "range": ("17-18", "18", 0.0),
    "range with a tilde": ("17~18", "18", 0.0),
    "side by side": ("17 18", "18", 0.0),
    "comma list": ("17, 18", "18", 0.0),
    "line list": ("16\n17\n18", "18", 0.0),
    "and": ("17 and 18", "18", 0.0),
    "cued or": ("The answer is 18 or 19", "18", 0.0),
    "denied": ("not 18", "18", 0.0),
    "denied in Chinese": ("不是18", "18", 0.0),
    "denied, then another": ("不是17，是18", "18", 1.0),
    "repeated": ("18. So 18", "18", 1.0),
    "in words": ("eighteen", "18", 1.0),
    "no number": ("many", "18", 0.0),
    "number in a sentence of words": ("no one knows", "1", 0.0),
    "in Chinese": ("三", "3", 1.0),
    "ten in Chinese": ("十", "10", 1.0),
    "teens in Chinese": ("十五", "15", 1.0),
    "tens in Chinese": ("三十", "30", 1.0),
    "two in Chinese": ("两天", "2天", 1.0),
    "tens in Chinese, with a unit": ("二十五天", "25 days", 1.0),
    "in a Chinese word": ("一般", "1", 0.0),
    "reference in words": ("12", "twelve", 1.0),
    "minus in words": ("负5", "-5", 1.0),
    "percent in Chinese words": ("百分之二十五", "25%", 1.0),
    "another percent in Chinese words": ("百分之五", "25%", 0.0),
    "thousands by spaces": ("1 000", "1000", 1.0),
    "thousand in Chinese": ("1千", "1000", 1.0),
    "kilogram is no thousand": ("5千克", "5 kg", 1.0),
    "only a unit": ("kg", "18", 0.0),
    "nothing": ("", "18", 0.0),
    "scientific, raised digits": ("5×10⁹", "5e9", 1.0),
    "scientific, raised minus": ("1.2×10⁻⁵", "0.000012", 1.0),
    "power of ten alone": ("10¹²", "1e12", 1.0),
    "scientific reference": ("5000000000", "5 \\times 10^{9}", 1.0),
    "inequality": ("x>18", "18", 0.0),
    "unequal": ("x != 18", "18", 0.0),
    "below": ("<18", "18", 0.0),
    "compared with a normal value": ("45 (<60)", "45", 1.0),
    "after an arrow": ("=> 18", "18", 1.0),
    "in HTML": ("<b>18</b>", "18", 1.0),
    "reference in HTML": ("18", "<b>18.</b>", 1.0),
    "blood pressure": ("120/80", "120/80 mmHg", 1.0),
    "another of the same quotient": ("90/60 mmHg", "120/80 mmHg", 0.0),
    "another of the same quotient, without a unit": ("240/160", "120/80", 0.0),
    "a fraction that is not reduced": ("100/40", "5/2", 1.0),
    "quotient of a fraction": ("3/2", "6/4", 1.0),
    "quotient of a blood pressure": ("1.5", "120/80", 0.0),
    "unit of the same kind": ("5 µg", "5 mg", 0.0),
    "unit of another kind": ("5 mmol", "5 mg", 0.0),
    "pounds": ("60 lb", "60 kg", 0.0),
    "pounds by name": ("60 pounds", "60 lb", 1.0),
    "pounds of money": ("£60", "60 pounds", 1.0),
    "for each kilogram": ("5 mg/kg", "5 mg", 0.0),
    "for each kilogram, in words": ("5 milligrams per kilogram", "5 mg/kg", 1.0),
    "for each day": ("5 mg/day", "5 mg", 1.0),
    "for each day of the reference": ("5 mg", "5 mg/day", 1.0),
    "concentration": ("5 µmol/L", "5 mmol/L", 0.0),
    "speed in words": ("60 km per hour", "60 km/h", 1.0),
    "speed, abbreviated": ("60 mph", "60 miles per hour", 1.0),
    "price of one": ("18 dollars per day", "$18", 1.0),
    "dose as often": ("500 mg bid", "500 mg bid", 1.0),
    "dose less often": ("500 mg bid", "500 mg tid", 0.0),
    "multiple of a variable": ("3x", "3", 0.0),
    "name of a variable": ("x3", "3", 0.0),
    "imaginary": ("3i", "3", 0.0),
    "thousands, abbreviated": ("3k", "3", 0.0),
    "power of a variable": ("x^3", "3", 0.0),
    "negative power of a variable": ("x^-3", "-3", 0.0),
    "root sign": ("√9", "3", 1.0),
    "root sign of it": ("√3", "3", 0.0),
    "multiple of pi": ("3π", "3", 0.0),
    "number in a name": ("CD4 is 18", "18", 1.0),
    "digits without end": ("1" * 3000, "1", 0.0),
    "commas without end": ("1,2," * 700, "1", 0.0),
}


# More of what a reference may be: bounds, ranges, a number of a variable, and the symbols that Unicode has for LaTeX's
SIGNS = {
    "bound": (">= 140", "≥140 mmHg", 1.0),
    "bound above": ("<= 140", "≤140", 1.0),
    "bound to be worked out": ("< 9 + 9", "<18", 1.0),
    "bound without its sign": ("140 mmHg", "≥140 mmHg", 0.0),
    "other bound": ("≤140", "≥140", 0.0),
    "bound in percent": ("> 5%", ">5%", 1.0),
    "two bounds": (">5% or <5%", ">5%", 0.0),
    "range": ("50 – 60", "50-60", 1.0),
    "range of the same difference": ("60-70", "50-60", 0.0),
    "date of the same difference": ("1988", "2026-11-27", 0.0),
    "letters alone": ("b + a", "a+b", 1.0),
    "letters alone, other": ("a-b", "a+b", 0.0),
    "raised number": ("x^{12}", "x¹²", 1.0),
    "negative power": ("x^-12", "x^{-12}", 1.0),
    "power in Python": ("x**2", "x^2", 1.0),
    "plus or minus": ("\\pm 2", "±2", 1.0),
    "plus or minus, to be worked out": ("\\pm\\sqrt{4}", "±2", 1.0),
    "plus or minus, one of them": ("2", "±2", 0.0),
    "ratio": ("1 : 2", "1:2", 1.0),
    "ratio, other way": ("2:1", "1:2", 0.0),
    "ratio of three": ("1:2:3", "1:2", 0.0),
    "ratio with decimals": ("1:2.5", "1:2", 0.0),
    "multiple of a variable": ("x*2", "2x", 1.0),
    "the factor alone": ("2", "2x", 0.0),
    "another variable": ("2y", "2x", 0.0),
    "pi": ("\\pi/2", "π/2", 1.0),
    "root": ("2\\sqrt3", "2√3", 1.0),
    "root of a sum": ("\\sqrt{x+1}", "√(x+1)", 1.0),
    "infinity": ("(-\\infty,3)", "(-∞,3)", 1.0),
    "inequality": ("x\\ge 3", "x≥3", 1.0),
    "hyphen that does not break": ("5‑FU", "5-FU", 1.0),
    "ion": ("HCO₃⁻", "HCO3-", 1.0),
}


@table(SIGNS)
def test_signs(completion, answer, expected):
    assert score(f"<answer>{completion}</answer>", answer) == expected


@table(NUMBERS)
def test_numbers(completion, answer, expected):
    assert score(f"<answer>{completion}</answer>", answer) == expected


EXPRESSIONS = {
    "same": ("x^2+1", "x^2+1", 1.0),
    "spaced": ("x^2 + 1", "$x^2+1$", 1.0),
    "expanded": ("x^2+2x+1", "(x+1)^2", 1.0),
    "other": ("x^2+2x+2", "(x+1)^2", 0.0),
    "root": ("2\\sqrt{2}", "\\sqrt{8}", 1.0),
    "fraction": ("\\dfrac{\\pi}{2}", "\\frac{\\pi}{2}", 1.0),
    "half open": ("[0, 1)", "[0,1)", 1.0),
    "open": ("(0,1)", "[0,1)", 0.0),
    "set in another order": ("\\{2,1\\}", "\\{1,2\\}", 1.0),
    "solved for": ("x=\\sqrt{2}", "\\sqrt{2}", 1.0),
    "in prose": ("The area is $2\\sqrt{2}$.", "\\sqrt{8}", 1.0),
    "in Chinese prose": ("面积是$2\\sqrt{2}$。", "\\sqrt{8}", 1.0),
    "fraction in text style": ("\\tfrac{2\\pi}{4}", "\\frac{\\pi}{2}", 1.0),
    "product of three, spaced": ("c b a + 1", "a b c + 1", 1.0),
    "raised number before a letter": ("y x^{12}", "x¹²y", 1.0),
    "product in another order": ("2r\\pi", "2\\pi r", 1.0),
    "thousands of a variable": ("x\\cdot 1000", "1\\,000x", 1.0),
    "in prose, before its end": ("It is $2\\sqrt{2}$ that we want", "\\sqrt{8}", 1.0),
    "in prose, not set": ("It equals 2\\sqrt{2}", "\\sqrt{8}", 1.0),
    "cue": ("We know $\\sqrt{9}$. The answer is $2\\sqrt{2}$. It follows from $x$.", "\\sqrt{8}", 1.0),
    "function by name": ("1 + sin(x)", "sin(x)+1", 1.0),
    "and": ("$\\sqrt{8}$ and $\\sqrt{9}$", "\\sqrt{9}", 0.0),
    "or, not set": ("\\sqrt{8} or \\sqrt{9}", "\\sqrt{9}", 0.0),
    "or": ("$\\sqrt{8}$ or $\\sqrt{9}$", "\\sqrt{9}", 0.0),
    "or nothing": ("$\\sqrt{9}$ or nothing", "\\sqrt{9}", 0.0),
    "side by side": ("$\\sqrt{8}$, $\\sqrt{9}$", "\\sqrt{9}", 0.0),
    "Greek letter by name": ("pi/2", "\\frac{\\pi}{2}", 1.0),
    "power as a number": ("1024", "2^{10}", 1.0),
    "number as a power": ("2^{10}", "1024", 1.0),
    "not closed": ("\\frac{1}{", "\\sqrt{8}", 0.0),
    "prose": ("I do not know", "\\sqrt{8}", 0.0),
    "empty": ("", "\\sqrt{8}", 0.0),
    "tower": ("9^{9^{9^{9}}}", "\\sqrt{8}", 0.0),
    "tower in Python": ("9**9**9**9", "18", 0.0),
    "giant power": ("9^{999999999}", "18", 0.0),
    "giant factorial": ("(999999999)! - 1", "18", 0.0),
    "long": ("1+" * 1500 + "1", "1501", 0.0),
    "a little long": ("1+" * 155 + "1", "156", 0.0),
    "nested": ("\\sqrt{" * 400, "\\sqrt{8}", 0.0),
    "code": ("__import__('os').getcwd()", "\\sqrt{8}", 0.0),
}


@table(EXPRESSIONS)
def test_expressions(completion, answer, expected):
    assert score(f"<answer>{completion}</answer>", answer) == expected


CHOICES = {
    "letter": ("B", "B", 1.0),
    "other letter": ("C", "B", 0.0),
    "small": ("b", "B", 1.0),
    "full-width": ("Ｂ", "B", 1.0),
    "full-width reference": ("B", "Ｂ", 1.0),
    "in brackets": ("(B)", "B", 1.0),
    "with its text": ("B. pneumonia", "B", 1.0),
    "with its text in Chinese": ("B、肺炎", "B", 1.0),
    "reference with its text": ("B", "B. pneumonia", 1.0),
    "text alone, named by the reference": ("pneumonia", "B. pneumonia", 1.0),
    "cue": ("The answer is B.", "B", 1.0),
    "cue in Chinese": ("答案是B", "B", 1.0),
    "chosen in Chinese": ("综上，应选B。", "B", 1.0),
    "with reasons": ("B, because A is too rare", "B", 1.0),
    "with reasons in Chinese": ("选B，因为A不对", "B", 1.0),
    "with reasons that name others": ("B，因为A和C少见", "B", 1.0),
    "with reasons for others": ("B，因为A和C也可能", "B", 0.0),
    "cue, after another letter": ("C is common. The answer is B.", "B", 1.0),
    "chosen, then a reason": ("I choose B because it fits", "B", 1.0),
    "chosen, an article's letter": ("I choose A", "A", 1.0),
    "cue, then a wrong one": ("Answer: B. A is wrong.", "B", 1.0),
    "boxed": ("\\boxed{\\text{B}}", "B", 1.0),
    "or": ("A or B", "B", 0.0),
    "or, right one first": ("B or A", "B", 0.0),
    "or in Chinese": ("A或B", "B", 0.0),
    "cued or": ("The answer is B or C.", "B", 0.0),
    "listed": ("A, B", "B", 0.0),
    "listed in Chinese": ("B、C", "B", 0.0),
    "one a line": ("B\nA\nC\nD", "B", 0.0),
    "all": ("A B C D E", "A", 0.0),
    "maybe twice": ("maybe B, maybe C", "B", 0.0),
    "maybe twice in Chinese": ("可能是B，也可能是C", "B", 0.0),
    "perhaps the next": ("B. Or perhaps C", "B", 0.0),
    "denied": ("not B", "B", 0.0),
    "denied in Chinese": ("不选B", "B", 0.0),
    "denied, then another": ("不是A，是B", "B", 1.0),
    "article": ("A patient like this needs rest", "A", 0.0),
    "arrow": ("A→B", "B", 0.0),
    "questions": ("A？B？", "A", 0.0),
    "both called right": ("A is right. B is right.", "A", 0.0),
    "inside a word": ("BAD", "B", 0.0),
    "part of a name": ("hepatitis B", "B", 0.0),
    "letter as a word": ("Choose option B", "B", 1.0),
    "called wrong": ("B是错误的", "B", 0.0),
    "all but": ("除了B", "B", 0.0),
    "several": ("A, B and D", "ABD", 1.0),
    "several, in another order": ("DBA", "A、B、D", 1.0),
    "several, one missing": ("AB", "ABD", 0.0),
    "several, all": ("ABCDE", "ABD", 0.0),
    "several that are a name": ("It is AB", "AB", 1.0),
    "several, not alone": ("It is A, B and D", "A, B and D", 0.0),
    "several, cued": ("We saw C. The answer is A, B and D.", "ABD", 1.0),
    "run together": ("ABCDE", "B", 0.0),
    "empty": ("", "B", 0.0),
}


@table(CHOICES)
def test_choices(completion, answer, expected):
    assert score(f"<answer>{completion}</answer>", answer) == expected


OPTIONS = ["asthma", "pneumonia", "gout"]
WITH_OPTIONS = {
    "text instead of the letter": ("pneumonia", "B", 1.0),
    "text of another": ("gout", "B", 0.0),
    "texts of two": ("pneumonia, not gout", "B", 0.0),
    "letter for a reference that is a text": ("B", "pneumonia", 1.0),
    "other letter for a text": ("C", "pneumonia", 0.0),
}


@table(WITH_OPTIONS)
def test_choices_with_options(completion, answer, expected):
    labelled = [f"{letter}. {text}" for letter, text in zip("ABC", OPTIONS, strict=True)]
    for options in (OPTIONS, labelled, dict(zip("ABC", OPTIONS, strict=True))):
        assert score(f"<answer>{completion}</answer>", answer, options=options) == expected


def test_an_option_without_a_text_is_not_named():
    assert score("<answer>pneumonia</answer>", "B", options=["", "pneumonia"]) == 1.0


VERDICTS = {
    "yes": ("Yes", "yes", 1.0),
    "no for yes": ("No", "yes", 0.0),
    "with reasons": ("No, there is no evidence for it.", "no", 1.0),
    "yes, with a no in its reasons": ("Yes, there is no doubt.", "yes", 1.0),
    "cue": ("The answer is yes.", "yes", 1.0),
    "cue, after another": ("I thought no. The answer is yes.", "yes", 1.0),
    "right, with its particle": ("正确的", "yes", 1.0),
    "denied, with its particle": ("否定的", "no", 1.0),
    "maybe": ("Maybe", "maybe", 1.0),
    "maybe in Chinese": ("不确定", "maybe", 1.0),
    "yes in Chinese": ("是的，可以吃", "yes", 1.0),
    "no in Chinese": ("不是", "no", 1.0),
    "not in Chinese is no yes": ("不是", "yes", 0.0),
    "reference in Chinese": ("答案：否", "否", 1.0),
    "right and wrong": ("正确", "对", 1.0),
    "true for yes": ("True", "yes", 1.0),
    "not true": ("It is not true", "no", 1.0),
    "not wrong": ("It is not wrong", "yes", 1.0),
    "not wrong is no no": ("It is not wrong", "no", 0.0),
    "no idea": ("No idea", "no", 0.0),
    "no answer": ("I have no answer.", "no", 0.0),
    "both": ("Yes and no", "yes", 0.0),
    "either": ("yes or no", "yes", 0.0),
    "both, by a comma": ("Yes, no", "yes", 0.0),
    "all three": ("yes\nno\nmaybe", "yes", 0.0),
    "inside a word": ("yesterday", "yes", 0.0),
    "neither": ("Drink water", "yes", 0.0),
    "empty": ("", "no", 0.0),
}


@table(VERDICTS)
def test_yes_no_maybe(completion, answer, expected):
    assert score(f"<answer>{completion}</answer>", answer) == expected


SECTIONS = "诊断：{}\n依据：发热、咳嗽，或有胸痛\n建议：多休息，不要吸烟。"
TERMS = {
    "alone": ("肺炎", "肺炎", 1.0),
    "alone in English": ("Pneumonia.", "pneumonia", 1.0),
    "other": ("哮喘", "肺炎", 0.0),
    "in its section": (SECTIONS.format("肺炎"), "肺炎", 1.0),
    "another in its section": (SECTIONS.format("哮喘"), "肺炎", 0.0),
    "only in the reasons": ("诊断：哮喘\n依据：不像肺炎，肺炎会发热", "肺炎", 0.0),
    "of two sections": ("Diagnosis: gout\nDepartment: rheumatology", "rheumatology", 1.0),
    "in LaTeX": ("\\text{肺炎}", "\\text{肺炎}", 1.0),
    "another in LaTeX": ("哮喘", "\\text{肺炎}", 0.0),
    "abbreviations with a slash": ("TG", "TG/T4", 1.0),
    "department": ("Department: pediatrics", "pediatrics", 1.0),
    "section in English": ("Diagnosis: gout\nBasis: pain and swelling\nAdvice: rest or ice.", "gout", 1.0),
    "in a sentence": ("The most likely diagnosis is pneumonia.", "pneumonia", 1.0),
    "in a sentence, with advice": ("考虑为肺炎，建议就医。", "肺炎", 1.0),
    "quoted": ('"Pneumonia."', "pneumonia", 1.0),
    "quoted in a sentence": ("诊断为“肺炎”。", "肺炎", 1.0),
    "in brackets alone": ("【肺炎】", "肺炎", 1.0),
    "in brackets, denied": ("(pneumonia) is unlikely", "pneumonia", 0.0),
    "quoted, denied": ("“肺炎”可以排除", "肺炎", 0.0),
    "quoted and": ('"pneumonia" and asthma', "pneumonia", 0.0),
    "in brackets and": ("(pneumonia) and asthma", "pneumonia", 0.0),
    "and, quoted": ("asthma and 'pneumonia'", "pneumonia", 0.0),
    "and, in brackets": ("哮喘和（肺炎）", "肺炎", 0.0),
    "listed in quotes": ("「肺炎」、「哮喘」", "肺炎", 0.0),
    "listed as code": ('["pneumonia", "asthma"]', "pneumonia", 0.0),
    "listed by letters": ("(a) pneumonia (b) asthma", "pneumonia", 0.0),
    "listed by numbers": ("1. pneumonia 2. asthma", "pneumonia", 0.0),
    "a number that is no entry's": ("It is pneumonia, grade 2. Please rest", "pneumonia", 1.0),
    "at the beginning of a sentence": ("Pneumonia is the diagnosis.", "pneumonia", 1.0),
    "before a short clause": ("Pneumonia, seen on both old films", "pneumonia", 1.0),
    "before a long clause": ("Pneumonia, clearly visible shadows throughout both lower lobes", "pneumonia", 1.0),
    "before a long clause in Chinese": (
        "肺炎，双肺多发斑片状高密度影伴少量胸腔积液表现典型且较三天前明显加重",
        "肺炎",
        1.0,
    ),
    "after an arrow": ("咳嗽→肺炎", "肺炎", 1.0),
    "before an arrow": ("肺炎→住院", "肺炎", 1.0),
    "one guess": ("可能是肺炎", "肺炎", 1.0),
    "department in a sentence": ("建议挂儿科就诊", "儿科", 1.0),
    "with what it is like": ("It is pneumonia, common in winter.", "pneumonia", 1.0),
    "case": ("COPD", "copd", 1.0),
    "hyphens": ("hand foot mouth disease", "hand-foot-mouth disease", 1.0),
    "curly apostrophe": ("Meniere’s disease", "Meniere's disease", 1.0),
    "full-width": ("ＣＯＰＤ", "COPD", 1.0),
    "bold": ("**肺炎**", "肺炎", 1.0),
    "before brackets": ("肺炎（肺部感染）", "肺炎", 1.0),
    "in brackets after another": ("哮喘（肺炎）", "肺炎", 0.0),
    "longer name": ("病毒性肺炎", "肺炎", 0.0),
    "longer name in English": ("viral pneumonia", "pneumonia", 0.0),
    "longer name to the right": ("糖尿病肾病", "糖尿病", 0.0),
    "longer name to the right in English": ("diabetes insipidus", "diabetes", 0.0),
    "longer department": ("普通外科", "外科", 0.0),
    "how severe does not matter": ("重度肺炎", "肺炎", 1.0),
    "inside a word": ("gouty", "gout", 0.0),
    "denied": ("不是肺炎", "肺炎", 0.0),
    "denied in English": ("not pneumonia", "pneumonia", 0.0),
    "denied at a distance": ("This is not likely to be pneumonia", "pneumonia", 0.0),
    "denied after": ("肺炎可以排除", "肺炎", 0.0),
    "all but": ("肺炎以外", "肺炎", 0.0),
    "without it": ("absence of pneumonia", "pneumonia", 0.0),
    "as well as": ("pneumonia as well as asthma", "pneumonia", 0.0),
    "denied after in English": ("pneumonia is unlikely", "pneumonia", 0.0),
    "denied one, named another": ("不是哮喘，是肺炎", "肺炎", 1.0),
    "named and denied": ("是肺炎，但不是肺炎", "肺炎", 0.0),
    "guessed, and another not excluded": ("肺炎，不排除哮喘", "肺炎", 0.0),
    "guessed, then another": ("可能是肺炎。疑似支气管炎。", "肺炎", 0.0),
    "two guesses": ("可能是肺炎，也可能是哮喘", "肺炎", 0.0),
    "two guesses in English": ("maybe pneumonia, maybe asthma", "pneumonia", 0.0),
    "or": ("pneumonia or asthma", "pneumonia", 0.0),
    "or in Chinese": ("肺炎或哮喘", "肺炎", 0.0),
    "or in its section": (SECTIONS.format("肺炎或哮喘"), "肺炎", 0.0),
    "listed": ("肺炎、哮喘、痛风", "肺炎", 0.0),
    "listed by commas": ("pneumonia, asthma, gout", "pneumonia", 0.0),
    "listed by slashes": ("pneumonia/asthma", "pneumonia", 0.0),
    "one a line": ("哮喘\n肺炎\n痛风", "肺炎", 0.0),
    "listed beside two words": ("pneumonia, bronchial asthma", "pneumonia", 0.0),
    "numbered": ("1. asthma\n2. pneumonia", "pneumonia", 0.0),
    "and": ("pneumonia and asthma", "pneumonia", 0.0),
    "and, named twice": ("Pneumonia means asthma and pneumonia", "pneumonia", 0.0),
    "and, after another": ("asthma and pneumonia", "pneumonia", 0.0),
    "stated one after another": ("It is asthma. It is pneumonia. It is gout.", "pneumonia", 0.0),
    "section doubled": ("诊断：肺炎\n诊断：哮喘", "肺炎", 0.0),
    "section with questions": ("诊断：肺炎？哮喘？", "肺炎", 0.0),
    "section with semicolons": ("诊断：肺炎；哮喘", "肺炎", 0.0),
    "section beside an answer": ("诊断：肺炎\n答案：哮喘", "肺炎", 0.0),
    "differential diagnosis": ("诊断：哮喘\n鉴别诊断：肺炎", "肺炎", 0.0),
    "beside a differential diagnosis": ("Diagnosis: gout\nDifferential diagnosis: asthma", "gout", 1.0),
    "asked back": ("是否为肺炎？", "肺炎", 0.0),
    "asked back in English": ("Is it gout?", "gout", 0.0),
    "section empty": ("诊断：\n", "肺炎", 0.0),
    "empty": ("", "肺炎", 0.0),
    "either of two names": ("肺部感染", "肺炎/肺部感染", 1.0),
    "either of two names in English": ("heart attack", "myocardial infarction|heart attack", 1.0),
    "longer of two names": ("肺炎球菌肺炎", "肺炎/肺炎球菌肺炎", 1.0),
    "name after a decimal point": ("The drug is 1.5-FU", "5-FU", 0.0),
    "both names": ("肺炎（肺部感染）", "肺炎/肺部感染", 1.0),
    "both names, joined by or": ("heart attack or myocardial infarction", "myocardial infarction|heart attack", 1.0),
    "list of references": ("asthma", ["pneumonia", "asthma"], 1.0),
    "the other language": ("pneumonia", "肺炎", 0.0),
    "right to left": ("שפעת", "שפעת", 1.0),
    "the whole question": ("患者发热咳嗽，问是肺炎还是哮喘", "肺炎", 0.0),
}


@table(TERMS)
def test_terms(completion, answer, expected):
    assert score(f"<answer>{completion}</answer>", answer) == expected


def test_aliases_are_right_too():
    for aliases in (["lung infection", "肺炎"], "lung infection|肺炎"):
        assert score("<answer>肺炎</answer>", "pneumonia", aliases=aliases) == 1.0
        assert score("<answer>Lung infection (pneumonia)</answer>", "pneumonia", aliases=aliases) == 1.0
        assert score("<answer>asthma</answer>", "pneumonia", aliases=aliases) == 0.0
    assert score("<answer>asthma</answer>", "pneumonia", aliases=None) == 0.0
    for missing in (None, "", []):
        assert score("<answer>18</answer>", missing, aliases="18") is None


REFERENCES = {
    "missing": ("18", None, None),
    "empty": ("18", "", None),
    "only space": ("18", " \n", None),
    "free text": ("多喝水", "首先建议住院治疗，根据检查结果决定治疗方案。", None),
    "free text in English": ("rest", "You should rest, drink water and see a doctor if it gets worse.", None),
    "free text, nothing answered": ("", "You should rest, drink water and see a doctor.", None),
    "free text, said again": ("It may be. " * 40, "It may be. " * 40, None),
    "free text that begins like a bound": ("5", "<5 minutes of rest, then drink water and see a doctor soon.", None),
    "free text, of one clause": ("肺炎", "患者最近两周反复出现右上腹部疼痛和发热", None),
    "number that is too long": ("1", "1" * 5000, None),
    "number whose whole is too long": ("1", f"{'1' * 5000} 1/2", None),
    "number whose denominator is too long": ("1", f"1/{'1' * 5000}", None),
    "several terms": ("痤疮", "痤疮；暴发性痤疮；寻常痤疮", None),
    "only punctuation": ("?", "???", None),
    "long": ("a", "a" * MILLION, None),
    "empty list": ("18", [], None),
    "mapping": ("18", {"a": 1}, None),
    "expression that is too large to be read": ("1", "9^{9^{9}}", None),
    "term beside free text": ("肺炎", "肺炎/首先建议住院治疗，根据检查结果决定治疗方案。", None),
    "term beside a name of letters": ("肺炎", ["肺炎", "AB"], 1.0),
    "number beside choices": ("18", ["18", "A|B"], 1.0),
    "answer in tags": ("18", "<think>9 * 2</think><answer>18</answer>", 1.0),
    "term that begins with a digit": ("1型糖尿病", "2型糖尿病", 0.0),
    "term with a number": ("The drug is 5-FU.", "5-FU", 1.0),
    "choices": ("B", "A|B", 1.0),
    "numbers": ("19.0", "18|19", 1.0),
    "term with a full stop": ("肺炎", "肺炎。", 1.0),
    "integer": ("18", 18, 1.0),
    "float": ("18", 18.0, 1.0),
    "small float": ("0.00001", 1e-05, 1.0),
    "true": ("yes", True, 1.0),
    "false": ("no", False, 1.0),
    "false, answered yes": ("yes", False, 0.0),
    "list of numbers": ("6", [5, 6], 1.0),
    "list, hedged": ("4 or 5", [5, 6], 0.0),
    "whole solution": ("18", "9 * 2 = <<9*2=18>>18\n#### 18", 1.0),
    "boxed term": ("gout", "So it is \\boxed{gout}.", 1.0),
    "boxed solution": ("18", "So it is \\boxed{18}.", 1.0),
    "not a number": ("nan", float("nan"), None),
    "lone surrogate": ("\ud800", "\ud800", None),
}


@table(REFERENCES)
def test_kinds_of_reference(completion, answer, expected):
    assert score(f"<answer>{completion}</answer>", answer) == expected


KINDS = ["18", "50%", "B", "yes", "\\sqrt{8}", "x^2+1", "肺炎", "pneumonia", "肺炎/肺部感染"]
HOSTILE = {
    "huge": "a" * MILLION,
    "huge number": "1" * MILLION,
    "huge block": "<answer>" + "18 " * 300_000 + "</answer>",
    "huge thinking": "<think>" + "肺炎" * 500_000 + "</think>",
    "answer tags": "<answer>" * 125_000,
    "thinking tags": "<think>" * 140_000,
    "closing tags": "</think>" * 125_000,
    "boxes": "\\boxed{" * 140_000,
    "braces": "\\boxed{" + "{" * MILLION,
    "hashes": "#" * MILLION,
    "space": " " * MILLION,
    "line breaks": "\n" * MILLION,
    "stops": "." * MILLION,
    "commas": "1," * 500_000,
    "dashes": "-" * MILLION,
    "stars": "*" * MILLION,
    "dollars": "$" * MILLION,
    "digits and space": "1 " * 500_000,
    "letters": "B " * 500_000,
    "cues": "the answer is " * 70_000,
    "cues in Chinese": "答案是" * 330_000,
    "negations": "不" * MILLION,
    "yes": "yes " * 250_000,
    "terms": "肺炎" * 500_000,
    "terms in English": "pneumonia " * 100_000,
    "or": " or" * 330_000,
    "roots": "$" + "\\sqrt{" * 160_000,
    "one that grows": "\ufdfa" * 300_000,
    "control characters": "\x00\x1b[31m\x7f" * 1000,
    "lone surrogates": "\ud800\udfff" * 1000,
    "right to left": "\u202e18 שלום مرحبا",
    "emoji": "🤔🩺" * 1000,
    "combining marks": "a" + "\u0301" * 100_000,
}


# Right answers to one of the references above, although said again and again.
REPEATED = {"terms", "terms in English", "letters", "yes", "huge block", "right to left"}


@pytest.mark.slow
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_text_is_wrong_and_quick(case):
    text = HOSTILE[case]
    for answer in KINDS:
        for completion in (text, f"<answer>{text[: len(text) // 400]}</answer>", f"<answer>{text[:3900]}</answer>"):
            started = time.process_time()
            found = score(completion, answer)
            assert time.process_time() - started < 1
            assert found == 0.0 or case in REPEATED, answer


def test_the_tolerance_can_be_set():
    assert score("<answer>98</answer>", "100", tolerance=0.05) == 1.0
    assert score("<answer>94</answer>", "100", tolerance=0.05) == 0.0
    assert score("<answer>0.33</answer>", "1/3", tolerance=0.02) == 1.0


@pytest.mark.parametrize("value", ["-0.1", "1", "nan", "true", "null", "[0.1]", "x"])
def test_a_tolerance_is_a_share(value):
    with pytest.raises(UserError, match=r"tolerance=.*\(tolerance: float = 1e-06\)"):
        bind(RewardSpec.read(f"verifier:tolerance={value}"), Catalog())


def test_on_another_thread_there_is_no_timer():
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(score, "<answer>18</answer>", "18").result() == 1.0


def test_what_takes_too_long_is_wrong(monkeypatch):
    def slow(completion):
        raise maths._TookTooLong

    monkeypatch.setattr(rlhf_reward_verifier, "final_answer", slow)
    assert score("<answer>18</answer>", "18") == 0.0


def test_computing_for_too_long_is_ended_and_the_timer_with_it():
    before, ended = signal.signal(signal.SIGPROF, signal.SIG_IGN), True
    with maths.limited(0.01):
        started = time.process_time()
        while time.process_time() - started < 5:
            pass
        ended = False
    assert ended
    assert (signal.getitimer(signal.ITIMER_PROF)[0], signal.signal(signal.SIGPROF, before)) == (0, signal.SIG_IGN)


def test_importing_math_verify_quiets_it_and_leaves_the_timer_on():
    logging.getLogger("math_verify").setLevel(logging.NOTSET)
    with maths.limited(50.0):
        maths._math_verify.__wrapped__()
        left = signal.getitimer(signal.ITIMER_PROF)
    assert left == (pytest.approx(50.0, abs=10), 5.0)
    assert logging.getLogger("math_verify").level == logging.CRITICAL


def test_nothing_said_is_an_empty_answer():
    assert final_answer(" 。\n") == ""


def test_every_row_is_judged_by_its_reference():
    completions = ["<answer>B</answer>", "<answer>18</answer>", "", "<answer>x</answer>"]
    assert verifier(completions, ["B", "19", "yes", None]) == [1.0, 0.0, 0.0, None]
    assert verifier([], []) == []
    with pytest.raises(ValueError, match="shorter"):
        verifier(completions, ["B"])


def test_the_longest_possible_text_of_a_thousand_rows_is_scored_in_seconds():
    started = time.process_time()
    verifier([f"<think>{'x' * 500}</think><answer>{SECTIONS.format('肺炎')}</answer>"] * 1000, ["肺炎"] * 1000)
    assert time.process_time() - started < 3


def test_importing_it_loads_neither_sympy_nor_torch_and_their_loading_is_not_in_the_time_of_an_answer():
    code = """
import sys
from rlhf_reward_verifier import maths
assert not {"sympy", "torch", "math_verify"} & set(sys.modules)
found = None
with maths.limited(0.3):
    found = maths.same_expression("x^2+2x+1", "(x+1)^2")
assert found is True
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_found_by_its_name():
    reward, entry = Catalog().load("rewards", "verifier")
    assert (reward.range, reward.system_prompt, reward.isolation, entry.distribution) == (
        (0.0, 1.0), SYSTEM_PROMPT, "process", "rlhf-reward-verifier",
    )  # fmt: skip
    assert reward.optional == ("aliases", "options")
    bound = bind(RewardSpec.read("verifier:tolerance=0.01"), Catalog())
    assert bound.spec.parameters == {"tolerance": 0.01}


def test_other_keywords_are_ignored():
    assert verifier(completions=["18"], prompts=["p"], answer=["18"], kind=["number"], trainer_state=None) == [1.0]


@pytest.fixture
def worker():
    started = []

    def make(spec):
        started.append(Worker(bind(RewardSpec.read(spec), Catalog())))
        return started[-1]

    yield make
    for one in started:
        one.stop()


def test_it_works_in_its_process(worker):
    columns = {"answer": ["18", "\\sqrt{8}", None], "aliases": [None, None, None]}
    completions = ["#### 18", "\\boxed{2\\sqrt{2}}", "x"]
    assert worker("verifier").score((columns, {"completions": completions}), 3, 60).scores == [1.0, 1.0, None]


@pytest.mark.slow
def test_a_hanging_reward_is_killed_and_the_row_has_no_score(worker, tmp_path):
    # Stripped of what keeps it from hanging, so that only the process's own timeout is left.
    (tmp_path / "unguarded.py").write_text(
        "import contextlib, re, rlhf_reward_verifier\n"
        "from rlhf_core import Reward\n"
        "from rlhf_reward_verifier import maths, verifier\n"
        "maths._GIANT, rlhf_reward_verifier.limited = re.compile('(?!)'), contextlib.nullcontext\n"
        "unguarded = Reward(verifier, isolation='process', timeout=5.0, name='unguarded')\n"
    )
    unguarded = worker(f"{tmp_path}/unguarded.py:unguarded")
    huge, fine = "\\boxed{9^{9^{9}}}", "\\boxed{2\\sqrt{2}}"
    columns = {"answer": ["\\sqrt{8}"]}
    assert unguarded.score((columns, {"completions": [huge]}), 1, 5.0).errors == ["timeout: no answer within 5 s"]
    assert unguarded.score((columns, {"completions": [fine]}), 1, 60.0).scores == [1.0]


@pytest.mark.skipif(not (DATA / "gsm8k.jsonl").exists(), reason="the data set is not here")
def test_gsm8k_agrees_with_itself():
    rows = [json.loads(line)["answer"] for line in (DATA / "gsm8k.jsonl").read_text(encoding="utf-8").splitlines()]
    answers = [row.partition("####")[2].strip() for row in rows]
    others = [*answers[1:], answers[0]]
    assert verifier(rows, answers) == [1.0] * len(rows)
    assert verifier(rows, others) == [float(a == b) for a, b in zip(answers, others, strict=True)]


@pytest.mark.skipif(not (DATA / "medical_grpo_question_answer.jsonl").exists(), reason="the data set is not here")
def test_free_text_references_are_left_out():
    text = (DATA / "medical_grpo_question_answer.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line)["answer"] for line in text.splitlines()]
    for row, found in zip(rows, verifier(rows, rows), strict=True):
        assert found == (1.0 if len(row) < 10 else None)
