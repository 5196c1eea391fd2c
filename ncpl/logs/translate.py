"""One configuration of any framework under the registry's names, and what was read, derived, defaulted and left out."""

import re
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

from fields_ncpl import FIELDS, field_name, unknown_field
from ncpl.errors import one_line, short
from ncpl.logs.derive import (
    COUNTED,
    FACT_OF,
    POSITIVE,
    SCALED,
    SMALLEST_COUNT,
    SUFFIXED,
    TEXTS,
    derive,
    missing,
    number_of,
)
from ncpl.logs.frameworks import FRAMEWORKS, GENERIC, QUANTITIES, Framework, matches, plain_name, recognise
from ncpl.logs.rules import Facts
from text_ncpl import MOST_MESSAGE

UNSEEN_SOURCE = "other"
"""Source of a configuration that names none: a lab that no model has seen."""

_UNIT_SUFFIX = re.compile(r"_(k|m|b|t|million|millions|billion|billions|trillion)$|^(million|billion|trillion)s?_")
_FACTORS = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


@dataclass
class Reading:
    """Which names of a file stand for which quantity.

    Args:
        framework: whose names they are.
        names: quantity -> (name in the file, factor to the quantity's unit).
        fields: field of the registry -> name in the file, where the user said so or the file uses the registry's name.
        ignored: name in the file -> why it is left out.
    """

    framework: Framework
    names: dict[str, tuple[str, float]] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)


@dataclass
class Translation:
    """One configuration in the registry's terms.

    Args:
        fields: field -> value, unchecked.
        facts: quantity -> value, as read and derived.
        reading: which names were read.
        derived: field or quantity -> how it was derived.
        needs: what a forecast still needs, each with its unit.
    """

    fields: dict[str, Any]
    facts: Facts
    reading: Reading
    derived: dict[str, str]
    needs: list[str]


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested blocks as dotted names; lists stay values; `{desc, value}` and `{value, unit}` are one value.

    >>> flatten({"model": {"d_model": 64}, "betas": [0.9, 0.95]})
    {'model.d_model': 64, 'betas': [0.9, 0.95]}
    >>> flatten({"length": 2048, "model": {"max_seq_len": "${length}"}})
    {'length': 2048, 'model.max_seq_len': 2048}
    """
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            keys = {str(key).lower() for key in value} - {"desc", "_class_"}
            if keys == {"value"}:
                # A W&B config.yaml wraps every value.
                walk(prefix, value["value"])
                return
            if keys != {"value", "unit"}:
                for key, item in value.items():
                    walk(f"{prefix}.{key}" if prefix else str(key), item)
                return
        flat[prefix] = value

    for key, value in values.items():
        if key != "_wandb":
            walk(str(key), value)
    if any(type(value) is str and "${" in value for value in flat.values()):
        return {name: _reference(value, flat) for name, value in flat.items()}
    return flat


_REFERENCE = re.compile(r"\$\{(?:\.*)([\w.\-]+)\}")


def _reference(value: Any, flat: Mapping[str, Any]) -> Any:
    """What `${section.name}` stands for: OmegaConf's way to write one value once."""
    for _ in range(8):
        found = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            return value
        value = flat.get(found[1], flat.get(f"variables.{found[1]}"))
    return None


_PROGRESS = {"step", "tokens_seen", "samples_seen", "lr_now"}


def read_names(
    names: Iterable[str], given: Mapping[str, str] | None = None, changed: AbstractSet[str] = frozenset()
) -> Reading:
    """Which of a file's names stand for which quantities.

    Args:
        names: of the flattened values.
        given: their name -> field of the registry or quantity, as the user says; comes first.
        changed: names whose value changed while the run was logged; what stayed the same tells a plan better.

    Raises:
        ValueError: a given name that the file does not hold, or a field that does not exist.
    """
    everything = list(names)
    plain = {name: plain_name(name) for name in everything}
    originals = [name for name in everything if _is_known(plain[name])]
    given = dict(given or {})
    reading = Reading(recognise(plain[name] for name in originals))
    taken: set[str] = set()
    if {"model size", "data size"} & {field_name(name) for name in everything}:
        # The registry's own names: other names in general use may mean something else beside them.
        reading.framework = GENERIC
        for name in everything:
            ours = field_name(name)
            if ours is not None and ours not in reading.fields and plain[name] not in ("status", "name"):
                reading.fields[ours] = name
                taken.add(name)
    _apply_given(reading, given, plain, taken)
    claimed: dict[str, str] = {}
    own_fields = bool(reading.fields) and reading.framework is GENERIC and not given
    for framework in (reading.framework, GENERIC):
        for quantity, words in framework.names.items():
            if quantity in reading.names or _mapped(quantity) in reading.fields or (own_fields and quantity == "step"):
                continue
            column = None
            if quantity not in _PROGRESS and changed:
                column = _find(words.split(), originals, plain, taken | changed, quantity)
            column = column or _find(words.split(), originals, plain, taken, quantity)
            if column is not None and not (framework is GENERIC and claimed.get(column[0])):
                reading.names[quantity] = column
                taken.add(column[0])
        if framework is not GENERIC:
            # What the framework's own words claim is no other quantity, even where it was not needed.
            own = [*framework.quantities(), *framework.never.split()]
            claimed = {name: "claimed" for name in originals if any(matches(plain[name], word) for word in own)}
    _ignore(reading, everything, taken, claimed)
    return reading


_WORDS = {
    part
    for framework in (*FRAMEWORKS, GENERIC)
    for word in (*framework.quantities(), *framework.marks.split(), *framework.weak.split(), *framework.never.split())
    for part in word.split(".")
}


def _is_known(plain: str) -> bool:
    """Whether a name may mean anything; a table may have thousands of columns that do not."""
    parts = plain.split(".")
    return not _WORDS.isdisjoint((*parts, *(_UNIT_SUFFIX.sub("", part) for part in parts[-1:])))


def _apply_given(reading: Reading, given: Mapping[str, str], plain: Mapping[str, str], taken: set[str]) -> None:
    """What the user says that names stand for."""
    for theirs, ours in given.items():
        found = next((name for name in plain if name == theirs or plain[name] == plain_name(theirs)), None)
        if found is None:
            raise ValueError(f"map: {short(theirs)} is not in the file, its names: {one_line(', '.join(plain), 150)}")
        target = field_name(ours) or (ours if ours in QUANTITIES else None)
        if target is None:
            raise ValueError(
                f"map: {short(ours)} is no field; `ncpl fields` lists them (name and final_loss are accepted too)"
            )
        if target in FIELDS:
            reading.fields[target] = found
        elif target == "final_loss":
            pass
        else:
            reading.names[target] = (found, 1.0)
        taken.add(found)


_PLAIN_REASONS = ("no known quantity", "its framework uses it for something else")


def _ignore(reading: Reading, originals: list[str], taken: set[str], claimed: Mapping[str, str]) -> None:
    for name in originals:
        if name not in taken:
            reading.ignored[name] = _PLAIN_REASONS[name in claimed]


def _mapped(quantity: str) -> str | None:
    return {fact: name for name, (fact, _) in SCALED.items()}.get(quantity) or {
        fact: name for name, fact in FACT_OF.items()
    }.get(quantity)


def _find(
    words: list[str], originals: list[str], plain: Mapping[str, str], taken: AbstractSet[str], quantity: str
) -> tuple[str, float] | None:
    """The first of a quantity's words that the file holds, the shortest name first, and the factor of its unit."""
    if quantity == "name":
        # `model.name` and `optimizer.name` name no run; a section of the run's own may hold its `run_name`.
        originals = [name for name in originals if "." not in plain[name]] + [
            name for name in originals if re.search(r"\.(run|run_name|exp_name|experiment_name)$", plain[name])
        ]
    for word in words:
        found = [name for name in originals if name not in taken and _same(name, plain[name], word)]
        if found:
            return min(found, key=len), 1.0
    if quantity in COUNTED:
        for name in originals:
            bare = plain[name]
            unit = _UNIT_SUFFIX.search(bare)
            if name in taken or unit is None:
                continue
            bare = _UNIT_SUFFIX.sub("", bare)
            if any(matches(bare, word) for word in words if len(word) > 2):
                return name, _FACTORS[(unit[1] or unit[2])[0]]
    return None


def _same(name: str, plain: str, word: str) -> bool:
    """One letter names a quantity in capitals alone, but for Step Law's lower-case width."""
    if len(word) == 1 and word != "h":
        return name == word.upper() or name.endswith(f".{word.upper()}")
    return matches(plain, word)


def read_facts(values: Mapping[str, Any], reading: Reading) -> tuple[Facts, dict[str, str]]:
    """The quantities of one run, in the units of `QUANTITIES`, and what was not taken and why."""
    facts: Facts = {}
    refused: dict[str, str] = {}
    for quantity, (name, factor) in reading.names.items():
        value = values.get(name)
        if value is None or (isinstance(value, str) and not value.strip()) or value == "None":
            continue
        if quantity in TEXTS:
            if not (quantity in ("optimizer", "schedule") and not isinstance(value, str)):
                facts[quantity] = value
            continue
        number = number_of(value, quantity in COUNTED or quantity in SUFFIXED)
        if number is None:
            refused[name] = (
                f"{short(value, 40)} is no number" if not isinstance(value, list) else "a list, not one number"
            )
        elif number <= 0 and quantity in POSITIVE:
            refused[name] = f"{number:g} says that it is not set"
        elif quantity in COUNTED and 0 < number * factor < SMALLEST_COUNT and "batch_tokens" not in quantity:
            refused[name] = f"{number:g} is too small for a count and its unit is unknown; rename it, such as {name}_m"
        else:
            facts[quantity] = number * factor if factor != 1 else number
    for name, theirs in reading.fields.items():
        value = values.get(theirs)
        if value is None:
            continue
        field = FIELDS.get(name)
        number = number_of(value, name in SCALED)
        if name in SCALED and field is not None and number is not None and number > field.high:
            # No field of the registry is as large: tokens or parameters themselves, not billions or millions of them.
            facts[SCALED[name][0]] = number
        elif field is not None and field.kind in ("number", "count") and number is None:
            refused[theirs] = f"{short(value, 40)} is no number, {name} wants {field.accepted}"
        elif number is not None and field is not None and field.kind == "number" and not _admits(field, number):
            refused[theirs] = f"{number:g} is no {name}, which is {field.accepted}"
        else:
            _set_field(facts, name, value)
    return facts, refused


def _admits(field: Any, number: float) -> bool:
    return field.low <= number <= field.high or (number == 0 and bool(field.zero))


def _set_field(facts: Facts, name: str, value: Any) -> None:
    """A field of the registry as the quantity it is, so that others follow from it."""
    if name in SCALED:
        quantity, factor = SCALED[name]
        number = number_of(value, counted=True)
        if number is not None:
            # "302M" is counted already, 302 is in the field's unit.
            facts[quantity] = number if isinstance(value, str) and number_of(value) is None else number * factor
        return
    target = FACT_OF.get(name)
    if target is None:
        facts.setdefault("fields", {})[name] = value
    else:
        facts[target] = value if target in TEXTS or number_of(value) is None else number_of(value)


def translate(
    values: Mapping[str, Any],
    reading: Reading | None = None,
    assigned: Mapping[str, Any] | None = None,
    extra: Mapping[str, tuple[Any, str]] | None = None,
    complete: bool = True,
) -> Translation:
    """One configuration under the registry's names.

    Args:
        values: as the file holds them, flattened.
        reading: which names stand for what; of these values alone when absent.
        assigned: fields of the registry, or quantities such as `devices`, that the user adds.
        extra: quantities known from elsewhere, such as the run's last logged step, and how.
        complete: whether these are a whole configuration, in which a key that is absent has its default; a table's
            columns are some of it.

    >>> found = translate({"batch_size": 12, "block_size": 1024, "gradient_accumulation_steps": 40, "max_iters": 600000,
    ...                    "lr_decay_iters": 600000})
    >>> found.fields["batch size"], found.fields["seq len"], found.fields["data size"]
    (480, 1024, 294.912)
    >>> found.needs
    ['model size (million non-embedding parameters) or num layers, hidden dim, ffn dim', 'learning rate (peak)']
    """
    reading = reading or read_names(values)
    facts, told, defaulted = _facts_of(values, reading, assigned or {}, extra or {}, complete)
    return _derived(facts, told, defaulted, reading)


def translate_together(
    parts: Sequence[Mapping[str, Any]], assigned: Mapping[str, Any], extra: Mapping[str, tuple[Any, str]]
) -> Translation:
    """One run's configuration that stands in several files, each in its own framework's names.

    What any file says comes before what another one's framework has as its default.

    Args:
        parts: of each file the flattened values.
        assigned, extra: as `translate` takes.

    >>> model = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 256}
    >>> found = translate_together([model, {"train_batch_size": 8, "zero_optimization.stage": 1}], {"seq len": 128}, {})
    >>> found.fields["batch size"], found.fields["model size"], found.reading.framework.name
    (8, 0.131072, 'Hugging Face Trainer')
    """
    readings = [read_names(part) for part in parts]
    main = max(readings, key=lambda reading: (reading.framework is not GENERIC, len(reading.names)))
    together = Reading(main.framework)
    facts: Facts = {}
    told: dict[str, str] = {}
    filled: Facts = {}
    for part, reading in zip(parts, readings, strict=True):
        own, how, defaulted = _facts_of(part, reading, {}, {}, True)
        default = {*defaulted, *(name for name, why in how.items() if why.startswith("default of"))}
        for name, value in own.items():
            (filled if name in default else facts).setdefault(name, value)
        told = how | told
        told |= {name: f"default of {reading.framework.name}" for name in defaulted if name not in told}
        together.names = reading.names | together.names
        together.fields = reading.fields | together.fields
        together.ignored |= reading.ignored
    given = {name: value for name, (value, _) in extra.items() if name not in facts}
    told |= {name: extra[name][1] for name in given}
    facts = filled | given | facts
    # A default that another file's value replaces is none.
    told = {name: why for name, why in told.items() if not why.startswith("default of") or facts[name] == filled[name]}
    _assign(facts, assigned)
    return _derived(facts, told, [], together)


def _facts_of(
    values: Mapping[str, Any],
    reading: Reading,
    assigned: Mapping[str, Any],
    extra: Mapping[str, tuple[Any, str]],
    complete: bool,
) -> tuple[Facts, dict[str, str], list[str]]:
    """The quantities of one file by its framework's rules, how some came about, and which are its defaults."""
    facts, refused = read_facts(values, reading)
    told: dict[str, str] = {}
    for ours, theirs in reading.fields.items():
        quantity, factor = SCALED.get(ours, ("", 1.0))
        number = number_of(values.get(theirs))
        if quantity in facts and number is not None and facts[quantity] == number:
            told[quantity] = f"{theirs} {number:g} is a plain count, taken over {factor:g}"
    for name, (value, how) in extra.items():
        if name not in facts:
            facts[name], told[name] = value, how
    _assign(facts, assigned)
    facts["complete"] = complete
    defaulted = _defaults(facts, reading.framework) if complete else []
    if reading.framework.rules is not None:
        told.update(reading.framework.rules(facts, _plainly(values)))
    reading.ignored.update(refused)
    return facts, told, defaulted


def _assign(facts: Facts, assigned: Mapping[str, Any]) -> None:
    """What the user adds, in place: fields of the registry, or quantities such as `devices`."""
    for name, value in assigned.items():
        known = field_name(name)
        if known is None and name in QUANTITIES:
            facts[name] = number_of(value, name in COUNTED) if name not in TEXTS else value
            accepted = None if facts[name] is not None else "a number"
        else:
            field = FIELDS.get(known or name)
            numeric = field is not None and field.kind in ("number", "count") and not isinstance(value, list)
            accepted = None if field is None or not numeric or number_of(value, True) is not None else field.accepted
            _set_field(facts, known or name, value)
        if accepted is not None:
            raise ValueError(f"{one_line(name, 60)}: got {short(value)}, expected {accepted}")


def _derived(facts: Facts, told: dict[str, str], defaulted: Iterable[str], reading: Reading) -> Translation:
    fields = derive(facts, told)
    for name in defaulted:
        told.setdefault(name, f"default of {reading.framework.name}")
    fields.update(facts.get("fields", {}))
    derived = {_mapped(name) or name: how for name, how in told.items() if _mapped(name) in fields or name == "width"}
    return Translation(fields, facts, reading, derived, missing(fields, facts))


def _defaults(facts: Facts, framework: Framework) -> list[str]:
    """Fills in the framework's defaults; names what was filled in."""
    given = set(facts)
    # One quantity under another unit or name is given too.
    alike = (
        {
            "warmup",
            "warmup_steps",
            "warmup_tokens",
            "warmup_samples",
            "warmup_share",
            "warmup_decay_share",
            "warmup_in_units",
        },
        {"min_lr", "min_lr_ratio"},
        {"beta1", "betas"},
        {"beta2", "betas"},
    )
    filled = []
    for name, value in framework.defaults.items():
        same = next((group for group in alike if name in group), {name})
        if name in ("beta1", "beta2"):
            same = {name, "betas"}
        if name == "betas":
            same = {"betas", "beta1", "beta2"}
        if not same & given:
            facts[name] = value
            filled.append(name)
    return filled


def _plainly(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values under their last plain word too, for the rules of a framework."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        plain = plain_name(name)
        found.setdefault(plain.rpartition(".")[2], value)
        found[plain] = value
    return found


# ------------------------------------------------------------------------------------------------ for predictions


def is_ours(values: Mapping[str, Any]) -> bool:
    """Whether a configuration is written in the registry's own names.

    >>> is_ours({"source": "marin", "model size": 300, "learning rat": 1e-3}), is_ours({"n_layer": 2, "block_size": 8})
    (True, False)
    """
    if any(isinstance(value, Mapping) for value in values.values()):
        return False
    values = {name: value for name, value in values.items() if name}
    if {"source", "model size", "data size"} & {field_name(name) for name in values}:
        return True
    return (
        bool(values)
        and all(field_name(name) for name in values)
        and (recognise(map(plain_name, values)) is GENERIC or any(" " in name for name in values))
    )


def _within(needs: list[str], room: int) -> str:
    """All that is missing in so many characters: units go, the longest first, before a name would be cut."""
    needs = list(needs)
    while len("; ".join(needs)) > room:
        longest = max(needs, key=lambda need: len(re.findall(r" \(.*?\)", need)) and len(need))
        bare = re.sub(r" \(.*?\)", "", longest)
        if bare == longest:
            break
        needs[needs.index(longest)] = bare
    return "; ".join(needs)


def to_forecast(found: Translation, at: str = "") -> dict[str, Any]:
    """A translated configuration as one to forecast, its fields in the registry's order.

    Args:
        found: the configuration.
        at: file and run, in front of the message.

    Raises:
        ValueError: everything that is missing, with units, in one message.
    """
    if found.needs:
        read = ("model size", "data size", "batch size")
        known = ", ".join(f"{name} {found.fields[name]:g}" for name in read if name in found.fields)
        known = f" (read: {known})" if known else ""
        start, end = f"{at}{found.reading.framework.name}: missing ", f"; add FIELD=VALUE{known}"
        raise ValueError(start + _within(found.needs, MOST_MESSAGE - len(start + end)) + end)
    fields = dict(found.fields)
    unknown = [name for name in fields if name not in FIELDS]
    if unknown:
        raise ValueError(one_line(at + unknown_field(unknown[0])))
    if "source" not in fields:
        fields["source"] = UNSEEN_SOURCE
        found.derived["source"] = "none is named; a lab that the model has not seen"
    return {name: fields[name] for name in FIELDS if name in fields}


def describe(found: Translation) -> list[str]:
    """The mapping in lines: theirs -> ours, what was derived and how, what was left out."""
    reading = found.reading
    pairs = [
        (name, _mapped(quantity) or QUANTITIES.get(quantity, quantity)) for quantity, (name, _) in reading.names.items()
    ]
    pairs += [(theirs, ours) for ours, theirs in reading.fields.items() if theirs != ours]
    lines = [f"read as {reading.framework.name}"]
    if pairs:
        lines.append("names: " + ", ".join(f"{theirs} -> {ours}" for theirs, ours in pairs))
    if found.derived:
        told = (f"{name}{_value(found.fields.get(name))} ({how})" for name, how in found.derived.items())
        lines.append("derived: " + "; ".join(told))
    refused = [f"{name} ({why})" for name, why in reading.ignored.items() if why not in _PLAIN_REASONS]
    if refused:
        lines.append(f"not taken: {'; '.join(refused[:10])}")
    if reading.ignored:
        more = f" and {len(reading.ignored) - 20} more" if len(reading.ignored) > 20 else ""
        lines.append(f"left out: {', '.join(list(reading.ignored)[:20])}{more}")
    return [one_line(line, 2000) for line in lines]


def _value(value: Any) -> str:
    if value is None:
        return ""
    return f" {value:.6g}" if isinstance(value, int | float) and not isinstance(value, bool) else f" {value}"
