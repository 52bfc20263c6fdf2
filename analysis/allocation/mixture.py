"""A scheme made of several: each layer as one of them says. And the experiment file that measures such schemes."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from analysis.scheme import Rule, Scheme

if TYPE_CHECKING:
    from analysis.scheme import Arithmetic


def mixture(
    name: str,
    choice: Mapping[str, str],
    layers: Mapping[str, str],
    candidates: Mapping[str, Scheme],
    rest: str = "bf16",
) -> Scheme:
    """The scheme in which layer `path` is treated as scheme `candidates[choice[path]]` treats it.

    layers : path -> kind. One rule per treatment: a regular expression of exact paths, and "*" for the most frequent.
    Raises ValueError for candidates that quantize attention, or that disagree on the arithmetic.
    """
    groups: dict[Rule, list[str]] = {}
    for path, kind in layers.items():
        rule = candidates[choice[path]].rule_for(path, kind)
        body = Rule() if rule is None or not rule.quantizes else replace(rule, pattern="*", kinds=Rule().kinds)
        groups.setdefault(body, []).append(path)
    used = [candidates[one] for one in dict.fromkeys(choice.values())]
    for one in used:
        if one.attention is not None:
            raise ValueError(f"candidate {one.name!r} quantizes attention, which no layer stands for; leave that out")
    kinds: set[Arithmetic] = {one.arithmetic for one in used if any(rule.quantizes for rule in one.rules)}
    if len(kinds) > 1:
        raise ValueError("candidates of one scheme are all exact or all quantize; these are of both")
    ordered = sorted(groups.items(), key=lambda item: len(item[1]))
    rules = [replace(body, pattern=_pattern(paths)) for body, paths in ordered[:-1]] + [ordered[-1][0]]
    return Scheme(name=name, rules=tuple(rules), arithmetic=kinds.pop() if kinds else "quantize", rest=rest)


def _pattern(paths: Sequence[str]) -> str:
    if len(paths) == 1 and not set(paths[0]) & set("*?["):
        return paths[0]
    return f"re:({'|'.join(re.escape(path) for path in paths)})"


def experiment_text(
    name: str,
    pipeline: str,
    schemes: Sequence[Scheme],
    devices: Sequence[str],
    mode: str = "graph",
    method: str = "rtn",
    description: str = "",
) -> str:
    """An experiment file (TOML, see `analysis.experiment`) that makes pictures in each of `schemes` and prices them.

    Schemes that are presets are named, the others are written out.
    """
    from analysis.scheme import SCHEMES, scheme

    text = functools.partial(json.dumps, ensure_ascii=False)  # strings, numbers and lists of JSON are TOML too
    lines = [f"name = {text(name)}"]
    if description:
        lines.append(f"description = {text(description)}")
    lines += ["", "[quality]", f"pipeline = {text(pipeline)}", "", "[[configuration]]"]
    lines += [f"scheme = {text([one.name for one in schemes])}", f"method = {text(method)}"]
    lines += ["", "[cost]", f"devices = {text(list(devices))}", f"models = {text([pipeline])}", f"mode = {text(mode)}"]
    lines.append('estimator = "auto"')
    for one in schemes:
        base = one.name.partition("+")[0]
        if base in SCHEMES and scheme(one.name) == one:
            continue
        head, _, rules = one.to_toml().partition("\n\n")
        table = f"schemes.{text(one.name)}"
        own = [line for line in head.splitlines() if not line.startswith("name = ")]
        lines += ["", f"[{table}]", *own, "", rules.replace("[[rules]]", f"[[{table}.rules]]").rstrip()]
    return "\n".join(lines) + "\n"
