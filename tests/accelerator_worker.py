"""Runs notebooks in this process on the pretended accelerator: ``accelerator_worker.py STUDY.json CHAPTERS KIND``.

A process of its own, because every library that asks for a device by name has to learn of one that does not exist.
Prints one JSON object: each cell that failed, with the reason.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import pkgutil
import sys
import traceback
from pathlib import Path

import safetensors.torch
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from accelerator import accelerator  # noqa: E402

import saema_utils  # noqa: E402
from saema_utils import runtime  # noqa: E402

SKIPPED = {"exercise", "solution", "parameters", "setup"}


class InThisThread:
    """torch's modes belong to one thread, so the pool's work is done in it."""

    def __init__(self, *_, **__):
        pass

    def __enter__(self) -> InThisThread:
        return self

    def __exit__(self, *_) -> None:
        pass

    map = staticmethod(map)


def introduce(device: torch.device) -> None:
    """Tell libraries of the device what they know about real ones, before the package copies their names."""
    runtime.choose_device = lambda name="auto": device
    save, load, autocast = safetensors.torch.save_file, safetensors.torch.load_file, torch.autocast
    safetensors.torch.save_file = lambda tensors, path, metadata=None: save(
        {name: value.cpu() for name, value in tensors.items()}, path, metadata
    )
    safetensors.torch.load_file = lambda path, device="cpu": {k: v.to(device) for k, v in load(path).items()}

    def known_autocast(device_type: str, *args, **kwargs):
        known = device_type != device.type
        return autocast(device_type, *args, **kwargs) if known else contextlib.nullcontext()

    torch.autocast = known_autocast
    from sae_lens.loading import pretrained_sae_loaders as loaders

    opener = loaders.safe_open

    @contextlib.contextmanager
    def safe_open(path, framework="pt", device="cpu"):  # reads straight to the device
        with opener(path, framework, "cpu") as file:

            class Moved:
                keys = staticmethod(file.keys)
                metadata = staticmethod(file.metadata)
                get_tensor = staticmethod(lambda name: file.get_tensor(name).to(device))

            yield Moved

    loaders.safe_open = safe_open
    for found in pkgutil.walk_packages(saema_utils.__path__, "saema_utils."):
        if not found.name.endswith("__main__"):
            module = importlib.import_module(found.name)
            if "ThreadPoolExecutor" in vars(module):
                module.ThreadPoolExecutor = InThisThread
    # Figures are drawn, but not written: that is done from tables, and takes long.
    saema_utils.runs.directory.write_figure = lambda path, figure, name: path.write_text("<svg/>")


def run_notebook(path: Path, study: Path) -> list[str]:
    cells = json.loads(path.read_text())["cells"]
    setup = next("".join(cell["source"]) for cell in cells if "setup" in cell["metadata"].get("tags", []))
    names: dict = {"study": str(study), "run_dir": str(study.parent / "run"), "device": "auto", "seed": 0}
    exec(setup[setup.index("from saema_utils") :], names)  # without what only Colab installs
    failed = []
    for cell in cells:
        if cell["cell_type"] != "code" or SKIPPED & {*cell["metadata"].get("tags", []), cell["id"]}:
            continue
        try:
            exec("".join(cell["source"]), names)
        except Exception as error:  # whatever a cell raises is what the test wants to know
            where = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[1:]]
            failed.append(f"{path.stem} {cell['id']}: {type(error).__name__}: {error} ({' '.join(where)})")
    return failed


if __name__ == "__main__":
    study, chapters, kind = sys.argv[1:]
    torch.set_num_threads(1)
    introduce(torch.device(kind, 0))
    failures: list[str] = []
    with contextlib.redirect_stdout(io.StringIO()), accelerator(kind):
        for chapter in chapters.split(","):
            failures += run_notebook(next((ROOT / "notebooks").glob(f"{chapter}_*.ipynb")), Path(study))
    print(json.dumps(failures))
