"""Short instructions about numbers with their answers, as given to a language model: the response has an end token.

The prompt is plain text or a chat. The response is masked, and padded with `<|endoftext|>`, which the model learns to
predict as well, so that it learns where to end. The kinds, with examples of prompt and answer:

- `sums`: `12+35=` `47`, `7*8=` `56`, `What is 9 plus 4?` `13`: sums and the multiplication table;
- `basic`: the same, and differences;
- `calculate`: the same as `basic`, also in words (`Add 12 and 35.` `47`), and longer products, `23*7=` `140+21=161`;
- `steps`: `Add 27 and 45 step by step.` `7+5=12, 20+40=60, 60+12=72`;
- `chain`: `12+35-8=` `47-8=39`;
- `count`: `Count from 7 to 12.` `7 8 9 10 11 12`;
- `reverse`: `Reverse 3814.` `4183`;
- `sort`: `Sort 31 7 25.` `7 25 31`;
- `double`: `Double 4 8 15.` `8 16 30`;
- `split`: `Find two numbers that make 47.` `12+35`, or any other sum: tokens drawn in parallel must fit each other.

A response is given more masks than it has characters, so the number of masks does not reveal its length.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..checks import whole
from ..draws.streams import derive
from ._common import ENDLESS, MASK_SIGN, Draws, check_index, check_split, stack
from .task import Prompts

CHARACTERS = "\n" + "".join(chr(code) for code in range(32, 127))
SPECIAL = ("<|endoftext|>", "<|mask|>", "<|pad|>", "<|unk|>", "<|user|>", "<|assistant|>")
"""The special tokens; their ids come after those of the characters."""

END_ID, MASK_ID, PAD_ID, UNKNOWN_ID, USER_ID, ASSISTANT_ID = range(len(CHARACTERS), len(CHARACTERS) + len(SPECIAL))

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|user|>{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}<|endoftext|>"
    "{% else %}{{ raise_exception('the roles of a chat are user and assistant, got ' + message['role']) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_IDS = {character: index for index, character in enumerate(CHARACTERS)}
_VALIDATION, _TEST, _BUCKETS = 2_000, 10_000, 16
_LENGTH, _CANVAS = 96, 32
_CANVASES = (4, 4, 5, 6, 8, 16, 32)
"""Numbers of masks for a response in training, drawn with equal probability; a longer response gets more."""
_WORDS = {"+": "plus", "-": "minus", "*": "times"}


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        prompt: The text of the instruction.
        answer: The answer, or one of several right answers.
        kind: The kind, see the module.
        key: Determines the split; `""` for the multiplication table and sums of single digits, which are in the
            training split.
    """

    prompt: str
    answer: str
    kind: str
    key: str

    def right(self, text: str) -> bool:
        """Returns whether a response is right, including its working; spaces around it are ignored."""
        text = text.strip()
        if self.kind != "split":
            return text == self.answer
        found, total = re.fullmatch(r"(\d+)\+(\d+)", text), re.search(r"\d+", self.prompt)
        return found is not None and total is not None and int(found[1]) + int(found[2]) == int(total[0])


def _number(draws: Draws) -> int:
    return 1 + draws.below(9) if draws.below(3) == 0 else 10 + draws.below(90)


def _calculate(draws: Draws) -> Instruction:
    sign = draws.pick("+-*")
    a, b = _number(draws), _number(draws)
    if sign == "*":
        a, b = 2 + draws.below(98), 2 + draws.below(8)
    elif sign == "-":
        a, b = max(a, b), min(a, b)
    result = {"+": a + b, "-": a - b, "*": a * b}[sign]
    answer = str(result)
    tens, units = a // 10 * 10, a % 10
    table = max(a, b) < 10 or (sign == "*" and not units)
    if sign == "*" and tens and units:
        answer = f"{tens * b}+{units * b}={result}"
    key = f"{a}-{b}" if sign == "-" else f"{min(a, b)}{sign}{max(a, b)}"
    spoken = {"+": f"Add {a} and {b}.", "-": f"Subtract {b} from {a}.", "*": f"Multiply {a} by {b}."}[sign]
    prompt = draws.pick((f"{a}{sign}{b}=", f"What is {a} {_WORDS[sign]} {b}?", spoken))
    return Instruction(prompt, answer, "calculate", "" if table else key)


def _basic(draws: Draws) -> Instruction:
    sign = draws.pick("++--*")
    a, b = _number(draws), _number(draws)
    if sign == "*":
        a, b = 1 + draws.below(9), 1 + draws.below(9)
    elif sign == "-":
        a, b = max(a, b), min(a, b)
    result = {"+": a + b, "-": a - b, "*": a * b}[sign]
    key = f"{a}-{b}" if sign == "-" else f"{min(a, b)}{sign}{max(a, b)}"
    prompt = draws.pick((f"{a}{sign}{b}=", f"What is {a} {_WORDS[sign]} {b}?"))
    return Instruction(prompt, str(result), "basic", "" if max(a, b) < 10 else key)


def _sums(draws: Draws) -> Instruction:
    sign = draws.pick("+++++*")
    a, b = (1 + draws.below(9) if sign == "*" or draws.below(2) else 10 + draws.below(90) for _ in range(2))
    key = f"{min(a, b)}{sign}{max(a, b)}"
    prompt = draws.pick((f"{a}{sign}{b}=", f"What is {a} {_WORDS[sign]} {b}?"))
    return Instruction(prompt, str(a + b if sign == "+" else a * b), "sums", "" if max(a, b) < 10 else key)


def _steps(draws: Draws) -> Instruction:
    a, b = 10 + draws.below(90), 10 + draws.below(90)
    low, high = a % 10 + b % 10, a // 10 * 10 + b // 10 * 10
    answer = f"{a % 10}+{b % 10}={low}, {a - a % 10}+{b - b % 10}={high}, {high}+{low}={a + b}"
    return Instruction(f"Add {a} and {b} step by step.", answer, "steps", f"{min(a, b)}+{max(a, b)}")


def _chain(draws: Draws) -> Instruction:
    while True:
        a, b, c = _number(draws), _number(draws), _number(draws)
        first, second = draws.pick("+-"), draws.pick("+-")
        middle = a + b if first == "+" else a - b
        result = middle + c if second == "+" else middle - c
        if middle >= 0 and result >= 0:
            text = f"{a}{first}{b}{second}{c}"
            return Instruction(f"{text}=", f"{middle}{second}{c}={result}", "chain", text)


def _count(draws: Draws) -> Instruction:
    first, size = draws.below(90), 3 + draws.below(6)
    numbers = list(range(first, first + size))
    if down := draws.below(2):
        numbers.reverse()
    prompt = f"Count {'down ' * down}from {numbers[0]} to {numbers[-1]}."
    return Instruction(prompt, " ".join(map(str, numbers)), "count", prompt)


def _reverse(draws: Draws) -> Instruction:
    digits = "".join(draws.pick(string.digits) for _ in range(3 + draws.below(6)))
    return Instruction(f"Reverse {digits}.", digits[::-1], "reverse", f"reverse {digits}")


def _listed(draws: Draws) -> list[int]:
    return [1 + draws.below(99) for _ in range(3 + draws.below(3))]


def _sort(draws: Draws) -> Instruction:
    numbers = _listed(draws)
    shown, answer = " ".join(map(str, numbers)), " ".join(map(str, sorted(numbers)))
    return Instruction(f"Sort {shown}.", answer, "sort", f"sort {answer}")


def _double(draws: Draws) -> Instruction:
    numbers = _listed(draws)
    shown, answer = (" ".join(str(factor * number) for number in numbers) for factor in (1, 2))
    return Instruction(f"Double {shown}.", answer, "double", f"double {sorted(numbers)}")


def _split(draws: Draws) -> Instruction:
    total = 10 + draws.below(90)
    first = 1 + draws.below(total - 1)
    return Instruction(f"Find two numbers that make {total}.", f"{first}+{total - first}", "split", f"split {total}")


KINDS: dict[str, Callable[[Draws], Instruction]] = {
    "sums": _sums,
    "basic": _basic,
    "calculate": _calculate,
    "steps": _steps,
    "chain": _chain,
    "count": _count,
    "reverse": _reverse,
    "sort": _sort,
    "double": _double,
    "split": _split,
}
_OFTEN = {"sums": 6, "basic": 6, "calculate": 6}
"""How many times as often as a kind that is not listed a kind is drawn."""


def split_of(key: str) -> str:
    """Returns the split of an instruction, which a hash of its key determines; the key `""` is in `"train"`."""
    return {0: "validation", 1: "test"}.get(derive(0, "instruction split", key) % _BUCKETS, "train") if key else "train"


def draw_instruction(split: str, draws: Draws, kinds: tuple[str, ...]) -> Instruction:
    """Draws instructions of a random kind until one belongs to the split, and returns that one.

    Args:
        split: The split.
        draws: The random numbers.
        kinds: The kinds to draw from.
    """
    kind = draws.pick([kind for kind in kinds for _ in range(_OFTEN.get(kind, 1))])
    while True:
        one = KINDS[kind](draws)
        if split_of(one.key) == split:
            return one


def encode(text: str) -> list[int]:
    """Returns the tokens of a text of `CHARACTERS`."""
    return [_IDS[character] for character in text]


def save_tokenizer(folder: Path) -> None:
    """Writes the tokenizer, which has a token per character, and its chat template.

    Args:
        folder: The folder in which `tokenizer.json` and `tokenizer_config.json` are written.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate((*CHARACTERS, *SPECIAL))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[UNKNOWN_ID - len(CHARACTERS)]))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    end, mask, pad, unknown, user, assistant = SPECIAL
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=end,
        mask_token=mask,
        pad_token=pad,
        unk_token=unknown,
        additional_special_tokens=[user, assistant],
        clean_up_tokenization_spaces=False,
        model_max_length=_LENGTH,
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.save_pretrained(folder, save_jinja_files=False)


class InstructionExamples:
    """The instructions of a split, each a function of (seed, index).

    Half of them are chats; in training, some of these have an earlier turn, if it fits. The number of masks in training
    is drawn from the task's `canvases`, but is at least 1 to 4 more than the response has tokens, as far as they fit.
    In the other splits it is `canvas`.

    Args:
        task: The task.
        split: The split.
    """

    def __init__(self, task: InstructionTask, split: str) -> None:
        self.task, self.split = task, split

    def __len__(self) -> int:
        return {"train": ENDLESS, "validation": _VALIDATION, "test": _TEST}[self.split]

    def instruction(self, index: int) -> tuple[Instruction, list[int], int]:
        """Returns an example's instruction, the tokens of its prompt, and the number of masks."""
        index, train = check_index(index, len(self)), self.split == "train"
        draws = Draws(self.task.seed if train else 0, "instructions", self.split, index)
        length = self.task.length
        one = self.task.draw(self.split, draws)
        prompt = encode(one.prompt)
        if draws.below(2):
            prompt = [USER_ID, *prompt, ASSISTANT_ID]
            for _ in range(draws.pick((0, 0, 0, 0, 0, 1)) if train else 0):
                turn = self.task.draw(self.split, draws)
                turns = [USER_ID, *encode(turn.prompt), ASSISTANT_ID, *encode(turn.answer), END_ID, *prompt]
                if len(turns) + len(one.answer) < length:
                    prompt = turns
        canvas = self.task.canvas
        if train:
            needed = len(one.answer) + 1 + draws.below(4)
            canvas = min(max(draws.pick(self.task.canvases), needed), length - len(prompt))
        return one, prompt, canvas

    def __getitem__(self, index: int) -> tuple[Int[Tensor, " length"], Bool[Tensor, " length"]]:
        one, prompt, canvas = self.instruction(index)
        response = encode(one.answer)
        if len(response) >= canvas or len(prompt) + canvas > self.task.length:
            raise ValueError(
                f"{one.prompt!r} with its answer {one.answer!r} does not fit {self.task.length} tokens with"
                f" {canvas} of them for the response; make length and canvas larger"
            )
        tokens = [*prompt, *response, *[END_ID] * (canvas - len(response))]
        maskable = [False] * len(prompt) + [True] * canvas
        rest = self.task.length - len(tokens)
        return torch.tensor(tokens + [PAD_ID] * rest), torch.tensor(maskable + [False] * rest)


class InstructionTask:
    """Instructions about numbers (see the module).

    A hash of the operands determines the split of an instruction; all turns of a chat are of the same split. The score
    is 1 if the response up to its end token is right, including its working, and 0 if not.

    Args:
        kinds: The kinds, joined by `+`; default: all but `sums` and `basic`, which `calculate` contains.
        length: Tokens per sequence, for prompt and response together.
        canvas: The number of masks for a response, outside training.
        seed: The seed of the training instructions.

    Raises:
        ValueError: If there is no such kind or a number is out of range; when an example is read, if it does not fit
            into `length` tokens.
    """

    name = "instructions"
    quality = "share of responses right"
    vocab_size = len(CHARACTERS) + len(SPECIAL)
    mask_id = MASK_ID
    end_id = END_ID
    pad_id = PAD_ID
    kinds: Mapping[str, Callable[[Draws], Instruction]] = KINDS
    canvases = _CANVASES

    def __init__(
        self, *, kinds: str | None = None, length: int = _LENGTH, canvas: int = _CANVAS, seed: int = 0
    ) -> None:
        self.seed = whole("seed", seed, 0)
        usual = (kind for kind in self.kinds if kind not in ("sums", "basic"))
        self.chosen = tuple(usual if kinds is None else kinds.split("+"))
        unknown = [kind for kind in self.chosen if kind not in self.kinds]
        if unknown:
            raise ValueError(f"unknown kinds {', '.join(map(repr, unknown))}; choose from {', '.join(self.kinds)}")
        self.canvas, self.length = whole("canvas", canvas, 1), whole("length", length, 1)

    def draw(self, split: str, draws: Draws) -> Instruction:
        """Draws an instruction of a split, with the given random numbers."""
        return draw_instruction(split, draws, self.chosen)

    def asked(self, prompt: str, answer: str) -> Instruction:
        """Returns the instruction that the text of a prompt and an answer make, for scoring."""
        return Instruction(prompt, answer, "split" if prompt.startswith("Find two") else "", "")

    def examples(self, split: str) -> InstructionExamples:
        """Returns the instructions of a split, `2**31` of them for training."""
        return InstructionExamples(self, check_split(split))

    def instructions(self, split: str, limit: int) -> list[Instruction]:
        """Returns the first `limit` instructions of a split, or as many as there are."""
        examples = self.examples(split)
        return [examples.instruction(index)[0] for index in range(min(limit, len(examples)))]

    def prompts(self, split: str, limit: int) -> Prompts:
        """Returns the first `limit` instructions of a split, with masks for each response."""
        answers, masked = stack(self.examples(split), limit)
        return Prompts.of(answers, masked, self.mask_id)

    def score(self, prompts: Prompts, tokens: Int[Tensor, "prompts length"]) -> Float[Tensor, " prompts"]:
        """Returns 1 for each response that is right, 0 for the others."""
        right = []
        for prompt, answer, filled in zip(prompts.tokens, prompts.answers, tokens, strict=True):
            masked = prompt == self.mask_id
            asked = (prompt == USER_ID).nonzero()
            last = prompt[int(asked[-1]) :] if len(asked) else prompt  # only the last turn of a chat is to be answered
            shown = last[last < len(CHARACTERS)]
            one = self.asked(_text(shown), _response(answer[masked]))
            right.append(one.right(_response(filled[masked])))
        return torch.tensor(right, dtype=torch.float64)

    def show(self, tokens: Int[Tensor, " length"]) -> str:
        """Returns the text without padding, with `□` for a mask and `<|...|>` for a special token."""
        names = (*CHARACTERS, *SPECIAL)
        names = [MASK_SIGN if index == MASK_ID else name for index, name in enumerate(names)]
        return "".join(names[token] for token in tokens.tolist() if token != PAD_ID)

    def save_tokenizer(self, folder: Path) -> None:
        """Writes the task's tokenizer into the folder of a model (see the function `save_tokenizer`)."""
        save_tokenizer(folder)


def _response(tokens: Tensor) -> str:
    ends = (tokens == END_ID).nonzero()
    return _text(tokens[: int(ends[0])] if len(ends) else tokens)


def _text(tokens: Tensor) -> str:
    return "".join(CHARACTERS[token] if token < len(CHARACTERS) else "\0" for token in tokens.tolist())
