"""The folder of a run: recipe, checkpoints, metrics.

Files are whole or not there, so that a kill costs the epochs since the last checkpoint, no more.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch

from certify.core.atomic import write_whole
from certify.core.errors import BadInput, CannotWrite, UsageError, one_line

_RECIPE, _LAST, _METRICS = "recipe.json", "last.pt", "metrics.jsonl"


class Store:
    """A run's folder, new or begun before with the same recipe and the same data.

    Raises:
        UsageError: the folder holds another run, or other things.
        CannotWrite: it cannot be made.
    """

    def __init__(self, folder: Path, recipe: dict[str, Any]) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            strangers = [p.name for p in folder.iterdir() if not p.name.startswith(".")]
        except OSError as problem:
            raise CannotWrite(f"{one_line(folder, 100)}: cannot be made: "
                              f"{one_line(problem.strerror, 80)}") from None
        text = json.dumps(recipe, indent=1, sort_keys=True) + "\n"
        if (folder / _RECIPE).exists():
            self._compare(recipe)
        elif strangers:
            raise UsageError(f"{one_line(folder, 80)} holds other things, such as "
                             f"{one_line(sorted(strangers)[0], 40)}; choose a new or empty folder")
        else:
            write_whole(folder / _RECIPE, text.encode())

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Write a checkpoint."""
        write_state(self.folder / name, state)

    def last(self) -> dict[str, Any] | None:
        """The newest checkpoint, or None.

        Raises:
            BadInput: it is damaged.
        """
        path = self.folder / _LAST
        if not path.exists():
            return None
        try:
            found: dict[str, Any] = torch.load(path, weights_only=True)
        except Exception as problem:
            raise BadInput(f"{one_line(path, 100)}: damaged: {one_line(problem, 100)}; remove it "
                           "to begin anew") from None
        return found

    def checkpoint(self, state: dict[str, Any], lines: list[dict[str, Any]]) -> None:
        """Write metrics first, then the checkpoint that counts on them."""
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_whole(self.folder / _METRICS, text.encode())
        self.save(_LAST, state)

    def metrics(self, epochs: int) -> list[dict[str, Any]]:
        """Lines of the first ``epochs`` epochs."""
        path = self.folder / _METRICS
        if not path.exists():
            return []
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [line for line in lines if line["epoch"] < epochs]

    def _compare(self, recipe: dict[str, Any]) -> None:
        try:
            there = json.loads((self.folder / _RECIPE).read_bytes())
        except (OSError, ValueError) as problem:
            raise BadInput(f"{one_line(self.folder / _RECIPE, 100)}: cannot be read: "
                           f"{one_line(problem, 80)}") from None
        odd = [f"{key} was {there.get(key)!r} and is now {value!r}"
               for key, value in json.loads(json.dumps(recipe)).items() if there.get(key) != value]
        if odd:
            raise UsageError(f"{one_line(self.folder, 80)} was begun otherwise: "
                             f"{one_line('; '.join(odd), 150)}. Choose another folder")


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values as torch does.

    Raises:
        CannotWrite: the file system refused.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_whole(path, buffer.getvalue())
