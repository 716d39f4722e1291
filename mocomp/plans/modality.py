"""Where a token's modality comes from: its id, an input of the model, its position, or the tower that a layer belongs to.

Whatever it is, a token has an integer (`keys`), and one table over that integer tells the modality; so the graph holds
one lookup, and it means the same in a prompt and in decoding with a past.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from mocomp.errors import Usage

Ranges = tuple[tuple[int, int], ...]
IDS, POSITION, TOWER = "input_ids", "position", "tower"
NOT_PER_TOKEN = ("attention_mask", "pixel_values", "inputs_embeds", TOWER)
"""What a SPEC may be tempted to name, and no input that holds an integer for each token."""
LARGEST = 1 << 24
"""Entries of the table at most; ids and positions beyond this are a slip of the keyboard."""
IN_CONFIG = {
    "image": ("image_token_id", "image_token_index"),
    "video": ("video_token_id", "video_token_index"),
    "audio": ("audio_token_id", "audio_token_index"),
}
"""The fields in which configs of transformers name the id that stands for a modality."""


@dataclass(frozen=True)
class Modality:
    """M named modalities; `key` is what tells them apart: `input_ids`, another input of the model, `position` or `tower`.

    `ranges` holds, per modality, closed ranges of the key; `towers`, per modality, a word that the names of its layers
    contain. What is in no range belongs to `otherwise`, or is an error of the runtime when that is empty.
    """

    names: tuple[str, ...]
    key: str
    ranges: tuple[Ranges, ...] = ()
    towers: tuple[str, ...] = ()
    otherwise: str = ""

    @property
    def per_token(self) -> bool:
        """Whether tokens of one layer may differ in modality."""
        return self.key != TOWER

    @property
    def input(self) -> str | None:
        """The input that carries the key, None when it is the position or the tower."""
        return None if self.key in (POSITION, TOWER) else self.key

    def check(self) -> None:
        """Raises ValueError for what `parse` does not make."""
        if self.otherwise not in ("", *self.names) or {len(self.ranges), len(self.towers)} - {len(self.names)}:
            raise ValueError(f"modalities {self.names} with {self.ranges}, {self.towers} and {self.otherwise!r}")
        if not all(0 <= start <= stop < LARGEST for ranges in self.ranges for start, stop in ranges):
            raise ValueError(f"ranges {self.ranges}")

    def table(self) -> torch.Tensor:
        """The modality [N] int64 of every key below N; keys from the last range on are like its last entry.

        A key without a modality has M there, which no table of M rows has, so that the lookup of it fails.
        """
        rest = self.names.index(self.otherwise) if self.otherwise else len(self.names)
        table = torch.full((self.values() + 1,), rest)
        for modality, ranges in enumerate(self.ranges):
            for start, stop in ranges:
                table[start : stop + 1] = modality
        return table

    def values(self) -> int:
        """How many values the key takes, as an input of its own: up to the last that any range names."""
        return max((stop for r in self.ranges for _, stop in r), default=0) + 1

    def of(self, keys: torch.Tensor) -> torch.Tensor:
        """keys [...] int64 -> modalities [...] int64."""
        table = self.table().to(keys.device)
        return table[keys.clamp(0, len(table) - 1)]

    def of_layer(self, name: str) -> str:
        """The modality of a layer, by its tower. Raises Usage when it is in no tower."""
        for modality, tower in zip(self.names, self.towers, strict=True):
            if tower and tower in name:
                return modality
        if self.otherwise:
            return self.otherwise
        raise Usage(f"layer {name} is in no tower of --modality", fix="Name its tower, or say --otherwise MODALITY.")


def parse(names: list[str], given: list[str], otherwise: str | None, config: Any = None) -> Modality:
    """A Modality from `NAME=SPEC` texts, one for each of `names` that is not the rest.

    SPEC is `A..B[,C..D]` (token ids), `config` (token ids as config.json has them), `INPUT:A..B` (values of an input),
    `position:A..B`, or `tower:WORD`. `otherwise` names the modality of the rest, or is `error`; when it is not said and
    one modality has no SPEC, the rest is that one's. Raises Usage for everything that cannot be meant.
    """
    specs = _by_name(names, given)
    keys, ranges, towers = set(), [], []
    for name in names:
        key, found, tower = _spec(name, specs[name], config) if name in specs else ("", (), "")
        keys |= {key} - {""}
        ranges.append(found)
        towers.append(tower)
    if len(keys) != 1:
        known = ", ".join(sorted(keys)) or "nothing"
        raise Usage(f"--modality has to tell all modalities by one thing, and this tells them by {known}")
    modality = Modality(tuple(names), keys.pop(), tuple(ranges), tuple(towers), _rest(names, specs, otherwise))
    _refuse_overlaps(modality)
    _refuse_beyond(modality, config)
    return modality


def extended(old: Modality | str, names: list[str], given: list[str], config: Any = None) -> Modality:
    """`old` with modalities `names` more, each with a SPEC as `parse` has it; `old` is a name where all tokens were alike.

    Raises Usage for what cannot be meant, and for tokens that had a range before.
    """
    specs = _by_name(names, given)
    without = [name for name in names if name not in specs]
    if without:
        raise Usage(f"which tokens are {without[0]}? It has no --modality", fix=f"Say --modality {without[0]}=A..B")
    found = [_spec(name, specs[name], config) for name in names]
    if isinstance(old, str):
        old = Modality((old,), found[0][0], ((),), ("",), old)
    keys = {old.key, *(key for key, _, _ in found)}
    if keys != {old.key} or old.key == TOWER:
        raise Usage(f"--modality has to tell all modalities by one thing, no tower, and this is by {', '.join(sorted(keys))}")
    ranges = (*old.ranges, *(spec[1] for spec in found))
    made = Modality((*old.names, *names), old.key, ranges, (*old.towers, *("" for _ in names)), old.otherwise)
    _refuse_overlaps(made)
    _refuse_beyond(made, config)
    return made


def _by_name(names: list[str], given: list[str]) -> dict[str, str]:
    specs: dict[str, str] = {}
    for text in given:
        name, equals, spec = text.partition("=")
        if not equals or not spec:
            raise Usage(f"--modality {text!r} is not NAME=SPEC", fix="For example --modality image=200..255")
        if name not in names:
            raise Usage(f"--modality names {name!r}, but the groups are {', '.join(names)}")
        if name in specs:
            raise Usage(f"--modality names {name!r} twice", fix="Several ranges of one modality: image=4..99,200..255")
        specs[name] = spec
    return specs


def _rest(names: list[str], specs: dict[str, str], otherwise: str | None) -> str:
    left = [name for name in names if name not in specs]
    if otherwise is not None:
        if otherwise not in ("error", *names):
            raise Usage(f"--otherwise names {otherwise!r}, but the groups are {', '.join(names)}")
        without = [name for name in left if name != otherwise]
        if without:
            raise Usage(f"no token would be {without[0]}: it has no --modality, and --otherwise is {otherwise}")
        return "" if otherwise == "error" else otherwise
    if len(left) != 1:
        which = ", ".join(left) or "no group"
        raise Usage(
            f"which modality has a token that is in no range? {which} has no --modality",
            fix="Say --otherwise NAME, or --otherwise error to refuse such tokens.",
        )
    return left[0]


def _spec(name: str, spec: str, config: Any) -> tuple[str, Ranges, str]:
    """(key, ranges, tower) of one SPEC."""
    if spec == "config":
        return IDS, _from_config(name, config), ""
    key, colon, rest = spec.rpartition(":")
    if key == TOWER and rest:
        return TOWER, (), rest
    if key in NOT_PER_TOKEN or (colon and not re.fullmatch(r"[A-Za-z_]\w*", key)):
        raise Usage(f"--modality {name}={spec}: {key!r} is no name of an input that holds an integer for each token")
    return key or IDS, tuple(_range(name, part) for part in rest.split(",")), ""


def _range(name: str, text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", text)
    if match is None:
        raise Usage(f"--modality {name}: {text!r} is not a range such as 200..255", fix="Both ends belong to it.")
    start = int(match[1])
    stop = start if match[2] is None else int(match[2])
    if stop < start or stop >= LARGEST:
        raise Usage(f"--modality {name}: {text} is no range" if stop < start else f"--modality {name}: {text} is too far")
    return start, stop


def _from_config(name: str, config: Any) -> Ranges:
    """Chameleon lists its image tokens in a map; others have the one id that stands for a patch."""
    words = (getattr(config, "vocabulary_map", None) or {}) if name == "image" else {}
    ids = sorted(i for word, i in words.items() if word.startswith("IMGIMG"))
    ids = ids or sorted({i for field in IN_CONFIG.get(name, ()) if isinstance(i := getattr(config, field, None), int)})
    if not ids:
        raise Usage(f"config.json does not say which tokens are {name}", fix=f"Say it: --modality {name}=A..B")
    ranges: list[tuple[int, int]] = []
    for i in ids:
        if ranges and i == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], i)
        else:
            ranges.append((i, i))
    return tuple(ranges)


def _refuse_overlaps(modality: Modality) -> None:
    for i, (first, tower) in enumerate(zip(modality.names, modality.towers, strict=True)):
        for second, other in zip(modality.names[i + 1 :], modality.towers[i + 1 :], strict=True):
            if tower and other and (tower in other or other in tower):
                raise Usage(f"--modality: a layer of {max(tower, other, key=len)} is both {first} and {second}")
    taken = sorted((start, stop, n) for n, r in zip(modality.names, modality.ranges, strict=True) for start, stop in r)
    for (_, stop, first), (start, _, second) in pairwise(taken):
        if start <= stop:
            raise Usage(
                f"--modality: {start} is both {first} and {second}" if first != second else f"{first} has {start} twice"
            )


def _refuse_beyond(modality: Modality, config: Any) -> None:
    """A range beyond the vocabulary matches nothing, which nobody means."""
    text_config = config.get_text_config() if config is not None else None
    size = getattr(text_config, "vocab_size", None)
    last = max((stop for r in modality.ranges for _, stop in r), default=0)
    if modality.key == IDS and size is not None and last >= size:
        raise Usage(f"--modality: token id {last} is beyond the vocabulary of {size}")
