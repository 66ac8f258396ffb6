"""Which prompts of a log to ask when a budget does not pay for all: a stratified sample that can be weighted back.

Pure. Prompts are grouped by domain, length and, where the log says, the tier that served them; each
group gets its share of the budget, rare ones a little more. A group's prompts stand in an order that
depends on the seed and their ids alone (permanent random numbers, Ohlsson 1995), and the first ones
are drawn: the same prompts for the same seed on any machine, and a larger budget keeps those of a
smaller one. Each drawn prompt weighs one over the probability with which it was drawn (Horvitz and
Thompson 1952): weighted sums are unbiased for the whole log.
"""

import hashlib
import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmtier.core.prompt import Prompt

FLOOR = 2
"""Prompts drawn of every group that has so many: fewer would not tell how much the group's scores differ."""

_LENGTH_NAMES = ("short", "medium", "long")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Stratum:
    """What the prompts of one group have in common; ``None`` where it was left aside or is unknown.

    Attributes:
        domain: The user's label.
        length: ``short``, ``medium`` or ``long``: which third of the log by characters.
        tier: Who served it.
    """

    domain: str | None = None
    length: str | None = None
    tier: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One group of the plan.

    Attributes:
        stratum: The group.
        n_total: Its prompts.
        n_drawn: How many of them are asked, at least 1.
    """

    stratum: Stratum
    n_total: int
    n_drawn: int

    @property
    def weight(self) -> float:
        """How many prompts of the group each drawn one stands for."""
        return self.n_total / self.n_drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Who is asked.

    Attributes:
        prompts: The drawn prompts, in the order of the log.
        weights: Prompt id to one over the probability of having been drawn.
        shares: The groups, sorted.
        n_total: Prompts that could have been drawn.
        seed: Of the draw.
    """

    prompts: tuple[Prompt, ...]
    weights: Mapping[str, float]
    shares: tuple[Share, ...]
    n_total: int
    seed: int

    @property
    def digest(self) -> str:
        """A digest of who is asked and with which weight: two runs with the same one ask the same."""
        lines = (f"{prompt.id}\0{self.weights[prompt.id]!r}\n" for prompt in self.prompts)
        return hashlib.sha256("".join(lines).encode(errors="surrogatepass")).hexdigest()[:12]


def plan_sample(
    prompts: Sequence[Prompt], *, n: int | None, seed: int, served_by: Mapping[str, str] | None = None
) -> Plan:
    """Draw ``n`` prompts, stratified; all of them, each of weight 1, when ``n`` is ``None`` or not less than there are.

    Args:
        prompts: The log; ids are unique.
        n: Prompts that the budget pays for, at least 1.
        seed: Of the draw.
        served_by: Prompt id to the tier that served it, where known.

    Raises:
        ValueError: ``n`` is below 1.
    """
    if n is not None and n < 1:
        raise ValueError(f"a sample needs at least one prompt, got {n}")
    strata = choose_strata(prompts, n=len(prompts) if n is None else n, served_by=served_by or {})
    members: dict[Stratum, list[Prompt]] = defaultdict(list)
    for prompt, stratum in zip(prompts, strata, strict=True):
        members[stratum].append(prompt)
    sizes = {stratum: len(members[stratum]) for stratum in sorted(members, key=_sort_key)}
    drawn = allocate(sizes, n=len(prompts) if n is None else n)
    weights = {
        prompt.id: sizes[stratum] / drawn[stratum]
        for stratum in sizes
        for prompt in sorted(members[stratum], key=lambda prompt: draw_number(prompt.id, seed))[: drawn[stratum]]
    }
    return Plan(
        prompts=tuple(prompt for prompt in prompts if prompt.id in weights),
        weights=weights,
        shares=tuple(Share(stratum=key, n_total=size, n_drawn=drawn[key]) for key, size in sizes.items()),
        n_total=len(prompts),
        seed=seed,
    )


def draw_number(prompt_id: str, seed: int) -> bytes:
    """Return the prompt's random number: prompts of a group are drawn from the smallest up."""
    return hashlib.sha256(f"{seed}\0{prompt_id}".encode(errors="surrogatepass")).digest()


def choose_strata(prompts: Sequence[Prompt], *, n: int, served_by: Mapping[str, str]) -> list[Stratum]:
    """Return each prompt's group, as fine as ``n`` allows: the groups' floors take at most half of it.

    Every group must have a drawn prompt, else its prompts would have no chance at all and no weight could
    make up for them. So where groups are many, first the tier is left aside, then the length, then the domain.
    """
    lengths = _length_names(prompts)
    full = [
        Stratum(domain=prompt.domain, length=length, tier=served_by.get(prompt.id))
        for prompt, length in zip(prompts, lengths, strict=True)
    ]
    candidates = (
        full,
        [Stratum(domain=stratum.domain, length=stratum.length) for stratum in full],
        [Stratum(domain=stratum.domain) for stratum in full],
    )
    for strata in candidates:
        if n >= len(prompts) or _floor_total(strata) <= n / 2:
            return strata
    return [Stratum()] * len(prompts)


def allocate(sizes: Mapping[Stratum, int], *, n: int) -> dict[Stratum, int]:
    """Share ``n`` prompts among groups in proportion to their sizes, none below its floor or above its size.

    After the floors each further prompt goes to the group with the largest size per twice what it has plus one
    (Webster's divisors), so a larger ``n`` never gives any group less.

    Raises:
        ValueError: ``n`` does not pay the floors of several groups.
    """
    floors = {key: min(size, FLOOR) for key, size in sizes.items()}
    n_wanted = min(n, sum(sizes.values()))
    if n_wanted == sum(sizes.values()):
        return dict(sizes)
    if len(sizes) == 1:
        return dict.fromkeys(sizes, n_wanted)
    if n_wanted < sum(floors.values()):
        raise ValueError(f"{n} prompts are fewer than the floors of {len(sizes)} groups")
    queue = [(-size / (2 * floors[key] + 1), place, key) for place, (key, size) in enumerate(sizes.items())]
    heapq.heapify(queue)
    shares = dict(floors)
    for _ in range(n_wanted - sum(floors.values())):
        while shares[queue[0][2]] == sizes[queue[0][2]]:
            heapq.heappop(queue)
        _, place, key = queue[0]
        shares[key] += 1
        heapq.heapreplace(queue, (-sizes[key] / (2 * shares[key] + 1), place, key))
    return shares


def _length_names(prompts: Sequence[Prompt]) -> list[str]:
    """Return which third of the log each prompt belongs to by its characters; equal lengths stay together."""
    lengths = [sum(len(message.content) for message in prompt.messages) for prompt in prompts]
    ordered = sorted(lengths)
    cuts = [ordered[len(ordered) * third // 3] for third in (1, 2)] if ordered else []
    return [_LENGTH_NAMES[sum(length >= cut for cut in cuts)] for length in lengths]


def _floor_total(strata: Sequence[Stratum]) -> int:
    sizes: dict[Stratum, int] = defaultdict(int)
    for stratum in strata:
        sizes[stratum] += 1
    return sum(min(size, FLOOR) for size in sizes.values())


def _sort_key(stratum: Stratum) -> tuple[str, int, str]:
    length = _LENGTH_NAMES.index(stratum.length) if stratum.length in _LENGTH_NAMES else -1
    return (stratum.domain or "", length, stratum.tier or "")
