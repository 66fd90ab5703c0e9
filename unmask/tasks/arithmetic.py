"""Arithmetic written as text, in which later characters follow from earlier ones.

The prompt shows the problem; the answer and its working are masked. There are four kinds:

- `addition`: several sums in a sequence, `347+586= 933 128+245= 373`. A digit depends on the carries to its right.
- `expression`: numbers, `+`, `-`, `*` and brackets, evaluated one operation at a time:
  `(23+18)*2-45=41*2-45=82-45=37`.
- `word`: `tom has 23 apples, gets 18 more and gives 12 away. how many are left? 23+18=41 41-12=29`.
- `countdown`: make a number from others, each used once: `2 18 23 make 82: 23+18=41 41*2=82`. Usually there are several
  solutions, and tokens that are drawn in parallel may belong to different ones.

`mixed` draws one of the first three for each sequence. The answers of the first three are determined by their problems.
They are hard to decode in parallel because a network that cannot do all the steps at once is uncertain about the later
steps until it has written down the earlier ones.

The number of masks does not reveal the answer: a sum has a place for a carry, which is a space if there is none, and in
the other kinds all results have two digits, so the form of the problem fixes the length. Padding is not masked.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..checks import whole
from ..draws.streams import derive
from ._common import ENDLESS, MASK_SIGN, Draws, check_index, check_split, stack
from .task import Prompts

CHARACTERS = " 0123456789+-*()=.,:?abcdefghijklmnopqrstuvwxyz"
"""The vocabulary: a character's index is its token id. The mask token comes after the last one."""

_IDS = {character: index for index, character in enumerate(CHARACTERS)}
_LEAST, _MOST = 10, 99
_VALIDATION, _TEST, _BUCKETS = 2_000, 10_000, 16
_MIXED = ("addition", "expression", "word")
STEP = re.compile(r"(\d+)([-+*])(\d+)=(\d+)")
"""Matches a step of the working, such as `23+18=41`: operand, sign, operand and result."""

OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
}
"""The function of each sign."""


@dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        shown: The text that the prompt shows.
        hidden: The working and the answer, which follows the last `=`.
        key: Determines the split. Problems that differ only in names or in the order of numbers have the same key.
    """

    shown: str
    hidden: str
    key: str


@dataclass(frozen=True)
class Operation:
    """A node of an expression: `left sign right`.

    Attributes:
        sign: `+`, `-` or `*`.
        left: The left operand.
        right: The right operand.
        value: The value of the node.
    """

    sign: str
    left: Operation | int
    right: Operation | int
    value: int


def value_of(node: Operation | int) -> int:
    """Returns the value of an expression."""
    return node if isinstance(node, int) else node.value


def expression(operations: int, draws: Draws) -> Operation | int:
    """Makes a random expression whose parts have two-digit values; its own value is uniform in 10..99.

    It is built from the root: a node that must have the value v is split into two parts that give v. One factor of each
    product is a single digit, as the product of two larger numbers would have three digits.

    Args:
        operations: Number of operations; at 0 the expression is a number.
        draws: The random numbers.
    """
    return _grow(_LEAST + draws.below(_MOST - _LEAST + 1), operations, draws)


def _grow(value: int, operations: int, draws: Draws) -> Operation | int:
    if operations == 0:
        return value
    factors = [digit for digit in range(2, 10) if value % digit == 0 and value // digit >= _LEAST]
    signs = "+" * (value >= 2 * _LEAST) + "-" * (value <= _MOST - _LEAST) + "*" * bool(factors)
    sign = draws.pick(signs)
    if sign == "*":
        factor = draws.pick(factors)
        rest = _grow(value // factor, operations - 1, draws)
        left, right = (factor, rest) if draws.below(2) else (rest, factor)
        return Operation(sign, left, right, value)
    if sign == "+":
        first = _LEAST + draws.below(value - 2 * _LEAST + 1)
        second = value - first
    else:
        second = _LEAST + draws.below(_MOST - value - _LEAST + 1)
        first = value + second
    on_the_left = draws.below(operations)
    left, right = _grow(first, on_the_left, draws), _grow(second, operations - 1 - on_the_left, draws)
    return Operation(sign, left, right, value)


def write(node: Operation | int) -> str:
    """Writes an expression with the brackets that it needs, and no others.

    A right operand that is a sum or difference, or a product in a product, always has brackets.
    """
    if isinstance(node, int):
        return str(node)
    left, right = write(node.left), write(node.right)
    if isinstance(node.left, Operation) and node.sign == "*" != node.left.sign:
        left = f"({left})"
    if isinstance(node.right, Operation) and not (node.sign != "*" == node.right.sign):
        right = f"({right})"
    return f"{left}{node.sign}{right}"


def numbers_of(node: Operation | int) -> list[int]:
    """Returns the numbers of an expression, from left to right."""
    return [node] if isinstance(node, int) else numbers_of(node.left) + numbers_of(node.right)


def work_out(node: Operation) -> tuple[Operation | int, Operation]:
    """Evaluates the first operation, from the left, on two plain numbers.

    Returns:
        The expression with the value in place of the operation, and the operation.
    """
    if isinstance(node.left, Operation):
        left, done = work_out(node.left)
        return Operation(node.sign, left, node.right, node.value), done
    if isinstance(node.right, Operation):
        right, done = work_out(node.right)
        return Operation(node.sign, node.left, right, node.value), done
    return node.value, node


def _addition(draws: Draws, digits: int) -> Problem:
    least = 10 ** (digits - 1)
    a, b = (least + draws.below(9 * least) for _ in range(2))
    return Problem(f"{a}+{b}=", f"{a + b:{digits + 1}d}", f"{min(a, b)}+{max(a, b)}")


def _expression(draws: Draws, operations: int) -> Problem:
    node = expression(operations, draws)
    shown = write(node)
    lines = []
    while isinstance(node, Operation):
        node, _ = work_out(node)
        lines.append(write(node))
    return Problem(f"{shown}=", "=".join(lines), shown)


def _countdown(draws: Draws, operations: int) -> Problem:
    node = expression(operations, draws)
    target = value_of(node)
    numbers = numbers_of(node)
    shuffled = [numbers[place] for place in draws.sample(len(numbers), len(numbers))]
    lines = []
    while isinstance(node, Operation):
        node, done = work_out(node)
        lines.append(f"{write(done)}={done.value}")
    return Problem(
        f"{' '.join(map(str, shuffled))} make {target}: ", " ".join(lines), f"{sorted(numbers)} make {target}"
    )


_NAMES = ("tom", "ann", "sam", "eva", "ben", "mia", "leo", "ida")
_THINGS = ("apples", "pens", "coins", "books", "cards", "shells", "cups", "keys")
_STORIES = (
    ("+-", "{name} has {a} {things}, gets {b} more and gives {c} away. how many are left?"),
    ("++", "{name} reads {a} pages on monday, {b} on tuesday and {c} on friday. how many pages?"),
    ("-+", "{name} had {a} {things}, lost {b} and then found {c}. how many now?"),
    ("--", "there were {a} {things}. {name} lost {b} and sold {c}. how many are left?"),
    ("*-", "{a} bags hold {b} {things} each. {name} takes {c}. how many are left?"),
    ("*+", "{name} packs {a} boxes of {b} {things} and has {c} more. how many in all?"),
    ("-*", "of {a} {things}, {b} broke. {name} gets {c} dollars for each other one. how many dollars?"),
    ("+*", "{name} has {a} red and {b} green {things} and gets {c} dollars for each. how many dollars?"),
)


def _word(draws: Draws) -> Problem:
    story = draws.below(len(_STORIES))
    signs, text = _STORIES[story]
    (a, b, c), lines = _chain(signs, draws)
    shown = text.format(name=draws.pick(_NAMES), things=draws.pick(_THINGS), a=a, b=b, c=c)
    return Problem(f"{shown} ", " ".join(lines), f"story {story}: {a} {b} {c}")


def _chain(signs: str, draws: Draws) -> tuple[list[int], list[str]]:
    # Returns numbers for which all results, from left to right, have two digits; and the steps as text.
    while True:
        value = _LEAST + draws.below(_MOST - _LEAST + 1)
        numbers, lines = [value], []
        for sign in signs:
            numbers.append(2 + draws.below(8) if sign == "*" else _LEAST + draws.below(_MOST - _LEAST + 1))
            result = OPERATIONS[sign](value, numbers[-1])
            lines.append(f"{value}{sign}{numbers[-1]}={result}")
            value = result
            if not _LEAST <= value <= _MOST:
                break
        else:
            return numbers, lines


def makes(text: str, numbers: list[int], target: int) -> bool:
    """Returns whether steps, such as `23+18=41 41*2=82`, are right, use each number once and end at the target.

    Args:
        text: The steps, with spaces between them.
        numbers: The given numbers.
        target: The number to make.
    """
    left = list(numbers)
    value = None
    for step in text.strip().split(" "):
        match = STEP.fullmatch(step)
        if match is None:
            return False
        a, b, value = int(match[1]), int(match[3]), int(match[4])
        for operand in (a, b):
            if operand not in left:
                return False
            left.remove(operand)
        if OPERATIONS[match[2]](a, b) != value:
            return False
        left.append(value)
    return left == [target]


def encode(text: str) -> Int[Tensor, " characters"]:
    """Returns the tokens of a text of `CHARACTERS`."""
    return torch.tensor([_IDS[character] for character in text])


def _longest_expression(numbers: int) -> int:
    # Two digits per number, a sign between any two, brackets around each part that is not a number or the whole.
    return 2 * numbers + (numbers - 1) + 2 * max(0, numbers - 2)


class ArithmeticExamples:
    """The sequences of a split, each a function of (seed, index).

    Args:
        task: The task.
        split: The split.
    """

    def __init__(self, task: ArithmeticTask, split: str) -> None:
        self.task, self.split = task, split

    def __len__(self) -> int:
        return {"train": ENDLESS, "validation": _VALIDATION, "test": _TEST}[self.split]

    def __getitem__(self, index: int) -> tuple[Int[Tensor, " length"], Bool[Tensor, " length"]]:
        index = check_index(index, len(self))
        task = self.task
        draws = Draws(task.seed if self.split == "train" else 0, "arithmetic", task.kind, self.split, index)
        kind = draws.pick(_MIXED) if task.kind == "mixed" else task.kind
        problems = [task.problem(kind, self.split, draws) for _ in range(task.problems if kind == "addition" else 1)]
        # The shown part is aligned to the right, so that the answer always begins at the same position.
        text, maskable = " " * (task.widths[kind] - len(problems[0].shown)), []
        for number, one in enumerate(problems):
            text += " " * (number > 0) + one.shown
            maskable += [False] * (len(text) - len(maskable)) + [True] * len(one.hidden)
            text += one.hidden
        maskable += [False] * (task.length - len(text))
        return encode(text.ljust(task.length)), torch.tensor(maskable)


class ArithmeticTask:
    """Arithmetic as text (see the module for the kinds).

    Only answers and their working are masked, also in training: the problems themselves have random digits, of which
    nothing can be learned. A hash of a problem's numbers (for a sum the two operands in either order) determines its
    split. The validation split has 2,000 sequences, the test split 10,000.

    The score is the share of the problems of a sequence whose final number is right; the working is not judged. A
    sequence of the kind `addition` holds `problems` problems, all others hold one. For `countdown` the score is 1 if
    all steps are right, use each number once and end at the target, and 0 if not; any solution that fits into the masks
    counts.

    Args:
        kind: `"addition"`, `"expression"`, `"word"`, `"countdown"` or `"mixed"`.
        digits: Digits of the operands of sums, from 2 to 9.
        problems: Sums per sequence, from 1 to 16.
        operations: Operations per expression or countdown, from 1 to 6; default: 3, and 2 for countdown.
        seed: The seed of the training problems.

    Raises:
        ValueError: If a setting is out of range.
    """

    name = "arithmetic"
    vocab_size = len(CHARACTERS) + 1
    mask_id = len(CHARACTERS)

    def __init__(
        self,
        kind: Literal["addition", "expression", "word", "countdown", "mixed"] = "addition",
        *,
        digits: int = 3,
        problems: int = 4,
        operations: int | None = None,
        seed: int = 0,
    ) -> None:
        if kind not in (*_MIXED, "countdown", "mixed"):
            raise ValueError(f"unknown kind {kind!r}; choose one of {', '.join(_MIXED)}, countdown, mixed")
        self.kind = kind
        self.digits = whole("digits", digits, 2, 9)
        self.problems = whole("problems", problems, 1, 16)
        default = 2 if kind == "countdown" else 3
        self.operations = n = whole("operations", default if operations is None else operations, 1, 6)
        self.seed = whole("seed", seed, 0)
        stories = [text.format(name="tom", things="apples", a=10, b=10, c=10) for _, text in _STORIES]
        self.widths = {
            "addition": 2 * digits + 2,
            "expression": _longest_expression(n + 1) + 1,
            "word": max(map(len, stories)) + 1,
            "countdown": len(f"{' '.join(['10'] * (n + 1))} make 10: "),
        }
        hidden = {
            "addition": digits + 1 + (problems - 1) * (3 * digits + 4),
            "expression": sum(_longest_expression(one) + 1 for one in range(1, n + 1)) - 1,
            "word": len("10+10=20 20+10=30"),
            "countdown": n * len("10+10=20 ") - 1,
        }
        self.length = max(self.widths[one] + hidden[one] for one in (_MIXED if kind == "mixed" else [kind]))
        self.quality = "share of problems solved" if kind == "countdown" else "share of answers right"

    def problem(self, kind: str, split: str, draws: Draws) -> Problem:
        """Draws problems of a kind until one belongs to the split, and returns that one."""
        while True:
            if kind == "addition":
                one = _addition(draws, self.digits)
            elif kind == "word":
                one = _word(draws)
            else:
                one = (_expression if kind == "expression" else _countdown)(draws, self.operations)
            if {0: "validation", 1: "test"}.get(derive(0, "arithmetic split", one.key) % _BUCKETS, "train") == split:
                return one

    def examples(self, split: str) -> ArithmeticExamples:
        """Returns the problems of a split, `2**31` sequences for training."""
        return ArithmeticExamples(self, check_split(split))

    def prompts(self, split: str, limit: int) -> Prompts:
        """Returns the first `limit` sequences of a split, with answers and working masked."""
        answers, masked = stack(self.examples(split), limit)
        return Prompts.of(answers, masked, self.mask_id)

    def score(self, prompts: Prompts, tokens: Int[Tensor, "prompts length"]) -> Float[Tensor, " prompts"]:
        """Returns the score of each prompt, as the class describes it; a remaining mask counts as wrong."""
        judge = self._countdown_score if self.kind == "countdown" else self._share_right
        rows = zip(prompts.tokens, prompts.answers, tokens, strict=True)
        return torch.tensor([judge(*map(self.show, row)) for row in rows], dtype=torch.float64)

    @staticmethod
    def _share_right(prompt: str, answer: str, text: str) -> float:
        right = []
        for field in re.finditer(f"{MASK_SIGN}+", prompt):
            begin = max(field.start(), answer.rfind("=", 0, field.end()) + 1)
            right.append(text[begin : field.end()] == answer[begin : field.end()])
        return sum(right) / len(right)

    @staticmethod
    def _countdown_score(prompt: str, answer: str, text: str) -> float:
        begin = prompt.index(MASK_SIGN)
        *numbers, target = (int(number) for number in re.findall(r"\d+", prompt[:begin]))
        return float(makes(text[begin:], numbers, target))

    def show(self, tokens: Int[Tensor, " length"]) -> str:
        """Returns the text, with `□` for a mask."""
        characters = CHARACTERS + MASK_SIGN
        return "".join([characters[token] for token in tokens.tolist()])
