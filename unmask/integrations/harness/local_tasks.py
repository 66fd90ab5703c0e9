"""Tasks of lm-evaluation-harness on local JSONL files: functions that read the files, and that score answers.

The YAML files beside this module name these functions. The prompts follow the harness's tasks of the same names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from datasets import Dataset
from lm_eval.tasks.hendrycks_math.utils import is_equiv, last_boxed_only_string, remove_boxed

from ...errors import DataError
from ...evaluation.sandbox import run_program
from ...files.jsonl import read_jsonl as read_values
from ...tasks.instructions import Instruction, InstructionTask

_NUMBER = r"-?\$?\d[\d,]*(?:\.\d+)?"


def read_jsonl(path: Path, fields: Sequence[str], encoding: str | None = None) -> list[dict[str, Any]]:
    """Reads a file of JSON objects, one per line; blank lines are skipped.

    Args:
        path: The file.
        fields: The fields that are kept, which each object must have.
        encoding: See `unmask.files.reading.read_text`.

    Raises:
        DataError: If there is no such file, it is empty, or a line is not an object with these fields.
    """
    if not path.is_file():
        raise DataError(f"there is no {path}; the folder given as --data must hold it")
    rows = []
    for where, row in read_values(path, "the documents", encoding):
        missing = [name for name in fields if not isinstance(row, dict) or name not in row]
        if missing:
            raise DataError(f"{where}: there is no {', '.join(missing)}")
        rows.append({name: row[name] for name in fields})
    if not rows:
        raise DataError(f"{path} is empty")
    return rows


def gsm8k(data: str, encoding: str | None = None, **_: Any) -> dict[str, Dataset]:
    """Reads `gsm8k_test.jsonl`, and worked examples from `gsm8k_train.jsonl`."""
    fields = ("question", "answer")
    return {
        "train": Dataset.from_list(read_jsonl(Path(data) / "gsm8k_train.jsonl", fields, encoding)[:64]),
        "test": Dataset.from_list(read_jsonl(Path(data) / "gsm8k_test.jsonl", fields, encoding)),
    }


def math500(data: str, encoding: str | None = None, **_: Any) -> dict[str, Dataset]:
    """Reads `math500.jsonl`, in which each answer must have its final result in a box."""
    path = Path(data) / "math500.jsonl"
    rows = read_jsonl(path, ("question", "answer"), encoding)
    for number, row in enumerate(rows, 1):
        if last_boxed_only_string(row["answer"]) is None:
            raise DataError(rf"{path}: answer {number} has no \boxed{{}}")
    return {"test": Dataset.from_list(rows)}


def humaneval(data: str, encoding: str | None = None, **_: Any) -> dict[str, Dataset]:
    """Reads `humaneval.jsonl`."""
    fields = ("task_id", "prompt", "entry_point", "test")
    return {"test": Dataset.from_list(read_jsonl(Path(data) / "humaneval.jsonl", fields, encoding))}


def mbpp(data: str, encoding: str | None = None, **_: Any) -> dict[str, Dataset]:
    """Reads `mbpp.jsonl`: problems 2 to 4 are worked examples, and problems 11 to 510 are the test."""
    fields = ("task_id", "text", "code", "test_setup_code", "test_list")
    path = Path(data) / "mbpp.jsonl"
    rows = read_jsonl(path, fields, encoding)
    parts = {"prompt": [row for row in rows if 2 <= row["task_id"] <= 4]}
    parts["test"] = [row for row in rows if 11 <= row["task_id"] <= 510]
    for name, part in parts.items():
        if not part:
            raise DataError(f"{path} has no problem of the {name} split: task_id 2 to 4, and 11 to 510")
    return {name: Dataset.from_list(part) for name, part in parts.items()}


def instructions(**_: Any) -> dict[str, Dataset]:
    """Makes the first 1,000 instructions of kind `sums` of the test split, which the embedded language model can do."""
    return {"test": Dataset.from_list([vars(one) for one in InstructionTask(kinds="sums").instructions("test", 1_000)])}


def score_gsm8k(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Compares the number after `####` (strict) and the last number (flexible) with the right answer."""
    wanted = _number(doc["answer"].split("####")[-1])
    marked = re.findall(rf"####\s*({_NUMBER})", results[0])
    anywhere = re.findall(_NUMBER, results[0])
    return {
        "exact_match": float(bool(marked) and _number(marked[0]) == wanted),
        "flexible_match": float(bool(anywhere) and _number(anywhere[-1]) == wanted),
    }


def score_math(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Compares the last box of an answer with that of the solution, after the harness's normalisation of LaTeX."""
    answered = last_boxed_only_string(results[0])
    if answered is None or not answered.endswith("}"):
        return {"exact_match": 0.0}
    return {"exact_match": float(is_equiv(remove_boxed(answered), _boxed(doc["answer"])))}


def score_humaneval(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Runs the problem's tests on the function, which the answer completes or defines anew."""
    code = _code(results[0])
    between = "\n" if f"def {doc['entry_point']}(" in code else ""
    program = f"{doc['prompt']}{between}{code}\n\n{doc['test']}\n\ncheck({doc['entry_point']})\n"
    return {"pass_at_1": float(run_program(program).passed)}


def score_mbpp(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Runs the problem's assertions on the answer."""
    parts = [doc["test_setup_code"], _code(results[0]), *doc["test_list"]]
    return {"pass_at_1": float(run_program("\n".join(parts) + "\n").passed)}


def score_instruction(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Scores 1 if the answer is right, including its working, and 0 if not."""
    return {"exact_match": float(Instruction(**doc).right(results[0]))}


def _code(text: str) -> str:
    """Returns the content of the first fenced code block, or the whole text if there is none."""
    fenced = re.search(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", text, re.DOTALL)
    return text if fenced is None else fenced.group(1)


def _boxed(solution: str) -> str:
    box = last_boxed_only_string(solution)
    assert box is not None
    return remove_boxed(box)


def _number(text: str) -> Decimal | str:
    plain = text.strip().replace(",", "").replace("$", "")
    try:
        return Decimal(plain)
    except InvalidOperation:
        return plain
