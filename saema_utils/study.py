"""A study: every choice of one run, in one frozen value.

A :class:`Study` is plain data. Two runs of equal studies on one machine give equal tables, and the
digest of a study decides which finished work can be reused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from saema_utils.errors import StudyError, unknown_name

CONCEPT_NAMES = (
    "months", "days", "elements", "color", "planets",
    "number", "alphabet", "phonetic_symbol", "constellations",
)  # fmt: skip
ARCHITECTURES = ("standard", "topk", "batchtopk", "jumprelu", "gated", "matryoshka")
STARTS = ("warm", "fresh")
PAPER_NOISE_LEVELS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
EMBEDDED_MODEL = "embedded:smollm2-135m"
EMBEDDED_CORPUS = "embedded:gcide"


def _require(condition: bool, what: str, value: object, allowed: str) -> None:
    if not condition:
        raise StudyError(f"{what} is {value!r}; allowed: {allowed}. Change it in the study and run again.")


@dataclass(frozen=True)
class CorpusRecipe:
    """Text on which the SAE is trained and judged.

    ``source`` is ``embedded:gcide``, a path to a ``.txt`` file, or ``hub:DATASET``. ``tokens`` counts
    training tokens, ``heldout_tokens`` those that training never sees; ``context`` is the length of
    one sequence in tokens.
    """

    source: str = EMBEDDED_CORPUS
    tokens: int = 100_000
    heldout_tokens: int = 12_000
    context: int = 128

    def __post_init__(self) -> None:
        _check_kinds(self, "corpus")
        _require(bool(self.source), "corpus.source", self.source, "embedded:gcide, a path, or hub:NAME")
        _require(self.tokens >= 1_000, "corpus.tokens", self.tokens, "at least 1000")
        _require(self.heldout_tokens >= 500, "corpus.heldout_tokens", self.heldout_tokens, "at least 500")
        _require(8 <= self.context <= 8192, "corpus.context", self.context, "8 to 8192 tokens")


@dataclass(frozen=True)
class SaeRecipe:
    """Where the sparse autoencoder comes from.

    ``source`` is ``train``, a folder in sae_lens's format, or ``RELEASE:ID`` of sae_lens's registry.
    The other fields are used when it is trained: ``d_sae`` latents of which ``k`` fire per token,
    ``epochs`` passes over the corpus in batches of ``batch`` tokens at ``learning_rate``.
    """

    source: str = "train"
    architecture: str = "topk"
    d_sae: int = 4608
    k: int = 32
    epochs: int = 8
    batch: int = 2048
    learning_rate: float = 3e-3

    def __post_init__(self) -> None:
        _check_kinds(self, "sae")
        if self.architecture not in ARCHITECTURES:
            raise StudyError(unknown_name("SAE architecture", self.architecture, ARCHITECTURES))
        _require(bool(self.source), "sae.source", self.source, "'train', a folder, or RELEASE:ID")
        _require(self.d_sae >= 8, "sae.d_sae", self.d_sae, "at least 8")
        _require(1 <= self.k <= self.d_sae, "sae.k", self.k, f"1 to d_sae = {self.d_sae}")
        _require(self.epochs >= 1, "sae.epochs", self.epochs, "at least 1")
        _require(self.batch >= 16, "sae.batch", self.batch, "at least 16")
        _require(0 < self.learning_rate < 1, "sae.learning_rate", self.learning_rate, "between 0 and 1")


@dataclass(frozen=True)
class GeometryRecipe:
    """How local representations are found: smallest cluster, neighbours of the graph, resamples."""

    min_cluster_size: int = 10
    n_neighbors: int = 10
    bootstrap: int = 200

    def __post_init__(self) -> None:
        _check_kinds(self, "geometry")
        _require(self.min_cluster_size >= 2, "geometry.min_cluster_size", self.min_cluster_size, "at least 2")
        _require(self.n_neighbors >= 2, "geometry.n_neighbors", self.n_neighbors, "at least 2")
        _require(self.bootstrap >= 20, "geometry.bootstrap", self.bootstrap, "at least 20")


@dataclass(frozen=True)
class InterventionRecipe:
    """How poles are moved: the grid of ``alphas`` (0 leaves them), and the training for separability.

    The runs that train for separability ``start`` ``warm`` (from the study's SAE, ``finetune_steps`` long)
    or ``fresh`` (from random weights, ``fresh_steps`` long); an SAE that is no TopK without run-time
    normalisation cannot be continued, and its study starts fresh. Runs that watch what happens when
    nobody separates are ``fresh_steps`` long in any case.

    At most ``spliced_prompts`` of each concept, and ``spliced_sequences`` of held-out text, are run through
    the whole language model once for every edit or autoencoder; ``judged_tokens`` of held-out text tell
    how well each autoencoder of the sweep reconstructs.
    """

    alphas: tuple[float, ...] = tuple(round(-1 + 0.1 * i, 10) for i in range(31))
    coefficients: tuple[float, ...] = (-0.1, -0.03, 0.0, 0.03, 0.1)
    start: str = "warm"
    finetune_steps: int = 60
    fresh_steps: int = 150
    optimise_steps: int = 60
    spliced_prompts: int = 6
    spliced_sequences: int = 2
    judged_tokens: int = 2048

    def __post_init__(self) -> None:
        _check_kinds(self, "intervention")
        _require(
            0.0 in self.alphas and max(self.alphas) > 0 and len(set(self.alphas)) >= 3,
            "intervention.alphas", self.alphas, "three or more doses, 0 and one above it among them",
        )  # fmt: skip
        _require(all(abs(a) <= 100 for a in self.alphas), "intervention.alphas", self.alphas, "within -100 to 100")
        _require(
            0.0 in self.coefficients and max(self.coefficients) > 0,
            "intervention.coefficients", self.coefficients, "values that include 0 and one above it",
        )  # fmt: skip
        if self.start not in STARTS:
            raise StudyError(unknown_name("start", self.start, STARTS))
        for name in (
            "finetune_steps", "fresh_steps", "optimise_steps", "spliced_prompts", "spliced_sequences", "judged_tokens",
        ):  # fmt: skip
            _require(getattr(self, name) >= 1, f"intervention.{name}", getattr(self, name), "at least 1")


@dataclass(frozen=True)
class Study:
    """Every choice of a run. Construction validates; :func:`dataclasses.replace` validates again.

    Attributes
    ----------
    model
        ``embedded:smollm2-135m``, a path to a transformers checkpoint, or a hub name.
    layer
        Residual stream after this block (counted from 0) is studied.
    concepts, templates
        Which concepts, and how many sentence templates each word is put into.
    noise_levels
        Standard deviations of the Gaussian noise added to the residual stream, ascending from 0.
    seed, n_seeds
        First seed and how many: stochastic steps are repeated over ``seeds``.
    """

    name: str
    title: str = ""
    model: str = EMBEDDED_MODEL
    layer: int = 15
    concepts: tuple[str, ...] = CONCEPT_NAMES
    templates: int = 6
    prompts_file: str = ""
    noise_levels: tuple[float, ...] = PAPER_NOISE_LEVELS
    corpus: CorpusRecipe = field(default_factory=CorpusRecipe)
    sae: SaeRecipe = field(default_factory=SaeRecipe)
    geometry: GeometryRecipe = field(default_factory=GeometryRecipe)
    intervention: InterventionRecipe = field(default_factory=InterventionRecipe)
    seed: int = 0
    n_seeds: int = 5
    hardware: str = "2 CPU cores"

    def __post_init__(self) -> None:
        _check_kinds(self, "study")
        _require(
            bool(self.name) and all(c.isalnum() or c in "-_." for c in self.name) and not self.name.startswith("."),
            "study name", self.name, "letters, digits, '-', '_' and '.'",
        )  # fmt: skip
        _require(bool(self.model), "model", self.model, "embedded:smollm2-135m, a path, or a hub name")
        _require(0 <= self.layer <= 200, "layer", self.layer, "0 to the model's last layer")
        _require(len(self.concepts) >= 1, "concepts", self.concepts, "at least one concept")
        _require(len(set(self.concepts)) == len(self.concepts), "concepts", self.concepts, "each once")
        if not self.prompts_file:
            for concept in self.concepts:
                if concept not in CONCEPT_NAMES:
                    raise StudyError(unknown_name("concept", concept, CONCEPT_NAMES))
        _require(1 <= self.templates <= 8, "templates", self.templates, "1 to 8")
        levels = self.noise_levels
        _require(
            len(levels) >= 2 and levels[0] == 0 and list(levels) == sorted(set(levels)),
            "noise_levels", levels, "ascending, starting with 0, at least two",
        )  # fmt: skip
        _require(0 <= self.seed < 2**31, "seed", self.seed, "0 to 2147483647")
        _require(1 <= self.n_seeds <= 1000, "n_seeds", self.n_seeds, "1 to 1000")

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(range(self.seed, self.seed + self.n_seeds))

    @property
    def outside(self) -> tuple[str, ...]:
        """What may name files of this machine, whose content is no part of the study: prompts, text, model, SAE."""
        return (self.prompts_file, self.corpus.source, self.model, self.sae.source)

    @property
    def hook_name(self) -> str:
        return f"blocks.{self.layer}.hook_resid_post"

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that change when any choice does (not for title or hardware)."""
        plain = self.as_dict()
        plain.pop("title")
        plain.pop("hardware")
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON-ready data; :meth:`from_dict` is its inverse."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Study:
        """Build a study from plain data. Unknown keys and impossible values raise StudyError."""
        return _from_plain(cls, plain, "study")

    def changed(self, /, **changes: Any) -> Study:
        """A copy with some fields changed; dotted names reach into recipes.

        >>> STUDIES["smoke"].changed(**{"sae.k": 8, "seed": 3}).sae.k
        8
        """
        plain = self.as_dict()
        for name, value in changes.items():
            target, *rest = name.split(".")
            if target not in plain or len(rest) > 1 or (rest and not isinstance(plain[target], dict)):
                raise StudyError(unknown_name("study field", name, plain))
            if rest:
                if rest[0] not in plain[target]:
                    raise StudyError(unknown_name(f"field of {target}", rest[0], plain[target]))
                plain[target][rest[0]] = value
            else:
                plain[target] = value
        return Study.from_dict(plain)


def _from_plain(cls: type, plain: Mapping[str, Any], where: str) -> Any:
    if not isinstance(plain, Mapping):
        raise StudyError(f"{where} is a {type(plain).__name__}; allowed: a mapping of field names to values.")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for name, value in plain.items():
        if name not in fields:
            raise StudyError(unknown_name(f"field of {where}", name, fields))
        default = _default_of(fields[name])
        _check_kind(default, value, f"{where}.{name}", plain=True)
        if dataclasses.is_dataclass(default):
            value = _from_plain(type(default), value, name)
        elif isinstance(default, tuple):
            value = tuple(map(type(default[0]), value))
        values[name] = float(value) if isinstance(default, float) else value
    if "name" in fields and "name" not in values:
        raise StudyError(f"{where} has no 'name'; allowed: a name such as 'my-study'. Add one and run again.")
    return cls(**values)


def _check_kinds(recipe: Any, where: str) -> None:
    for f in dataclasses.fields(recipe):
        _check_kind(_default_of(f), getattr(recipe, f.name), f"{where}.{f.name}")


def _check_kind(default: Any, value: Any, what: str, *, plain: bool = False) -> None:
    """Refuse a value of another kind than the field's default; ``plain`` data hold mappings for recipes."""
    if dataclasses.is_dataclass(default):
        kind = Mapping if plain else type(default)
        _require(isinstance(value, kind), what, value, "a mapping of field names to values" if plain else kind.__name__)
    elif isinstance(default, tuple):
        _require(isinstance(value, list | tuple), what, value, "a list")
        if isinstance(default[0], float):
            _require(all(_is_number(v) for v in value), what, value, "finite numbers")
        else:
            _require(all(isinstance(v, str) for v in value), what, value, "a list of names")
    elif isinstance(default, str):
        _require(isinstance(value, str), what, value, "text")
    elif isinstance(default, int):
        _require(isinstance(value, int) and not isinstance(value, bool), what, value, "a whole number")
    elif isinstance(default, float):
        _require(_is_number(value), what, value, "a finite number")


def _default_of(f: dataclasses.Field) -> Any:
    if f.default_factory is not dataclasses.MISSING:
        return f.default_factory()
    return "" if f.default is dataclasses.MISSING else f.default


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        Study(
            name="smoke",
            title="Every step in about three minutes",
            concepts=("months", "days", "color"),
            templates=4,
            noise_levels=(0.0, 0.1, 0.5, 2.0, 10.0),
            corpus=CorpusRecipe(tokens=16_000, heldout_tokens=4_000, context=64),
            sae=SaeRecipe(d_sae=1152, k=32, epochs=4, batch=1024),
            geometry=GeometryRecipe(min_cluster_size=4, n_neighbors=5, bootstrap=50),
            intervention=InterventionRecipe(
                alphas=tuple(round(-1 + 0.25 * i, 10) for i in range(13)),
                coefficients=(-0.1, 0.0, 0.1),
                finetune_steps=8,
                fresh_steps=60,
                optimise_steps=5,
                spliced_prompts=1,
                spliced_sequences=1,
                judged_tokens=512,
            ),
            n_seeds=3,
        ),
        Study(name="smollm2-135m", title="The default: all nine concepts on an embedded model"),
        Study(
            name="gpt2-small",
            title="The paper's GPT-2 small at layer 11",
            model="gpt2",
            layer=11,
            sae=SaeRecipe(source="gpt2-small-resid-post-v5-32k:blocks.11.hook_resid_post", d_sae=32768),
            corpus=CorpusRecipe(tokens=200_000, heldout_tokens=20_000),
            hardware="GPU 4 GB, hub",
        ),
        Study(
            name="pythia-70m",
            title="The paper's Pythia-70M at layer 5",
            model="EleutherAI/pythia-70m-deduped",
            layer=5,
            sae=SaeRecipe(
                source="pythia-70m-deduped-res-sm:blocks.5.hook_resid_post", architecture="standard", d_sae=32768
            ),
            corpus=CorpusRecipe(tokens=200_000, heldout_tokens=20_000),
            hardware="GPU 4 GB, hub",
        ),
        Study(
            name="gemma-2-2b",
            title="The paper's Gemma-2-2B at layer 19",
            model="google/gemma-2-2b",
            layer=19,
            sae=SaeRecipe(
                source="sae_bench_gemma-2-2b_topk_width-2pow16_date-1109:blocks.19.hook_resid_post__trainer_0",
                d_sae=65536,
                k=20,
            ),
            corpus=CorpusRecipe(tokens=200_000, heldout_tokens=20_000),
            hardware="GPU 16 GB, hub, token",
        ),
    )
}
DEFAULT_STUDY = "smollm2-135m"


def get_study(name: str) -> Study:
    """Look a study up by name; an unknown name raises StudyError with the nearest one."""
    if name not in STUDIES:
        raise StudyError(unknown_name("study", name, STUDIES, "'saema studies' lists them."))
    return STUDIES[name]
