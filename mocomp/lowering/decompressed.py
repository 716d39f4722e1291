"""A checkpoint's weights as the package compressed-tensors itself unpacks them. It shares no code with what packs them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mocomp.errors import BadInput
from mocomp.quant.reading import quantisation_of
from mocomp.weights.checkpoint import Checkpoint

SCALE = ".weight_scale"


def tensors(directory: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of all that a float checkpoint would hold in place of this one."""
    yield from weights(directory)
    with Checkpoint(directory) as checkpoint:
        stems = {name.removesuffix(SCALE) for name in checkpoint.entries if name.endswith(SCALE)}
        for name in checkpoint.entries:
            if name.rpartition(".")[0] not in stems or name.endswith(".bias"):
                yield name, checkpoint.recipe(name).evaluate(checkpoint.read)


def weights(directory: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, weight [N, K] float32) of each quantised matrix. Raises BadInput for one that `quantization_config` leaves out."""
    with Checkpoint(directory) as checkpoint:
        config = quantisation_of(checkpoint.config)
        if config is None:
            return
        whole = _parsed(config)
        for stem in sorted(name.removesuffix(SCALE) for name in checkpoint.entries if name.endswith(SCALE)):
            own = [name for name in checkpoint.entries if name.startswith(f"{stem}.weight")]
            stored = {n.removeprefix(f"{stem}."): checkpoint.recipe(n).evaluate(checkpoint.read) for n in own}
            yield f"{stem}.weight", _decompressed(stem, stored, whole, directory)


def _decompressed(stem: str, stored: dict[str, Tensor], config: Any, directory: Path) -> Tensor:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.utils.match import is_match, match_targets

    module = torch.nn.Linear(1, 1, device="meta")
    schemes = {target: group for group in config.config_groups.values() for target in group.targets}
    matched = match_targets(stem, module, schemes)
    if not matched or is_match(stem, module, config.ignore or []):
        raise BadInput(f"{stem} is quantised, and quantization_config says it is not", where=str(directory))
    scheme = schemes[matched[0]]
    compressor: Any = BaseCompressor.get_value_from_registry(scheme.format or config.format)
    return compressor.decompress(stored, scheme)["weight"].to(torch.float32)


def _parsed(config: dict[str, Any]) -> Any:
    from compressed_tensors.quantization import QuantizationConfig

    return QuantizationConfig.model_validate(config)
