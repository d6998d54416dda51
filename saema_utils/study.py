"""A study: every choice of one run, in one frozen value.

A :class:`Study` is plain data. Two runs of equal studies on one machine give equal tables, and the
digest of a study decides which finished work can be reused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

from annotated_types import Ge, Gt, Interval, Len, Lt

from saema_utils.errors import StudyError, require, unknown_name
from saema_utils.plain import check_fields, from_plain

CONCEPT_NAMES = (
    "months",
    "days",
    "elements",
    "color",
    "planets",
    "number",
    "alphabet",
    "phonetic_symbol",
    "constellations",
)
Architecture = Literal["standard", "topk", "batchtopk", "jumprelu", "gated", "matryoshka"]
ARCHITECTURES = get_args(Architecture)
NoiseUnit = Literal["rms", "absolute"]
NOISE_LEVELS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Multiples of the stream's RMS; those from 0.03 to 1 are the levels of the claims (chapter 7)."""
PAPER_NOISE_LEVELS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""The paper's, in the units of its models' activations."""
EMBEDDED_MODEL = "embedded:smollm2-135m"
EMBEDDED_CORPUS = "embedded:gcide"
TEXT_COLUMN = "text"
Text = Annotated[str, Len(1)]
Count = Annotated[int, Ge(1)]


@dataclass(frozen=True)
class CorpusRecipe:
    """Text on which the SAE is trained and judged.

    ``source`` is ``embedded:gcide``, a path to a file, or ``hub:DATASET``, and ``column`` where the text stands in a
    file or dataset of rows. ``tokens`` counts training tokens, ``heldout_tokens`` those that training never sees;
    ``context`` is the length of one sequence in tokens.
    """

    source: Text = EMBEDDED_CORPUS
    tokens: Annotated[int, Ge(1_000)] = 100_000
    heldout_tokens: Annotated[int, Ge(500)] = 12_000
    context: Annotated[int, Interval(ge=8, le=8192)] = 128
    column: Text = TEXT_COLUMN

    def __post_init__(self) -> None:
        check_fields(self, "corpus", StudyError)


@dataclass(frozen=True)
class SaeRecipe:
    """Where the sparse autoencoder comes from.

    ``source`` is ``train``, a folder of sae_lens or another library, or ``RELEASE:ID`` of sae_lens's registry.
    The other fields are used when it is trained: ``d_sae`` latents of which ``k`` fire per token,
    ``epochs`` passes over the corpus in batches of ``batch`` tokens at ``learning_rate``.
    """

    source: Text = "train"
    architecture: Architecture = "topk"
    d_sae: Annotated[int, Ge(8)] = 4608
    k: Count = 32
    epochs: Count = 8
    batch: Annotated[int, Ge(16)] = 2048
    learning_rate: Annotated[float, Gt(0), Lt(1)] = 3e-3

    def __post_init__(self) -> None:
        check_fields(self, "sae", StudyError)
        require(self.k <= self.d_sae, "sae.k", self.k, f"1 to d_sae = {self.d_sae}", StudyError)


@dataclass(frozen=True)
class GeometryRecipe:
    """How local representations are found: smallest cluster, neighbours of the graph, resamples."""

    min_cluster_size: Annotated[int, Ge(2)] = 10
    n_neighbors: Annotated[int, Ge(2)] = 10
    bootstrap: Annotated[int, Ge(20)] = 200

    def __post_init__(self) -> None:
        check_fields(self, "geometry", StudyError)


@dataclass(frozen=True)
class InterventionRecipe:
    """How poles are moved: the grid of ``alphas`` (0 leaves them), and the training for separability.

    Each seed trains a plain TopK autoencoder of its own, as wide as the study's SAE, for ``fresh_steps``. The runs
    that train for separability ``start`` ``warm`` (they continue their seed's plain one for ``finetune_steps``)
    or ``fresh`` (from the seed's random weights, ``fresh_steps`` long).

    At most ``spliced_prompts`` of each concept, and ``spliced_sequences`` of held-out text, are run through
    the whole language model once for every edit or autoencoder; ``judged_tokens`` of held-out text tell
    how well each autoencoder of the sweep reconstructs.
    """

    alphas: tuple[Annotated[float, Interval(ge=-100, le=100)], ...] = tuple(round(-1 + 0.1 * i, 10) for i in range(31))
    coefficients: tuple[float, ...] = (-0.1, 0.0, 0.1)
    start: Literal["warm", "fresh"] = "warm"
    finetune_steps: Count = 60
    fresh_steps: Count = 150
    optimise_steps: Count = 60
    spliced_prompts: Count = 6
    spliced_sequences: Count = 2
    judged_tokens: Count = 2048

    def __post_init__(self) -> None:
        check_fields(self, "intervention", StudyError)
        alphas, coefficients = self.alphas, self.coefficients
        doses = "three or more doses, 0 and one above it among them"
        sound = 0.0 in alphas and max(alphas) > 0 and len(set(alphas)) >= 3
        require(sound, "intervention.alphas", alphas, doses, StudyError)
        sound = 0.0 in coefficients and max(coefficients) > 0
        values = "values that include 0 and one above it"
        require(sound, "intervention.coefficients", coefficients, values, StudyError)


@dataclass(frozen=True)
class Study:
    """Every choice of a run. Construction validates; :func:`dataclasses.replace` validates again.

    Attributes
    ----------
    model
        ``embedded:smollm2-135m`` or ``embedded:gemma3-270m``, a path to a transformers checkpoint or a ``.gguf``
        file, or a hub name.
    layer
        Residual stream after this block (counted from 0) is studied.
    concepts, templates
        Which concepts, and how many sentence templates each word is put into.
    noise_levels, noise_unit
        Standard deviations of the Gaussian noise added to the residual stream, ascending from 0: multiples of the RMS
        of a concept's clean stream (``rms``), or in units of the activations (``absolute``), where one level may be
        nothing to one model and everything to another.
    seed, n_seeds
        First seed and how many: stochastic steps are repeated over ``seeds``.
    """

    name: str
    title: str = ""
    model: Text = EMBEDDED_MODEL
    layer: Annotated[int, Interval(ge=0, le=200)] = 15
    concepts: Annotated[tuple[str, ...], Len(1)] = CONCEPT_NAMES
    templates: Annotated[int, Interval(ge=1, le=8)] = 6
    prompts_file: str = ""
    noise_levels: tuple[float, ...] = NOISE_LEVELS
    noise_unit: NoiseUnit = "rms"
    corpus: CorpusRecipe = field(default_factory=CorpusRecipe)
    sae: SaeRecipe = field(default_factory=SaeRecipe)
    geometry: GeometryRecipe = field(default_factory=GeometryRecipe)
    intervention: InterventionRecipe = field(default_factory=InterventionRecipe)
    seed: Annotated[int, Interval(ge=0, lt=2**31)] = 0
    n_seeds: Annotated[int, Interval(ge=1, le=1000)] = 5
    hardware: str = "2 CPU cores"

    def __post_init__(self) -> None:
        check_fields(self, "study", StudyError)
        name, levels = self.name, self.noise_levels
        sound = name and all(c.isalnum() or c in "-_." for c in name) and not name.startswith(".")
        require(sound, "study name", name, "letters, digits, '-', '_' and '.'", StudyError)
        require(len(set(self.concepts)) == len(self.concepts), "concepts", self.concepts, "each once", StudyError)
        for concept in () if self.prompts_file else self.concepts:
            if concept not in CONCEPT_NAMES:
                raise StudyError(unknown_name("concept", concept, CONCEPT_NAMES))
        sound = len(levels) >= 2 and levels[0] == 0 and list(levels) == sorted(set(levels))
        require(sound, "noise_levels", levels, "ascending, starting with 0, at least two", StudyError)

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
        return from_plain(cls, plain, "study", StudyError)

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


class _Registry(Mapping[str, Study]):
    """Studies by name, from plain data as study files hold them; each is made when it is first asked for."""

    def __init__(self, *studies: Mapping[str, Any]):
        self._plain = {study["name"]: study for study in studies}
        self._made: dict[str, Study] = {}

    def __getitem__(self, name: str) -> Study:
        if name not in self._made:
            self._made[name] = Study.from_dict(self._plain[name])
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._plain)

    def __len__(self) -> int:
        return len(self._plain)


PAPER_NOISE = {"noise_levels": list(PAPER_NOISE_LEVELS), "noise_unit": "absolute"}
STUDIES: Mapping[str, Study] = _Registry(
    {
        "name": "smoke",
        "title": "Every step in a few minutes",
        "concepts": ["months", "days", "color"],
        "templates": 4,
        "noise_levels": [0.0, 0.03, 0.3, 1.0, 3.0],
        "corpus": {"tokens": 16_000, "heldout_tokens": 4_000, "context": 64},
        "sae": {"d_sae": 1152, "k": 32, "epochs": 4, "batch": 1024},
        "geometry": {"min_cluster_size": 4, "n_neighbors": 5, "bootstrap": 50},
        "intervention": {
            "alphas": [round(-1 + 0.25 * i, 10) for i in range(13)],
            "coefficients": [-0.1, 0.0, 0.1],
            "finetune_steps": 8,
            "fresh_steps": 60,
            "optimise_steps": 5,
            "spliced_prompts": 1,
            "spliced_sequences": 1,
            "judged_tokens": 512,
        },
        "n_seeds": 3,
    },
    {"name": "smollm2-135m", "title": "The default: all nine concepts on an embedded model"},
    # The model on which the claims were registered before any result was seen. Its layer
    # is chosen by middle_of_rings in chapters/activations/tables.py, as that of the default is.
    {
        "name": "gemma3-270m",
        "title": "The confirmatory study: all nine concepts on a second embedded model",
        "model": "embedded:gemma3-270m",
        "layer": 11,
        "hardware": "2 CPU cores, make gemma",
    },
    {
        "name": "gpt2-small",
        "title": "The paper's GPT-2 small at layer 11",
        "model": "gpt2",
        "layer": 11,
        **PAPER_NOISE,
        "sae": {"source": "gpt2-small-resid-post-v5-32k:blocks.11.hook_resid_post", "d_sae": 32768},
        "corpus": {"tokens": 200_000, "heldout_tokens": 20_000},
        "hardware": "GPU 4 GB, hub",
    },
    {
        "name": "pythia-70m",
        "title": "The paper's Pythia-70M at layer 5",
        "model": "EleutherAI/pythia-70m-deduped",
        "layer": 5,
        **PAPER_NOISE,
        "sae": {
            "source": "pythia-70m-deduped-res-sm:blocks.5.hook_resid_post",
            "architecture": "standard",
            "d_sae": 32768,
        },
        "corpus": {"tokens": 200_000, "heldout_tokens": 20_000},
        "hardware": "GPU 4 GB, hub",
    },
    {
        "name": "gemma-2-2b",
        "title": "The paper's Gemma-2-2B at layer 19",
        "model": "google/gemma-2-2b",
        "layer": 19,
        **PAPER_NOISE,
        "sae": {
            "source": "sae_bench_gemma-2-2b_topk_width-2pow16_date-1109:blocks.19.hook_resid_post__trainer_0",
            "d_sae": 65536,
            "k": 20,
        },
        "corpus": {"tokens": 200_000, "heldout_tokens": 20_000},
        "hardware": "GPU 16 GB, hub, token",
    },
)
DEFAULT_STUDY = "smollm2-135m"
CONFIRMATORY_STUDY = "gemma3-270m"


def is_registered(study: Study) -> bool:
    """Whether a study is one of :data:`STUDIES`, but for its seed."""
    known = STUDIES.get(study.name)
    return known is not None and known.changed(seed=study.seed).digest == study.digest


def get_study(name: str) -> Study:
    """Look a study up by name; an unknown name raises StudyError with the nearest one."""
    if name not in STUDIES:
        raise StudyError(unknown_name("study", name, STUDIES, "'saema studies' lists them."))
    return STUDIES[name]
