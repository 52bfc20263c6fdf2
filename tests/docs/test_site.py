"""The documentation site builds without a warning, and its API pages show arguments as lists."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    site = tmp_path / "site"
    made = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    for page in ROOT.glob("docs/*.md"):
        assert (site / f"{page.stem}.html").is_file(), f"{page.name} is not part of the site"
    api = (site / "api" / "fpsim.html").read_text()
    assert "<li><code>x</code>: real array" in api.replace("<p>", "").replace("\n", "")
    outside = [page.name for page in site.glob("*.html") if 'href="../' in page.read_text()]
    assert not outside, f"links that leave the site: {outside}"
