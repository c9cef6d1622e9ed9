"""YAML for people: comments first, keys in the order given, shell scripts as blocks."""

from __future__ import annotations

from typing import Any

import yaml


def yaml_document(comments: list[str], body: dict[str, Any]) -> str:
    """Return one YAML document under its comments."""

    class Readable(yaml.SafeDumper):
        """Dumper with texts of several lines as literal blocks; no wrapping, which would break commands; no
        references."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dump: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dump.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Readable.add_representer(str, text)
    head = "".join(f"# {line}\n" for line in comments)
    return head + yaml.dump(body, Dumper=Readable, sort_keys=False, width=10_000, allow_unicode=True)
