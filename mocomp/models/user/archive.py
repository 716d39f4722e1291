"""What a .pt2 archive holds, checked in full before torch.export reads it: some of it would run code.

torch 2.13 unpickles without restraint weights and constants that it stored as pickles, example inputs where reading them with
restraint fails, and the files of older versions; it loads compiled libraries; it evaluates sizes as Python expressions; and it
looks operators up by any dotted name below `torch`. So every such string is held to what an export writes, and the rest is
refused. All is read through torch's own reader of archives, so that what is checked is what is loaded.
"""

from __future__ import annotations

import ast
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export.pt2_archive._package import PT2ArchiveReader

from mocomp.errors import BadInput

LARGEST_JSON = 1 << 28
KNOWN = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)|models/[\w-]+\.json|extra/[\w./-]+"
    r"|data/(weights|constants)/([\w-]+_config\.json|(weight|tensor)_\d+)|data/sample_inputs/[\w-]+\.pt"
)
"""The files of an archive that holds tensors and graphs alone."""
OPERATORS = re.compile(
    r"torch\.ops\.((?!aten\.from_file|aten\.save)(aten|prims|mocomp|torchvision|transformers)\.\w+(\.\w+)?"
    r"|higher_order\.(wrap_with_set_grad_enabled|wrap_with_autocast|cond|while_loop|scan|associative_scan|map_impl))"
    r"|_operator\.(i?(add|sub|mul|floordiv|truediv|mod|pow)|neg|pos|abs|index|lt|le|gt|ge|eq|ne|and_|or_|not_|getitem)"
    r"|math\.(ceil|floor|trunc|sqrt)"
    r"|torch\.sym_\w+|torch\._sym_\w+|torch\._C\._set_grad_enabled"
)
TAKES_TEXT = re.compile(
    r"torch\.ops\.(mocomp\.\w+|aten\.(gelu|div|divide|einsum|meshgrid|pad|searchsorted|bucketize|scatter|scatter_reduce|index_reduce"
    r"|linalg_\w+)_?)(\.\w+)?"
)
"""Operators that are given text, such as an equation: to others it may be the name of a file."""
WORD = re.compile(r"[\w.@$\-\[\]]*")
SYMBOL = re.compile(r"_?[a-z]{1,3}\d+")
SYMPY = re.compile(
    "Symbol|Integer|Float|Rational|Mul|Add|Pow|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|Max|Min|floor|ceiling|Eq|Ne|Ge|Gt|Le|Lt"
    "|And|Or|Not|IntTrueDiv|FloatTrueDiv|ToFloat|TruncToInt|Where|ModularIndexing|PowByNatural|FloatPow|Equality|Unequality"
    "|GreaterThan|StrictGreaterThan|LessThan|StrictLessThan|oo|int_oo|NegativeInfinity|Infinity"
)
PARTS = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp, ast.UnaryOp, ast.Add, ast.Sub, ast.Mult,
    ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.USub, ast.UAdd,
)  # fmt: skip
FIX = "Save it again with torch.export.save of this version, of a model whose inputs and weights are plain tensors."


def refuse_unsafe(path: Path) -> None:
    """Raises BadInput for an archive that is damaged, or that holds anything but graphs and plain tensors."""
    try:
        reader = PT2ArchiveReader(str(path))
        names = reader.get_file_names()
    except Exception as error:
        reason = str(error).splitlines()[0].partition(". ")[0][:200]
        raise BadInput(f"no archive of torch.export: {reason}", where=str(path), fix=FIX) from error
    try:
        for name in names:
            _check_file(reader, name, path.stat().st_size)
    except BadInput as error:
        raise BadInput(error.what, where=str(path), fix=FIX) from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, RuntimeError) as error:
        raise BadInput(f"damaged: {type(error).__name__}: {str(error)[:200]}", where=str(path), fix=FIX) from error


def _check_file(reader: PT2ArchiveReader, name: str, limit: int) -> None:
    if not KNOWN.fullmatch(name) or ".." in name:
        raise BadInput(f"it holds {name[:80]!r}, which is no graph and no plain tensor, and loading it may run code")
    size = reader.archive_file.get_record_size(name)
    if size > limit or (name.endswith(".json") and size > LARGEST_JSON):
        raise BadInput(f"{name} is said to have {size:,} bytes, and the archive {limit:,}")
    if name.startswith("data/sample_inputs/"):
        _check_pickle(name, reader.read_bytes(name))
    elif name.startswith("models/"):
        _check_graph(json.loads(reader.read_string(name)))
    elif name.endswith("_config.json"):
        _check_tensors(reader, name.rpartition("/")[0], json.loads(reader.read_string(name))["config"])


def _check_pickle(name: str, data: bytes) -> None:
    """Example inputs are pickled; they are let through where torch reads them as nothing but tensors in containers."""
    if not data:
        return
    try:
        torch.load(io.BytesIO(data), weights_only=True)  # noqa: TID251 - which makes tensors, and calls nothing
    except Exception as error:
        raise BadInput(f"{name} holds other objects than tensors, and loading them may run code") from error


def _check_tensors(reader: PT2ArchiveReader, folder: str, config: dict[str, Any]) -> None:
    for name, told in config.items():
        file = str(told["path_name"])
        if told["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", file):
            raise BadInput(f"tensor {name[:80]} is stored as a pickle, which runs code when it is loaded")
        sizes = [size.get("as_int") for size in told["tensor_meta"]["sizes"]]
        if not all(isinstance(size, int) and size >= 0 for size in sizes):
            raise BadInput(f"tensor {name[:80]} has no sizes")
        if not reader.archive_file.get_record_size(f"{folder}/{file}") and 0 not in sizes:
            raise BadInput(f"tensor {name[:80]} is said to be {sizes}, and is empty")


def _check_graph(graph: Any) -> None:
    _refuse_text(graph)
    for key, value in _strings(graph):
        if key in ("target", "as_operator") and not (OPERATORS.fullmatch(value) or _is_weight(value)):
            raise BadInput(f"its graph calls {value[:80]!r}, which is no operator that is known")
        if key == "expr_str":
            _check_expression(value)
        if key in ("name", "forward_arg_names", "fqn") and not WORD.fullmatch(value):
            raise BadInput(f"a name in its graph is {value[:80]!r}")
        if key in ("class_fqn", "as_custom_obj"):
            raise BadInput("its graph has objects of classes of its own")
        if key in ("in_spec", "out_spec") and ("__enum__" in value or "defaultdict" in value):
            raise BadInput("its inputs or outputs are in containers that are made by code it names")


def _refuse_text(node: Any) -> None:
    """Raises BadInput where a node, or one in a graph within, gives text to an operator that is not known to want any."""
    if isinstance(node, list):
        for part in node:
            _refuse_text(part)
        return
    if not isinstance(node, dict):
        return
    target = node.get("target")
    takes_text = not isinstance(target, str) or TAKES_TEXT.fullmatch(target)
    if not takes_text and any(key in ("as_string", "as_strings") for key, _ in _strings(node.get("inputs", []))):
        raise BadInput(f"its graph gives text to {str(target)[:80]!r}")
    for part in node.values():
        _refuse_text(part)


def _is_weight(value: str) -> bool:
    """Whether a target is the name of a tensor, as signatures have it, and nothing that would be looked up."""
    return bool(re.fullmatch(r"[\w.]*", value)) and not value.startswith(("torch", "_operator", "math", "#"))


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Each text with the key that it is under; notes on where code came from are left out, which nothing reads."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part, key)
    elif isinstance(value, dict):
        for name, part in value.items():
            if name != "metadata":
                yield from _strings(part, name)


def _check_expression(text: str) -> None:
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, MemoryError) as error:
        raise BadInput(f"a size in its graph is {text[:80]!r}") from error
    for node in ast.walk(tree):
        strange = not isinstance(node, PARTS)
        strange |= isinstance(node, ast.Name) and not SYMPY.fullmatch(node.id) and not SYMBOL.fullmatch(node.id)
        strange |= isinstance(node, ast.Constant) and isinstance(node.value, str) and not re.fullmatch(r"-?[\w.]+", node.value)
        if strange:
            raise BadInput(f"a size in its graph is {text[:80]!r}, which is no sum or product of sizes")
