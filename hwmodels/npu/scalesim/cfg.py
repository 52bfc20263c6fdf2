"""The `.cfg` file of SCALE-Sim 3.0.0.

Nine of the thirteen configurations it ships do not parse in its own reader, because sections added later are missing.
Here a missing key takes the value SCALE-Sim's own class starts with, and `Config.assumed` names it; keys without a
sensible start (array, memories, dataflow) must be there.
"""

from __future__ import annotations

import configparser
from dataclasses import dataclass
from pathlib import Path

from ..._names import choose

DATAFLOWS = ("os", "ws", "is")
MODES = ("CALC", "USER")


@dataclass(frozen=True, kw_only=True)
class Config:
    """What SCALE-Sim reads; memories in kB of 1024 one-byte words, bandwidths in words per cycle.

    mode: "CALC" (bandwidth is estimated, reads never stall) or "USER".  bandwidth is that of the results only: reads
    move at ifmap_bandwidth and filter_bandwidth, the keys called *SRAMBankBandwidth.  assumed: keys filled in.
    """

    rows: int
    columns: int
    ifmap_kb: int
    filter_kb: int
    ofmap_kb: int
    dataflow: str
    mode: str = "CALC"
    run_name: str = "scale_run"
    bandwidth: int = 10
    ifmap_bandwidth: int = 10
    filter_bandwidth: int = 10
    assumed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key in ("rows", "columns", "ifmap_kb", "filter_kb", "ofmap_kb"):
            _positive("SCALE-Sim config", key, getattr(self, key))
        for key in ("bandwidth", "ifmap_bandwidth", "filter_bandwidth"):
            _positive("SCALE-Sim config", key, getattr(self, key))
        choose("dataflow", self.dataflow, DATAFLOWS)
        choose("InterfaceBandwidth", self.mode, MODES)


def _positive(where: str, key: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{where}: {key} is {value}; allowed: an integer of at least 1")
    return value


class _Reader:
    """One configuration being read; remembers which keys were missing and filled in."""

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self.parser = configparser.ConfigParser(interpolation=None)
        self.assumed: list[str] = []
        try:
            self.parser.read_string(text)
        except configparser.Error as error:
            raise ValueError(f"{file}: not a SCALE-Sim configuration: {' '.join(str(error).split())}") from error

    def text(self, section: str, key: str, default: str | None = None) -> str:
        found = self.parser.get(section, key, fallback=None)
        if found is not None:
            return found.strip()
        elsewhere = [name for name in self.parser.sections() if self.parser.has_option(name, key)]
        if elsewhere:
            raise ValueError(f"{self.file}: [{elsewhere[0]}] {key} is not read there; move it to [{section}]")
        if default is None:
            raise ValueError(f"{self.file}: [{section}] {key} is missing; it has no default")
        self.assumed.append(f"[{section}] {key} = {default}")
        return default

    def number(self, section: str, key: str, default: int | None = None, least: int = 1) -> int:
        text = self.text(section, key, None if default is None else str(default))
        try:
            value = int(text)
        except ValueError as error:
            raise ValueError(f"{self.file}: [{section}] {key} is {text!r}; allowed: an integer") from error
        if value < least:
            raise ValueError(f"{self.file}: [{section}] {key} is {value}; allowed: an integer of at least {least}")
        return value

    def off(self, section: str, key: str, why: str) -> None:
        """A switch that must be off, because what it turns on is not reproduced."""
        if self.text(section, key, "False").lower() in ("true", "yes", "on", "1"):
            raise ValueError(f"{self.file}: [{section}] {key} is on; {why}; set it to False")

    def one_of(self, section: str, key: str, allowed: tuple[str, ...], default: str | None = None) -> str:
        value = self.text(section, key, default)
        if value not in allowed:
            raise ValueError(f"{self.file}: [{section}] {key} is {value!r}; allowed: {', '.join(allowed)}")
        return value


def parse_config(text: str, file: str = "config") -> Config:
    """The configuration in a text.  ValueError names file, section, key and what is allowed there."""
    r = _Reader(text, file)
    array = "architecture_presets"
    mode = r.one_of("run_presets", "InterfaceBandwidth", MODES)
    values = {
        "rows": r.number(array, "ArrayHeight"),
        "columns": r.number(array, "ArrayWidth"),
        "ifmap_kb": r.number(array, "IfmapSramSzkB"),
        "filter_kb": r.number(array, "FilterSramSzkB"),
        "ofmap_kb": r.number(array, "OfmapSramSzkB"),
    }
    dataflow = r.one_of(array, "Dataflow", DATAFLOWS)
    run_name = r.text("general", "run_name", "scale_run")
    r.off("run_presets", "UseRamulatorTrace", "DRAM latencies replayed from a Ramulator trace are not reproduced")
    r.off("sparsity", "SparsitySupport", "sparse filters are not reproduced")
    bandwidths = {"bandwidth": 10}
    for operand in ("Ifmap", "Filter"):
        r.off("layout", f"{operand}CustomLayout", "bank conflicts of custom layouts are not reproduced")
        width = r.number("layout", f"{operand}SRAMBankBandwidth", 10)
        banks = r.number("layout", f"{operand}SRAMBankNum", 10 if width % 10 == 0 else 1)
        if mode == "USER" and width % banks:
            raise ValueError(
                f"{file}: [layout] {operand}SRAMBankNum is {banks}; allowed: a divisor of "
                f"{operand}SRAMBankBandwidth = {width}"
            )
        bandwidths[f"{operand.lower()}_bandwidth"] = width
    if mode == "USER":
        first = r.text(array, "Bandwidth").split(",")[0].strip()
        try:
            bandwidths["bandwidth"] = int(first)
        except ValueError as error:
            raise ValueError(f"{file}: [{array}] Bandwidth is {first!r}; allowed: integers") from error
    try:
        return Config(**values, **bandwidths, dataflow=dataflow, mode=mode, run_name=run_name, assumed=tuple(r.assumed))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def load_config(path: str | Path) -> Config:
    """Read a `.cfg` file; ValueError and OSError name it."""
    found = Path(path)
    return parse_config(found.read_text(encoding="utf-8"), found.name)
