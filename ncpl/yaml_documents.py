"""YAML as configurations have it: version 1.2, without objects, no key twice."""

import functools
import re
from collections import Counter
from typing import Any

from ncpl.errors import one_line, short
from text_ncpl import read_number


def read_yaml(text: str) -> Any:
    """A YAML 1.2 document, or a list of several; a tag of another program leaves what follows it plain.

    Raises:
        ValueError: it is no YAML, gives a key twice, or has a tag that would make a Python object.

    >>> read_yaml("lr: 1e-3\\ndata: !include mix.yaml\\nnesterov: no")
    {'lr': 0.001, 'data': 'mix.yaml', 'nesterov': 'no'}
    """
    import yaml

    try:
        documents = [document for document in yaml.load_all(text, _yaml_loader()) if document is not None]
    except yaml.YAMLError as error:
        # PyYAML names a text that has no file in front of each place.
        said = str(error).replace('in "<unicode string>", ', "at ")
        raise ValueError(f"not YAML: {' '.join(said.split())}") from None
    return documents[0] if len(documents) == 1 else documents or None


@functools.cache
def _yaml_loader() -> Any:
    """YAML 1.2's numbers and booleans (1.1 takes 1e-4 for text, `no` for false and 2:08 for 128), no key twice."""
    import yaml

    # The C parser is ten times as fast, and some builds of PyYAML lack it.
    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            if not isinstance(node, yaml.MappingNode):
                raise ValueError(f"a YAML tag at line {node.start_mark.line + 1} that does not fit, expected none")
            keys = Counter((key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            line = node.start_mark.line + 1
            if len(keys) < len(node.value):
                key, count = keys.most_common(1)[0] if keys else (("", ""), 0)
                told = f"{one_line(key[1], 60)}: given twice" if count > 1 else "a key that is no text"
                raise ValueError(f"{told} in the mapping that starts at line {line}")
            return super().construct_mapping(node, deep)

        def construct_object(self, node: Any, deep: bool = False) -> Any:
            if node.tag.startswith("tag:yaml.org,2002:python"):
                raise ValueError(
                    f"a YAML tag ({one_line(node.tag, 60)}) at line {node.start_mark.line + 1}, expected none"
                )
            if node.tag not in _YAML_TAGS:
                # `!include x.yaml` and the like are for another program; what follows them is plain.
                kind = {yaml.SequenceNode: "seq", yaml.MappingNode: "map"}.get(type(node), "str")
                node.tag = f"tag:yaml.org,2002:{kind}"
            try:
                return super().construct_object(node, deep)
            except ValueError as error:
                if isinstance(node, yaml.ScalarNode):
                    raise ValueError(f"{error}, at line {node.start_mark.line + 1}") from None
                raise

    plain = {
        "int": r"[-+]?[0-9]+",
        "bool": r"true|True|TRUE|false|False|FALSE",
        "null": r"~|null|Null|NULL|",
        "merge": "<<",
    }
    plain["float"] = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
    Loader.yaml_implicit_resolvers = {}
    for name, pattern in plain.items():
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(f"^({pattern})$"), None)
    # In 1.1 a leading zero makes a number octal.
    Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: _whole(node.value))
    return Loader


_YAML_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("int", "bool", "null", "float", "str", "seq", "map", "merge")}


def _whole(text: str) -> Any:
    value = read_number(text)
    if value is not None:
        return value
    raise ValueError(f"got {short(text)}, expected a whole number")
