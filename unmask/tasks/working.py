"""Problems in several steps, answered with their working or by the result alone.

A response consists of the steps of the working, separated by `;`, and an end token, as in `unmask.tasks.instructions`,
which has the same vocabulary. The kinds, with examples of problem and response:

- `expression`: `(7+5)*3-4=` `7+5=12;12*3=36;36-4=32`: three or four numbers, evaluated from the left, brackets and
  products first;
- `story`: `Ann has 7, buys 5, eats 3.` `7+5=12;12-3=9`: two or three steps in words;
- `countdown`: `Make 24 of 9 3 5.` `3*5=15;15+9=24`: each number is used once; usually there are several solutions, and
  tokens that are drawn in parallel may belong to different ones.

All intermediate results lie in 1..99, so each step is easy, but it is hard to predict the final result at once. A share
of the examples is terse: the response is the result alone, `32`, without the working. So a model learns both styles, as
a model does that is trained on the answers of many people, and the tokens that are written first decide between them. A
sampler that fixes the end of the response before its beginning chooses the terse answer by accident, which makes the
problem harder.

What takes longest to learn is not which step comes next, but the result of each step. So a share of the training
sequences may be drills: the steps of many problems one after the other, `7+5=□□;12*3=□□;…`, with only the result of
each step masked.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ._common import Draws, check_index, check_split
from .arithmetic import OPERATIONS, STEP, Operation, makes, numbers_of, value_of, work_out, write
from .instructions import PAD_ID, Instruction, InstructionExamples, InstructionTask, encode, split_of

_LENGTH, _CANVAS = 64, 32
_FEWEST, _MOST_NUMBERS = 3, 4
_LEAST, _MOST = 1, 99
_NAMES = ("Ann", "Ben", "Eva", "Ida", "Leo", "Mia", "Sam", "Tom")
_STORIES = (
    ("+-", "{name} has {0}, buys {1}, eats {2}."),
    ("-+", "{name} has {0}, eats {1}, buys {2}."),
    ("--", "{name} has {0}, eats {1}, sells {2}."),
    ("++", "{name} has {0}, buys {1}, finds {2}."),
    ("*-", "{0} bags of {1}, {2} are eaten."),
    ("*+", "{0} bags of {1}, and {2} more."),
    ("+*", "{0} red, {1} blue, {2} $ each."),
    ("*-*", "{0} bags of {1} less {2}, {3} $ each."),
)


@dataclass(frozen=True)
class Problem(Instruction):
    """A problem; its `answer` is a response with the working, or a terse one."""

    @property
    def result(self) -> str:
        """The final result, as text."""
        return self.answer.rpartition("=")[2]

    def right(self, text: str) -> bool:
        """Returns whether a response ends in the right result: the text after the last `=`, or all of it if it has
        none.

        For a countdown all steps must be right. Spaces around the response are ignored.
        """
        text = text.strip()
        if self.kind != "countdown":
            return text.rpartition("=")[2] == self.result
        *numbers, target = _countdown_of(self.prompt)
        return makes(text.replace(";", " "), numbers, target)

    def steps(self, text: str) -> list[bool]:
        """Returns which steps of a response are sound: true equations of numbers from the problem or an earlier step.

        Each number may be used as often as it is given. A terse response has no steps.
        """
        text = text.strip()
        if "=" not in text:
            return []
        given = [int(number) for number in re.findall(r"\d+", self.prompt)]
        if self.kind == "countdown":
            *given, _ = _countdown_of(self.prompt)
        sound = []
        for line in text.split(";"):
            found = STEP.fullmatch(line)
            true = found is not None and OPERATIONS[found[2]](int(found[1]), int(found[3])) == int(found[4])
            for operand in (int(found[1]), int(found[3])) if found else ():
                if operand in given:
                    given.remove(operand)
                else:
                    true = False
            if found:
                given.append(int(found[4]))
            sound.append(true)
        return sound

    def worked(self, text: str) -> bool:
        """Returns whether the response shows its working, all its steps are sound, and the result is right."""
        lines = self.steps(text)
        return bool(lines) and all(lines) and self.right(text)


def _countdown_of(prompt: str) -> list[int]:
    """Returns the numbers of a countdown, with the target last."""
    target, *numbers = (int(number) for number in re.findall(r"\d+", prompt))
    return [*numbers, target]


def _tree(numbers: list[int], draws: Draws) -> Operation | int | None:
    """Returns a random expression of the numbers in their order; `None` if one of its values is out of range."""
    if len(numbers) == 1:
        return numbers[0]
    cut = 1 + draws.below(len(numbers) - 1)
    sign = draws.pick("+-*")
    left, right = _tree(numbers[:cut], draws), _tree(numbers[cut:], draws)
    if left is None or right is None:
        return None
    value = OPERATIONS[sign](value_of(left), value_of(right))
    return Operation(sign, left, right, value) if _LEAST <= value <= _MOST else None


def _any_tree(size: int, draws: Draws) -> Operation:
    while True:
        tree = _tree([1 + draws.below(9) for _ in range(size)], draws)
        if isinstance(tree, Operation):
            return tree


def _working(tree: Operation | int) -> str:
    lines = []
    while isinstance(tree, Operation):
        tree, done = work_out(tree)
        lines.append(f"{write(done)}={done.value}")
    return ";".join(lines)


def _expression(draws: Draws) -> Problem:
    tree = _any_tree(_FEWEST + draws.below(_MOST_NUMBERS - _FEWEST + 1), draws)
    shown = write(tree)
    return Problem(f"{shown}=", _working(tree), "expression", shown)


def _story(draws: Draws) -> Problem:
    signs, text = draws.pick(_STORIES)
    while True:
        small = "*" in signs
        numbers = [1 + draws.below(9 if small or place else 30) for place in range(len(signs) + 1)]
        values = [numbers[0]]
        for sign, number in zip(signs, numbers[1:], strict=True):
            values.append(OPERATIONS[sign](values[-1], number))
        if all(_LEAST <= value <= _MOST for value in values):
            break
    lines = [
        f"{before}{sign}{number}={after}"
        for (before, after), sign, number in zip(pairwise(values), signs, numbers[1:], strict=True)
    ]
    shown = text.format(*numbers, name=draws.pick(_NAMES))
    return Problem(shown, ";".join(lines), "story", f"{signs} {numbers}")


def _countdown(draws: Draws) -> Problem:
    tree = _any_tree(3, draws)
    numbers = numbers_of(tree)
    shown = " ".join(str(numbers[place]) for place in draws.sample(3, 3))
    key = f"{sorted(numbers)} make {tree.value}"
    return Problem(f"Make {tree.value} of {shown}.", _working(tree), "countdown", key)


KINDS: dict[str, Callable[[Draws], Problem]] = {"expression": _expression, "story": _story, "countdown": _countdown}
_OFTEN = {"expression": 3}
"""How many times as often as a kind that is not listed a kind is drawn."""


class WorkingExamples(InstructionExamples):
    """The problems of a split; in training some of the sequences are drills (see the module)."""

    task: WorkingTask

    def __getitem__(self, index: int) -> tuple[Int[Tensor, " length"], Bool[Tensor, " length"]]:
        index = check_index(index, len(self))
        draws = Draws(self.task.seed, "drills", index)
        if self.split == "train" and draws.below(1000) < 1000 * self.task.drills:
            return self._drill(draws)
        return super().__getitem__(index)

    def _drill(self, draws: Draws) -> tuple[Int[Tensor, " length"], Bool[Tensor, " length"]]:
        text, hidden = "", list[int]()
        while True:
            for line in self.task.draw(self.split, draws).answer.split(";"):
                shown, equals, result = line.rpartition("=")
                if not equals:
                    continue
                if len(text) + len(line) + 1 > self.task.length:
                    tokens = encode(text) + [PAD_ID] * (self.task.length - len(text))
                    maskable = torch.zeros(self.task.length, dtype=torch.bool)
                    maskable[hidden] = True
                    return torch.tensor(tokens), maskable
                begin = len(text) + len(shown) + 1
                hidden += range(begin, begin + len(result))
                text += f"{line};"


class WorkingTask(InstructionTask):
    """Problems in several steps, with their working (see the module).

    A hash of its expression, of the numbers of its story, or of the numbers and the target of its countdown determines
    the split of a problem. The score is 1 if the result is right, and 0 if not.

    Args:
        kinds: The kinds, joined by `+`; default: all.
        length: Tokens per sequence, for prompt and response together.
        canvas: The number of masks for a response, outside training.
        terse: Share of the expressions and stories whose response is the result alone.
        drills: Share of the training sequences that are drills.
        seed: The seed of the training problems.

    Raises:
        ValueError: If there is no such kind or a number is out of range; when an example is read, if it does not fit
            into `length` tokens.
    """

    name = "working"
    quality = "share of results right"
    canvases = (8, 16, 32)
    kinds = KINDS

    def __init__(
        self,
        *,
        kinds: str | None = None,
        length: int = _LENGTH,
        canvas: int = _CANVAS,
        terse: float = 0.3,
        drills: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(kinds=kinds, length=length, canvas=canvas, seed=seed)
        for name, share in (("terse", terse), ("drills", drills)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must be a share, from 0 to 1, got {share}")
        self.terse, self.drills = terse, drills

    def examples(self, split: str) -> WorkingExamples:
        """Returns the problems of a split, `2**31` sequences for training."""
        return WorkingExamples(self, check_split(split))

    def draw(self, split: str, draws: Draws) -> Problem:
        """Draws problems of a random kind until one belongs to the split, and returns that one."""
        kind = draws.pick([kind for kind in self.chosen for _ in range(_OFTEN.get(kind, 1))])
        terse = kind != "countdown" and draws.below(1000) < 1000 * self.terse
        while True:
            one = KINDS[kind](draws)
            if split_of(one.key) == split:
                return Problem(one.prompt, one.result, kind, one.key) if terse else one

    def problems(self, split: str, limit: int) -> list[Problem]:
        """Returns the first `limit` problems of a split, or all if there are fewer."""
        return cast("list[Problem]", self.instructions(split, limit))

    def asked(self, prompt: str, answer: str) -> Problem:
        """Returns the problem that the text of a prompt and an answer make, for scoring."""
        return Problem(prompt, answer, "countdown" if prompt.startswith("Make") else "", "")
