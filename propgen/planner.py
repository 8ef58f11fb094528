"""The planner: what an experiment, or a stage's command line, asks for, as artifacts with their digests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from propgen import regime as regimes
from propgen.bank import FIRST, NEUTRAL, Bank, Item, load
from propgen.compose import GROUPS, Composition, Project, compose_elements
from propgen.config import Config, Finetuned, Generation, Model, Protocol, Regime, Training, Trait
from propgen.digest import SHORT, Spec, digest, identity
from propgen.errors import InputError, nearest
from propgen.limits import check_generation, check_list, check_lists, check_seed, check_unique
from propgen.plan import BASE, GENERATING, PROBE, PROTOCOLS, Artifact, Evaluation, Plan, Subject, Treatment
from propgen.rule import load_rules
from propgen.source import Kind, check_source, kind, remembered_content


class Planner:
    """Plans an experiment, or the one artifact that a stage's command line chooses."""

    def __init__(self, project: Project, composition: Composition) -> None:
        self.project = project
        self.config: Config = composition.config
        self.chosen = composition.chosen
        self._banks: dict[str, Bank] = {}
        self._rules: dict[str, Bank] = {}
        self._models: dict[str, Artifact] = {}
        self._datasets: dict[tuple[str, int], Artifact] = {}
        self._elements: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
        self.drawn: dict[str, tuple[Treatment, int]] = {}
        """Path of each planned dataset to what `examples` needs to give its examples."""

    # -- elements ------------------------------------------------------------------------------------------------

    def compose_elements(self, names: Mapping[str, Sequence[str]]) -> None:
        """Compose the named group elements, once each; an element chosen on the command line comes from there."""
        chosen = {group: name for group, name in self.chosen.items() if group in ("model", "trait", "regime")}
        for group, name in chosen.items():
            self._elements[group][name] = getattr(self.config, group)
        wanted = {
            group: [name for name in dict.fromkeys(names.get(group, ())) if name not in self._elements[group]]
            for group in GROUPS
        }
        for group, found in compose_elements(self.project, wanted).items():
            self._elements[group].update(found)

    def element(self, group: str, name: str) -> Any:
        """Return one composed group element."""
        if name not in self._elements[group]:
            self.compose_elements({group: [name]})
        return self._elements[group][name]

    def bank(self, trait: str) -> Bank:
        """Return a trait's bank, read and checked once."""
        if trait not in self._banks:
            element: Trait = self.element("trait", trait)
            self._banks[trait] = load(self.project.conf / "trait" / (element.bank or f"{trait}.jsonl"))
        return self._banks[trait]

    def rules(self, trait: str) -> Bank:
        """Return a trait's rule items, read and checked once."""
        if trait not in self._rules:
            name = f"conf/trait/{trait}.rule.jsonl"
            self.element("trait", trait)  # an unknown trait is named as such
            if not (self.project.root / name).is_file():
                raise InputError(
                    f"trait '{trait}' has no rule items; write {name}, or leave the protocol out of protocols and name "
                    "the traits that have some in columns, as in columns=[formality.rule.id]"
                )
            self._rules[trait] = load_rules(self.project.root / name, self.bank(trait))
        return self._rules[trait]

    # -- artifacts -----------------------------------------------------------------------------------------------

    def model(self, name: str) -> Artifact:
        """Return a base model's artifact: determined by its pin, or by its base and its own finetune."""
        if name not in self._models:
            source: Model = self.element("model", name)
            self._check_origin(name)
            made = self._made_of(name)
            config = {} if made else _model_identity(source, self.project.state)
            spec = Spec("model", config, {key: item.digest for key, item in made.items()})
            inputs = {key: item.path for key, item in made.items()}
            label = f"{name}-{spec.digest[:SHORT]}"
            self._models[name] = Artifact("model", label, spec.digest, spec.as_json(), inputs, (f"model={name}",))
        return self._models[name]

    def origins(self, name: str) -> list[Artifact]:
        """Return what a base model is made from, inputs first; nothing for one that is fetched."""
        finetuned: Finetuned | None = self.element("model", name).finetuned
        if finetuned is None:
            return []
        made = self._made_of(name)
        return [*self.origins(finetuned.base), made["base"], self._neutral_dataset(name), made["finetune"]]

    def _check_origin(self, name: str) -> None:
        """Raise InputError for a base model, or one that it is made from, that cannot be had or is made from itself."""
        chain = [name]
        while True:
            source: Model = self.element("model", chain[-1])
            check_source(chain[-1], source)
            if source.finetuned is None:
                return
            place, base = f"conf/model/{chain[-1]}.yaml: finetuned.base", source.finetuned.base
            if base in chain:
                circle = " -> ".join([*chain, base])
                raise InputError(f"{place}: '{base}' would be made from itself ({circle}); name another base model")
            self._check_known(place, "model", base)
            chain.append(base)

    def _check_known(self, place: str, group: str, name: str) -> None:
        """Raise InputError for an element that a config names at `place` and that does not exist."""
        known = self.project.options(group)
        if name not in self._elements[group] and name not in known:
            raise InputError(f"{place}: unknown {group} '{name}'; {nearest(name, known)}")

    def _made_of(self, name: str) -> dict[str, Artifact]:
        """Return the base and the finetune that a base model is made from, if it is."""
        finetuned: Finetuned | None = self.element("model", name).finetuned
        if finetuned is None:
            return {}
        data, base = self._neutral_dataset(name), self.model(finetuned.base)
        label = f"{finetuned.base}/{finetuned.regime}"
        settings = [f"training.{key}={value}" for key, value in asdict(finetuned.training).items()]
        choice = (f"model={finetuned.base}", *data.choice, f"seed={finetuned.seed}", *settings)
        finetune = _finetune(label, base, data, finetuned.training, finetuned.seed, choice)
        return {"base": base, "finetune": finetune}

    def _neutral_dataset(self, name: str) -> Artifact:
        """Return the dataset of a base model's own finetune."""
        finetuned: Finetuned = self.element("model", name).finetuned
        place = f"conf/model/{name}.yaml: finetuned.regime"
        self._check_known(place, "regime", finetuned.regime)
        element: Regime = self.element("regime", finetuned.regime)
        regimes.check(finetuned.regime, element)
        if not element.bank:
            raise InputError(
                f"{place}: '{finetuned.regime}' has no bank of its own; name a neutral regime that has one"
            )
        return self.dataset(self.treatment(finetuned.regime, None), finetuned.items)

    def treatment(self, regime: str, trait: str | None, variant: str | None = None) -> Treatment:
        """Return the treatment of a regime and, unless it is a control, a trait and a variant of its training set."""
        element: Regime = self.element("regime", regime)
        regimes.check(regime, element)
        if element.control:
            return Treatment(regime, regime, control=True)
        if trait is None:
            raise InputError(f"regime '{regime}' trains one trait: choose it, as in trait=honesty")
        name = f"{trait}-{regime}" if variant is None else f"{trait}-{regime}-{variant}"
        return Treatment(name, regime, trait, variant=variant)

    def examples(self, treatment: Treatment, count: int | None = None) -> list[regimes.Example]:
        """Return a treatment's training examples, in order; `count` of them, by default `data.train_items`."""
        element: Regime = self.element("regime", treatment.regime)
        if element.bank:
            banks = {treatment.regime: load(self.project.conf / "regime" / element.bank, NEUTRAL)}
        else:
            names = [treatment.trained] if treatment.trained else element.traits
            banks = {name: replace(self.bank(name), variant=treatment.variant or FIRST) for name in names}
        data = self.config.data
        return regimes.build(element.kind, banks, data if count is None else replace(data, train_items=count))

    def dataset(self, treatment: Treatment, count: int | None = None) -> Artifact:
        """Return a treatment's dataset: determined by its kind and the very examples. count: as in `examples`."""
        count = self.config.data.train_items if count is None else count
        if (key := (treatment.name, count)) not in self._datasets:
            element: Regime = self.element("regime", treatment.regime)
            examples = self.examples(treatment, count)
            spec = Spec("dataset", {"kind": element.kind}, {"examples": digest(examples)})
            label = f"{treatment.name}-{spec.digest[:SHORT]}"
            choice = (*_choose(treatment), f"data.train_items={count}")
            self._datasets[key] = Artifact("dataset", label, spec.digest, spec.as_json(), {}, choice)
            self.drawn[self._datasets[key].path] = (treatment, count)
        return self._datasets[key]

    def adapter(self, model: str, treatment: Treatment, seed: int) -> Artifact:
        """Return one finetune's adapter."""
        base, data = self.model(model), self.dataset(treatment)
        choice = (f"model={model}", *_choose(treatment), f"seed={seed}")
        return _finetune(f"{model}/{treatment.name}", base, data, self.config.training, seed, choice)

    def subject(self, model: str, treatment: Treatment, seed: int) -> Subject:
        """Return what is evaluated for a model, a treatment and a seed."""
        base = self.model(model)
        if treatment.name == BASE:
            name = f"{model}/{BASE}/seed0-{base.digest[:SHORT]}"
            return Subject(name, model, BASE, 0, base.digest, base.path, base.choice)
        adapter = self.adapter(model, treatment, seed)
        return Subject(adapter.name, model, treatment.name, seed, adapter.digest, base.path, adapter.choice)

    def evaluation(self, trait: str, protocol: str, context: str) -> Evaluation:
        """Return one column of the matrix."""
        element: Protocol = self.element("protocol", protocol)
        if element.kind not in PROTOCOLS:
            known = nearest(element.kind, PROTOCOLS)
            raise InputError(f"conf/protocol/{protocol}.yaml: unknown kind '{element.kind}'; {known}")
        self._check_probe(trait, protocol, context)
        items = self.items(trait, context, element.kind)
        config = identity(self.config.engine)
        config.pop("name", None)  # engines are interchangeable; which one ran is recorded with each cell
        if generation := self._generation(protocol, element):
            config = {"generation": _asking(generation, config, items)}
        spec = Spec(element.kind, config, {"items": digest(items)})
        name = f"{trait}.{protocol}.{context}"
        return Evaluation(
            name, trait, protocol, context, spec.digest, spec.as_json(), len(items), element.unit, element.label
        )

    def _check_probe(self, trait: str, protocol: str, context: str) -> None:
        """Raise InputError for a probe where a trait belongs, or the other way round."""
        probe: bool = self.element("trait", trait).probe
        if probe and context != PROBE:
            raise InputError(f"'{trait}' is a probe and no trait; name it in probes, not in evaluated or columns")
        if not probe and context == PROBE:
            raise InputError(f"'{trait}' is no probe, and context '{PROBE}' is for these alone; leave it out")
        if probe and self.element("protocol", protocol).kind in GENERATING:
            raise InputError(f"'{trait}' is a probe, which protocol '{protocol}' cannot score; use contrast")

    def _generation(self, protocol: str, element: Protocol) -> Generation | None:
        """Return the settings of a protocol that generates, checked, and None for others."""
        place = f"conf/protocol/{protocol}.yaml"
        if element.generation is None and element.kind in GENERATING:
            raise InputError(f"{place}: 'generation' is missing, and kind '{element.kind}' needs responses; add it")
        if element.generation is not None:
            if element.kind not in GENERATING:
                raise InputError(f"{place}: kind '{element.kind}' has no use for 'generation'; leave it out")
            check_generation(place, element.generation)
        return element.generation

    def items(self, trait: str, context: str, kind: str = "contrast") -> list[Item]:
        """Return the test items of a trait in a context for a kind of protocol."""
        key = _items_key(context, kind)
        if context == PROBE:
            return self.bank(trait).probe(self.config.data.probe_items)
        bank = self.rules(trait) if kind in GENERATING else self.bank(trait)
        return bank.test(context, getattr(self.config.data, key), f"data.{key}")

    # -- the whole -----------------------------------------------------------------------------------------------

    def _check_no_choice(self) -> None:
        """Refuse settings that choose what one stage works on: an experiment would silently ignore them."""
        lists = {"model": "models", "trait": "traits", "regime": "regimes"}
        found = {key: (name, self.chosen[key]) for key, name in lists.items() if key in self.chosen}
        if self.config.seed is not None:
            found["seed"] = ("seeds", str(self.config.seed))
        for key, (name, value) in found.items():
            raise InputError(
                f"{key}={value} chooses what one stage works on; an experiment has lists: {name}=[{value}]"
            )
        if self.config.evaluations is not None:
            raise InputError("evaluations=... chooses what one stage works on; an experiment has evaluated=[...]")

    def plan(self) -> Plan:
        """Return the experiment's plan. Raises InputError for anything that would fail later for want of input."""
        config = self.config
        self._check_no_choice()
        check_lists(config)
        self._compose_lists()
        controls = [self.treatment(regime, None) for regime in config.controls.regimes]
        sets = [*((trait, None) for trait in config.trained), *_variants(config)]
        trained = [self.treatment(r, t, v) for r in config.regimes for t, v in sets]
        rows = [(c, s) for c in controls for s in config.controls.seeds]
        rows += [(t, s) for t in trained for s in config.seeds]
        treatments = (Treatment(BASE, BASE), *controls, *trained)
        columns = self.evaluations()
        check_unique("treatment", [treatment.name for treatment in treatments])
        check_unique("evaluation", [column.name for column in columns])
        adapters = [self.adapter(model, t, s) for model in config.models for t, s in rows]
        everything = [(treatments[0], 0), *rows]
        return Plan(
            name=config.name,
            experiment=self.chosen.get("experiment", config.name),
            store=config.store,
            treatments=treatments,
            models=tuple(self.model(model) for model in config.models),
            datasets=tuple(self.dataset(treatment) for treatment in treatments[1:]),
            adapters=tuple(adapters),
            subjects=tuple(self.subject(model, t, s) for model in config.models for t, s in everything),
            evaluations=tuple(columns),
            analysis=identity(config.analysis),
            style=identity(config.style),
            control=controls[0].name,
            origins=tuple(item for model in config.models for item in self.origins(model)),
            valences={t: float(self.element("trait", t).valence) for t in sorted({*config.trained, *config.evaluated})},
        )

    def evaluations(self) -> list[Evaluation]:
        """Return the experiment's columns."""
        return [self.evaluation(*part) for part in self._columns()]

    def _columns(self) -> list[tuple[str, str, str]]:
        """Return trait, protocol and context of the experiment's columns."""
        config = self.config
        product = [(t, p, c) for p in config.protocols for c in config.contexts for t in config.evaluated]
        return [*product, *_extra_columns(config), *_probes(config)]

    def chosen_evaluations(self) -> list[Evaluation]:
        """Return the columns that the command line names, by default all of the experiment's."""
        product = {".".join(part): part for part in self._columns()}
        names = self.config.evaluations if self.config.evaluations is not None else list(product)
        check_list("evaluations", names)
        for name in names:
            if name not in product:
                raise InputError(f"evaluations: unknown evaluation '{name}'; {nearest(name, product)}")
        parts = [product[name] for name in names]
        self.compose_elements({"trait": [t for t, _, _ in parts], "protocol": [p for _, p, _ in parts]})
        return [self.evaluation(*part) for part in parts]

    def evaluation_overrides(self, evaluation: Evaluation) -> tuple[str, ...]:
        """Return the overrides that, with a subject's, remake a cell whatever the experiment."""
        key = _items_key(evaluation.context, evaluation.spec["kind"])
        lists = {"evaluated": evaluation.trait, "protocols": evaluation.protocol, "contexts": evaluation.context}
        named = [f"{name}=[{value}]" for name, value in lists.items()]
        engine = [f"engine.{name}={value}" for name, value in identity(self.config.engine).items()]
        return (*named, "columns=[]", "probes=[]", f"data.{key}={evaluation.items}", *engine)

    def _compose_lists(self) -> None:
        config = self.config
        regime_names = [*config.controls.regimes, *config.regimes]
        extra = _extra_columns(config)
        extra += _probes(config)
        protocols = [*config.protocols, *(protocol for _, protocol, _ in extra)]
        self.compose_elements({"model": config.models, "regime": regime_names, "protocol": protocols})
        for name in config.controls.regimes:
            if not self.element("regime", name).control:
                raise InputError(f"controls.regimes: '{name}' is no control; name it in regimes")
        for name in config.regimes:
            if self.element("regime", name).control:
                raise InputError(f"regimes: '{name}' is a control; name it in controls.regimes")
        drawn = [trait for name in regime_names for trait in self.element("regime", name).traits]
        drawn += [*(trait for trait, _ in _variants(config)), *(trait for trait, _, _ in extra)]
        self.compose_elements({"trait": [*config.traits, *config.trained, *config.evaluated, *drawn]})


def _model_identity(source: Model, state: Path) -> dict[str, Any]:
    """Return what determines a base model: its pin, or for a local folder the content of its files."""
    if kind(source.source) is Kind.FOLDER:
        folder = Path(source.source).expanduser()
        return {"content": remembered_content(folder, state / "content.json")}
    found = identity(source)
    found.pop("licence", None)
    return found


def _finetune(
    label: str, base: Artifact, data: Artifact, training: Training, seed: int, choice: tuple[str, ...]
) -> Artifact:
    """Return the artifact of a finetune. label: `<model>/<treatment>`."""
    check_seed(seed)
    spec = Spec("finetune", {**identity(training), "seed": seed}, {"model": base.digest, "dataset": data.digest})
    name = f"{label}/seed{seed}-{spec.digest[:SHORT]}"
    inputs = {"model": base.path, "dataset": data.path}
    return Artifact("finetune", name, spec.digest, spec.as_json(), inputs, choice)


def _variants(config: Config) -> list[tuple[str, str]]:
    """Return trait and training set of each of the experiment's variants."""
    parts = [name.rpartition(".") for name in config.variants]
    return [(trait, variant) for trait, _, variant in parts]


def _extra_columns(config: Config) -> list[tuple[str, str, str]]:
    """Return trait, protocol and context of the experiment's further columns; a trait's name may hold dots."""
    parts = [name.rsplit(".", 2) for name in config.columns]
    return [(trait, protocol, context) for trait, protocol, context in parts]


def _probes(config: Config) -> list[tuple[str, str, str]]:
    """Return trait, protocol and context of the experiment's probes."""
    return [(name, "contrast", PROBE) for name in config.probes]


def _items_key(context: str, kind: str) -> str:
    """Return the setting in `data` of how many items a column has."""
    far = context == "far"
    if context == PROBE:
        return "probe_items"
    if kind in GENERATING:
        return "rule_far_items" if far else "rule_items"
    return "far_items" if far else "test_items"


def _asking(settings: Generation, engine: dict[str, Any], items: Sequence[Item]) -> dict[str, Any]:
    """Return the spec of responses: what is asked and how, and nothing of how it is scored."""
    prompts = [(item["item"], item["prompt"]) for item in items]
    return Spec("generation", {**engine, **identity(settings)}, {"prompts": digest(prompts)}).as_json()


def _choose(treatment: Treatment) -> tuple[str, ...]:
    trait = (f"trait={treatment.trained}",) if treatment.trained else ()
    variant = (f"variant={treatment.variant}",) if treatment.variant else ()
    return (*trait, f"regime={treatment.regime}", *variant)
