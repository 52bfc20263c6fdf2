"""Writes README's result table and figures from a finished run of the default experiment.

    fpsim whatif && python docs/update_readme.py runs/default-KEY

Numbers are copied, never typed: the block between the two `results` markers of README.md is replaced, and the run's
grid and Pareto plots go to docs/images/.
"""

import json
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARKERS = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)


def main(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    quality = {(row["configuration"], row["metric"]): row for row in results["quality"]}
    experiment = results["experiment"]
    devices, models = experiment["cost"]["devices"], experiment["cost"]["models"]
    full_size = models[-1]
    costs = {(row["configuration"], row["device"]): row for row in results["costs"] if row["model"] == full_size}

    def measured(label: str, metric: str, scale: float = 1.0, digits: int = 1) -> str:
        row = quality.get((label, metric))
        if row is None or row["value"] is None:
            return ""
        text = f"{row['value'] * scale:.{digits}f}"
        if row["low"] is None:
            return text
        return f"{text} ({row['low'] * scale:.{digits}f} to {row['high'] * scale:.{digits}f})"

    def projected(label: str, device: str) -> str:
        row = costs.get((label, device))
        if row is None:
            return ""
        if row["speedup"] is None:
            return row["support"]
        return f"{row['speedup']:.2f}x" + ("*" if row["support"] == "fallback" else "")

    heads = ["configuration", "prompts obeyed, %", "PSNR to full precision, dB", *devices]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in results["rows"]:
        label = row["label"]
        cells = [label, measured(label, "correct", 100), measured(label, "psnr")]
        lines.append(f"| {' | '.join([*cells, *(projected(label, d) for d in devices)])} |")
    prompts = experiment["quality"]["prompts"]
    note = (
        f"Measured on `{experiment['quality']['pipeline']}`, {prompts} held-out prompts of one to four objects, "
        f"{experiment['quality']['steps']} steps, 95 % bootstrap intervals over prompts (rows on an engine: fewer "
        f"prompts, see the page). The device columns are projected ({experiment['cost']['estimator']} model, denoiser "
        f"only), not measured: speed-up of {full_size} at full size over {experiment['cost']['baseline']} on the same "
        f"device, more is faster (* the device lacks the format and runs the fallback that the page names). "
        f"{' '.join(warning[0].upper() + warning[1:] + '.' for warning in results['warnings'][:1])} "
        f"Run {results['key'][:12]}, {results['date'][:10]}."
    )

    def best(device: str) -> float:
        return max(row["speedup"] or 0.0 for (_, name), row in costs.items() if name == device)

    # One front is enough here: that of the device on which the choice buys most.
    telling = max(devices, key=best)
    pictures = ["grid.png", *[name for name in results["figures"] if full_size in name and telling in name]]
    images = ROOT / "docs" / "images"
    images.mkdir(parents=True, exist_ok=True)
    block = "\n".join(lines) + f"\n\n{note}\n\n"
    for name in pictures:
        shutil.copyfile(run / name, images / name)
        block += f"![{name.removesuffix('.png')}](docs/images/{name})\n\n"
    readme = ROOT / "README.md"
    text, found = MARKERS.subn(lambda m: m[1] + block + m[2], readme.read_text())
    if found != 1:
        sys.exit("README.md must hold the markers <!-- results --> and <!-- /results --> once")
    readme.write_text(text)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "results.json").is_file():
        sys.exit("usage: python docs/update_readme.py RUN_DIRECTORY (a finished run, with results.json)")
    main(Path(sys.argv[1]))
