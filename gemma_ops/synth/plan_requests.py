"""Planning of requests: rows asked for are spread evenly over documents first, then over their sections.

The order depends on the seed and on the material, never on when or how often the step is started.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from gemma_ops.config import SynthConfig
from gemma_ops.errors import BoundaryError, ConfigError
from gemma_ops.privacy.text_copies import PrivateTexts
from gemma_ops.synth import methods
from gemma_ops.synth.material import Item, Material, Pool, of_section, of_seed, of_seeds, read_seeds, read_tools
from gemma_ops.synth.sections import split
from gemma_ops.synth.sources import ingest, strictest_copies
from gemma_ops.synth.stricter import tighten


def gather(
    settings: SynthConfig,
    *,
    documents: Path | None,
    seeds: Path | None,
    tools: Path | None,
    private: PrivateTexts | None = None,
) -> Pool:
    """Read everything there is to write from; a source that holds a stricter text takes its class. `private` are texts
    from elsewhere in the run, and grows by those found here.

    Raises ConfigError when a method has nothing, DataError on bad files.
    """
    given = {"documents": documents, "seeds": seeds, "tools": tools}
    wanted = {name: count for name, count in counts(settings).items() if count}
    if not wanted:
        raise ConfigError("synth.count asks for no rows", "for example --set synth.count.document_qa=200")
    for name in wanted:
        needs = methods.METHODS[name].from_what
        if needs in given and given[needs] is None:
            raise ConfigError(f"synth.count.{name} needs synth.{needs}", f"give a path: --set synth.{needs}=…")
    if "evolve" in wanted and not {"document_qa", "self_instruct"} & wanted.keys() and seeds is None:
        raise ConfigError(
            "synth.count.evolve has no rows to start from",
            "ask for document_qa or self_instruct too, or give synth.seeds",
        )
    found = ingest(documents, settings.privacy) if documents else None
    known = PrivateTexts() if private is None else private
    originals = strictest_copies(found.documents if found else (), lambda document: document.group)
    shown, examples = tighten(originals, read_seeds(seeds, settings.privacy) if seeds else (), known)
    return Pool(
        sections=tuple(section for document in shown for section in split(document, settings.section_words)),
        seeds=tuple(examples),
        tools=read_tools(tools, settings.privacy) if tools else None,
        unread=found.unread if found else (),
    )


def counts(settings: SynthConfig) -> dict[str, int]:
    """Return the rows asked for, by method."""
    count = settings.count
    return {
        "document_qa": count.document_qa,
        "self_instruct": count.self_instruct,
        "evolve": count.evolve,
        "tool_calls": count.tool_calls,
        "preferences": count.preferences,
    }


def first(settings: SynthConfig, pool: Pool) -> list[Item]:
    """Return the requests from documents, seeds and tools."""
    sections = [of_section(section) for section in pool.sections]
    bundles = of_seeds(list(pool.seeds))
    items: list[Item] = []
    for name, count in counts(settings).items():
        needs = methods.METHODS[name].from_what
        materials = {"documents": sections, "seeds": bundles, "tools": [pool.tools] if pool.tools else []}.get(needs)
        if count and materials is not None:
            items += spread_requests(name, count, materials, settings.per_request, settings.seed)
    return items


def second(settings: SynthConfig, pool: Pool, rows: Sequence[Material]) -> list[Item]:
    """Return the requests from rows that passed the checks; without any, from the seeds."""
    count = settings.count.evolve
    if not count:
        return []
    groups = {seed.id: bundle.group for bundle in of_seeds(list(pool.seeds)) for seed in bundle.seeds}
    parents = rows or [of_seed(seed, groups[seed.id]) for seed in pool.seeds]
    return spread_requests("evolve", count, parents, 1, settings.seed) if parents else []


def spread_requests(method: str, count: int, materials: Iterable[Material], most: int, seed: int) -> list[Item]:
    """Return requests of at most `most` rows each for `count` rows in all: every group once before any twice, likewise
    its parts."""
    by_group: dict[str, list[Material]] = defaultdict(list)
    for material in materials:
        by_group[material.group].append(material)
    groups = sorted(by_group, key=lambda group: _draw(seed, method, group))
    for group in groups:
        by_group[group].sort(key=lambda material: _draw(seed, method, material.id))
    items: list[Item] = []
    visit = 0
    while count > 0 and groups:
        for group in groups:
            parts = by_group[group]
            wanted = min(most, count)
            items.append(Item(method, parts[visit % len(parts)], wanted, visit // len(parts)))
            count -= wanted
            if count == 0:
                break
        visit += 1
    return items


def _draw(seed: int, *names: str) -> bytes:
    return hashlib.blake2b("\0".join([str(seed), *names]).encode(), digest_size=8).digest()


def visible(items: Sequence[Item], sees: frozenset[str], settings: SynthConfig) -> tuple[list[Item], list[str]]:
    """Return the requests that the teacher may see, and the names of what is left out for privacy.

    Raises BoundaryError with `hidden: refuse` when there is any of the latter, and when nothing else is left.
    """
    kept = [item for item in items if item.material.privacy in sees]
    hidden = unseen(items, sees)
    if hidden and (settings.hidden == "refuse" or not kept):
        classes = sorted({item.material.privacy for item in items} - sees)
        much = (
            f"{len(hidden)} of the sources, which are" if kept or settings.hidden == "refuse" else "any source: all are"
        )
        ways = ["take a local teacher"]
        ways += ["leave them out with --set synth.hidden=skip"] if settings.hidden == "refuse" else []
        ways += ["declare machine.gemini.tier=paid where billing is linked"] if "paid" in classes else []
        raise BoundaryError(
            f"the teacher {settings.teacher} may not see {much} {' or '.join(classes)} (the first: {hidden[0]}"
            f"{_because(items, hidden[0])})",
            f"{', '.join(ways)}, or relax synth.privacy (then every source that states no stricter class may leave the "
            f"machine)",
        )
    return kept, hidden


def _because(items: Sequence[Item], name: str) -> str:
    """Return whose text made a source as strict as it is, where it says less of itself."""
    sections = (item.material.section for item in items if item.material.name == name)
    because = next((section.document.because for section in sections if section and section.document.because), "")
    return f", which holds text of {because}" if because else ""


def gradable(items: Sequence[Item], sees: frozenset[str], settings: SynthConfig) -> None:
    """Raise BoundaryError when the judge may not see rows that these requests are for, before the teacher is paid."""
    if hidden := unseen(items, sees):
        classes = sorted({item.material.privacy for item in items} - sees)
        raise BoundaryError(
            f"the judge {settings.judge} may not see {len(hidden)} of the sources, which are {' or '.join(classes)} "
            f"(the first: {hidden[0]}); nothing was asked of the teacher for them",
            "take a local judge, none with --set synth.judge=null, or relax synth.privacy (then every source that "
            "states no stricter class may leave the machine)",
        )


def unseen(items: Sequence[Item], sees: frozenset[str]) -> list[str]:
    """Return the names of the sources that may not be shown to a model that sees only these classes."""
    return list(dict.fromkeys(item.material.name for item in items if item.material.privacy not in sees))
