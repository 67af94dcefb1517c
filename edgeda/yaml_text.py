"""YAML from somebody else: safe tags only, each key once, and no more values than the text is worth."""

from __future__ import annotations

from typing import Any

import yaml

MOST_CHARACTERS = 500_000
MOST_VALUES = 200_000
"""Values once every alias is written out: what a few lines of aliases of aliases would otherwise multiply to."""
DEEPEST = 100


def parse_yaml(text: str) -> Any:
    """The value in `text`; ValueError says in one line why there is none."""
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"{len(text)} characters are too many (at most {MOST_CHARACTERS})")
    try:
        loader = _OnceEach(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _count(node, {}, 0)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (yaml.YAMLError, OverflowError, TypeError) as error:
        raise ValueError(" ".join(str(error).split())[:200]) from error


def _count(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """Values below a node with aliases written out; ValueError for too many, too deep, or a node within itself."""
    if id(node) in known:
        if known[id(node)] < 0:
            raise ValueError("it holds itself (an alias inside of its own anchor)")
        return known[id(node)]
    if depth > DEEPEST:
        raise ValueError(f"it is nested more than {DEEPEST} deep")
    known[id(node)] = -1
    total = 1
    if isinstance(node, yaml.SequenceNode):
        total += sum(_count(child, known, depth + 1) for child in node.value)
    elif isinstance(node, yaml.MappingNode):
        total += sum(_count(child, known, depth + 1) for pair in node.value for child in pair)
    elif isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:int" and len(node.value) > 40:
        raise ValueError(f"a number of {len(node.value)} characters")  # base 60 takes the square of their number
    if total > MOST_VALUES:
        raise ValueError(f"it holds more than {MOST_VALUES} values")
    known[id(node)] = total
    return total


class _OnceEach(yaml.SafeLoader):
    """YAML in which a key that is there twice is an error, not the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            line = key.start_mark.line + 1
            if key.value in seen:
                raise ValueError(f"'{key.value[:80]}' is there twice, in lines {seen[key.value]} and {line}")
            seen[key.value] = line
        return super().construct_mapping(node, deep)
