"""The folder of architectures: names, parts, and no torch until something is built."""

import subprocess
import sys
from pathlib import Path

import pytest

import analysis.models
from analysis.models import MODELS, PARTS, Model, model, registry_name

EXPECTED = {
    "sd15", "sdxl-base", "pixart-sigma", "sd3-medium", "sd35-large", "flux1-dev", "dit-xl-2-256",
    "cogvideox-2b", "wan21-1.3b", "wan21-14b", "hunyuanvideo",
}  # fmt: skip


def test_the_registry_is_the_folder():
    folder = Path(analysis.models.__file__).parent
    files = {registry_name(p.stem) for p in folder.glob("*.py") if not p.stem.startswith("_")}
    assert set(MODELS) == files
    assert files >= EXPECTED
    assert len(MODELS) == len(files)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_says_where_its_configuration_is_published(name):
    found = model(name)
    assert isinstance(found, Model)
    assert "20" in found.source
    assert set(found.parts) <= set(PARTS)
    assert "denoiser" in found.parts
    for parts in found.parts.values():
        for part in parts:
            assert part.cls.partition(".")[0] in ("diffusers", "transformers")
            assert part.example_inputs(found.size(tokens=part.tokens))


def test_names_are_forgiving_in_case_and_strict_otherwise():
    assert model("SDXL-base") is model("sdxl-base")
    with pytest.raises(ValueError, match="unknown model 'sdxl'; did you mean 'sdxl-base'"):
        model("sdxl")


def test_listing_and_describing_needs_no_torch():
    code = (
        "import sys; from analysis.models import MODELS, model;"
        "[p.example_inputs(model(n).size()) for n in MODELS for p in model(n).part()];"
        "sys.exit(any(name in sys.modules for name in ('torch', 'diffusers', 'numba')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
