"""Run directories: whole or absent, checked by hash, one owner at a time."""

import json
import os
import signal
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from analysis import store
from analysis.store import DamagedFile, RunDirectory

IDENTITY = "a" * 64


def pictures(seed: int = 0) -> store.Images:
    return np.random.default_rng(seed).random((2, 3, 8, 8), dtype=np.float32)


def directory(root: Path, key: str = "k" * 64) -> RunDirectory:
    return RunDirectory.open(root, name="test", key=key, manifest={"experiment": {"name": "test"}})


def test_pictures_come_back_bit_for_bit() -> None:
    images = pictures()
    images[0, 0, 0, :3] = [-0.0, np.float32(1e-45), 1.0]
    back = store.unpack_images(store.pack_images(images, IDENTITY), IDENTITY)
    np.testing.assert_array_equal(back.view(np.uint32), images.view(np.uint32))


def test_every_single_damaged_byte_is_found() -> None:
    data = store.pack_images(pictures()[:1, :, :4, :4], IDENTITY)
    (length,) = struct.unpack("<Q", data[:8])
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] ^= 0x10
        if 8 <= position < 8 + length and _equal_header(data, bytes(broken), length):
            continue  # white space of the header: the same header
        with pytest.raises(DamagedFile):
            store.unpack_images(bytes(broken), IDENTITY)


def _equal_header(a: bytes, b: bytes, length: int) -> bool:
    try:
        return json.loads(a[8 : 8 + length]) == json.loads(b[8 : 8 + length])
    except ValueError:
        return False


@pytest.mark.parametrize("keep", [0, 4, 8, 20, 300, -1])
def test_truncated_pictures_are_found(keep: int) -> None:
    with pytest.raises(DamagedFile):
        store.unpack_images(store.pack_images(pictures(), IDENTITY)[:keep], IDENTITY)


def test_pictures_of_another_batch_are_refused() -> None:
    with pytest.raises(DamagedFile, match="another batch"):
        store.unpack_images(store.pack_images(pictures(), IDENTITY), "b" * 64)


def test_json_round_trip_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    value = {"b": [1, 2.5, None], "a": "é"}
    store.write_json(path, value)
    assert store.read_json(path) == value
    assert json.loads(path.read_text()).items() >= value.items()  # readable without us
    path.write_text(path.read_text().replace("2.5", "2.6"))
    with pytest.raises(DamagedFile, match="does not match its hash"):
        store.read_json(path)
    path.write_text("{")
    with pytest.raises(DamagedFile, match="is damaged"):
        store.read_json(path)
    path.write_text("[]")
    with pytest.raises(DamagedFile, match="not a file that fpsim wrote"):
        store.read_json(path)
    deep = "[" * 400 + "]" * 400  # read without trouble, but a hash is taken of it
    texts = (
        "[" * 100_000,
        f'{{"sha256": "0", "a": {deep}}}',
        '{"sha256": "0", "a": NaN}',
        '{"sha256": "0", "a": 1e999}',
    )
    for text in (*texts, "\xff"):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(DamagedFile, match="is damaged"):
            store.read_json(path)
    store.discard_damaged(path)
    assert not path.exists()
    store.write_json(path, value)
    store.discard_damaged(path)
    assert store.read_json(path) == value


def test_digest_ignores_order_and_refuses_what_json_cannot_say() -> None:
    assert store.digest({"a": 1, "b": 2}) == store.digest({"b": 2, "a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.digest(float("nan"))


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    store.write_atomic(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def sealed(root: Path) -> Path:
    folder = root / "weights"
    (folder / "part").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "part" / "weights.safetensors").write_bytes(bytes(range(256)) * 40)
    store.seal(folder)
    return folder


def test_any_change_of_a_sealed_folder_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = sealed(tmp_path)
    assert store.is_sealed(folder)
    weights, seal = folder / "part" / "weights.safetensors", tmp_path / "weights.json"
    whole = weights.read_bytes()
    for position in (0, 5000, len(whole) - 1):
        broken = bytearray(whole)
        broken[position] ^= 1
        weights.write_bytes(bytes(broken))
        assert not store.is_sealed(folder)
        assert f"{weights} is damaged" in caplog.text
    for data in (whole[:-1], whole + b"\0", b""):
        weights.write_bytes(data)
        assert not store.is_sealed(folder)
    weights.unlink()
    assert not store.is_sealed(folder)
    weights.write_bytes(whole)
    assert store.is_sealed(folder)
    (folder / "more").write_text("")
    assert not store.is_sealed(folder)
    (folder / "more").unlink()
    seal.write_text(seal.read_text().replace("config", "konfig"))
    assert not store.is_sealed(folder)
    seal.unlink()
    assert not store.is_sealed(folder)


def test_an_output_is_whole_or_what_was_there_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.csv"
    store.write_output(path, "old\n")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left") as caught:
            store.write_output(path, "new\n")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match="No such directory") as caught:
        store.write_output(tmp_path / "nowhere" / "table.csv", "")
    assert caught.value.filename == str(tmp_path / "nowhere")


def test_links_and_pipes_are_written_to_and_not_replaced(tmp_path: Path) -> None:
    target, link, pipe = tmp_path / "target", tmp_path / "link", tmp_path / "pipe"
    target.write_text("old")
    link.symlink_to(target)
    store.write_output(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    store.write_output(pipe, "through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_files_are_as_readable_as_any_other(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        store.write_atomic(tmp_path / "file", b"")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_killed_while_writing_leaves_old_or_new(tmp_path: Path) -> None:
    path = tmp_path / "file"
    code = (
        "import sys; from pathlib import Path; from analysis.store import write_atomic\n"
        "path = Path(sys.argv[1]); print('ready', flush=True)\n"
        "while True:\n"
        "    for byte in b'ab': write_atomic(path, bytes([byte]) * 200_000)"
    )
    for delay in (0.05, 0.08, 0.11):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        if path.exists():
            assert path.read_bytes() in (b"a" * 200_000, b"b" * 200_000)
    assert path.exists()


def test_run_directory_keeps_and_finds_batches(tmp_path: Path) -> None:
    run = directory(tmp_path)
    assert run.path == tmp_path / "test-kkkkkkkkkkkk"
    assert run.load(IDENTITY) is None
    run.save(IDENTITY, pictures())
    found = directory(tmp_path).load(IDENTITY)
    assert found is not None
    np.testing.assert_array_equal(found, pictures())


def test_damaged_batch_says_which_file(tmp_path: Path) -> None:
    run = directory(tmp_path)
    run.save(IDENTITY, pictures())
    run.batch_path(IDENTITY).write_bytes(run.batch_path(IDENTITY).read_bytes()[:-1])
    with pytest.raises(DamagedFile, match=f"{IDENTITY}.safetensors is damaged"):
        run.load(IDENTITY)


def test_batches_are_adopted_from_a_run_beside_it_unless_damaged(tmp_path: Path) -> None:
    first, second = directory(tmp_path), directory(tmp_path, key="z" * 64)
    assert not second.adopt(IDENTITY)
    first.save(IDENTITY, pictures())
    good = first.batch_path(IDENTITY).read_bytes()
    first.batch_path(IDENTITY).write_bytes(good[:-4] + b"\0\0\0\1")
    assert not second.adopt(IDENTITY)
    first.batch_path(IDENTITY).write_bytes(good)
    assert second.adopt(IDENTITY)
    found = second.load(IDENTITY)
    assert found is not None
    np.testing.assert_array_equal(found, pictures())


@pytest.mark.parametrize("damage", ["edited", "cut", "nested", "gone"])
def test_a_manifest_that_is_damaged_or_lost_is_written_again(damage: str, tmp_path: Path) -> None:
    run = directory(tmp_path)
    run.save(IDENTITY, pictures())
    whole = run.manifest_path.read_bytes()
    texts = {"edited": whole.replace(b'"test"', b'"tess"'), "cut": whole[:40], "nested": b"[" * 100_000}
    if damage == "gone":
        run.manifest_path.unlink()
    else:
        run.manifest_path.write_bytes(texts[damage])
        with pytest.raises(ValueError, match=r"is damaged: .*; the command that made it repairs it"):
            RunDirectory.existing(run.path)
    again = directory(tmp_path)
    assert run.manifest_path.read_bytes() == whole
    assert again.load(IDENTITY) is not None


def test_another_experiment_under_the_same_name_is_an_error(tmp_path: Path) -> None:
    directory(tmp_path, key="k" * 64)
    with pytest.raises(ValueError, match="holds another experiment"):
        directory(tmp_path, key="k" * 63 + "j")


def test_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "test-kkkkkkkkkkkk").write_text("")
    with pytest.raises(ValueError, match="is a file where a run directory should be"):
        directory(tmp_path)


def test_existing_wants_a_run_directory(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a run directory"):
        RunDirectory.existing(tmp_path)


def test_one_process_at_a_time_and_litter_is_swept(tmp_path: Path) -> None:
    run = directory(tmp_path)
    (run.batches / ".left.partial").write_bytes(b"half")
    code = (
        "import sys; from pathlib import Path; from analysis.store import RunDirectory\n"
        "with RunDirectory(path=Path(sys.argv[1])).lock(): pass"
    )
    with run.lock():
        assert list(run.batches.iterdir()) == []
        done = subprocess.run([sys.executable, "-c", code, str(run.path)], capture_output=True, text=True, check=False)
        assert "another fpsim is working in" in done.stderr
    assert subprocess.run([sys.executable, "-c", code, str(run.path)], check=False).returncode == 0


def test_whole_checkpoint_passes_and_every_truncation_is_found(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": np.zeros((3, 5), np.float16), "bias": np.zeros(5, np.float32)}, path)
    store.check_safetensors(path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"(truncated|damaged) checkpoint: .*model\.safetensors.*restore it"):
            store.check_safetensors(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match="truncated checkpoint"):
        store.check_safetensors(path)
