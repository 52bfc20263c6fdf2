"""What a comparison with silicon found."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first output on which emulator and silicon disagree. Codes and results in hex."""

    inputs: str
    a: tuple[str, ...]
    b: tuple[str, ...]
    a_scale: tuple[str, ...] = ()
    b_scale: tuple[str, ...] = ()
    c: str
    emulated: str
    silicon: str
    ulps: int


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What comparing one instruction, or one kind of library GEMM, with this machine showed.

    engine, a, b, out, scale, block, k : the row of the engine's table.
    shape : of the instruction, or which shapes of a library.
    skipped : why nothing was compared.
    unmatched : library GEMMs whose bits no number of splits explains; they count as failures.
    """

    name: str
    engine: str
    a: str = ""
    b: str = ""
    out: str = ""
    scale: str | None = None
    block: int | None = None
    k: int | None = None
    shape: str = ""
    compared: int = 0
    differences: int = 0
    first: Difference | None = None
    unmatched: tuple[str, ...] = ()
    note: str = ""
    seconds: float = 0.0
    skipped: str | None = None

    @property
    def passed(self) -> bool:
        return not self.differences and not self.unmatched

    def __str__(self) -> str:
        if self.skipped:
            return f"{self.name}: not run, {self.skipped}"
        verdict = f"{self.differences:,} differ" if self.differences else "no difference"
        if self.unmatched:
            verdict += f", {len(self.unmatched)} shapes unmatched"
        return f"{self.name}: {self.compared:,} outputs, {verdict}, {self.seconds:.1f} s"
