"""An artifact that is no model.onnx, opened by its target."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mocomp.bench.worker import Timed
from mocomp.registry import discover


class TargetSubject(Timed):
    """The artifact in `directory`, as its `target` opens it."""

    def __init__(self, request: dict[str, Any]):
        torch.set_num_threads(request["threads"])
        self.runner = discover("mocomp.targets", "Target")[request["target"]]().open(Path(request["directory"]))
        self.words = f"target {request['target']}"

    def ready(self, file: str) -> Callable[[], Callable[[], Any]]:
        """The arrays of `file` by their names."""
        with np.load(file, allow_pickle=False) as given:
            arrays = dict(given)
        return lambda: lambda: self.runner.run(arrays)
