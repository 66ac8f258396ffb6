"""Generate the support-desk task mix of the demo: five kinds of short question with one right answer.

Reads nothing and writes nothing; everything is drawn from a seeded generator of the standard library. A hash of
the question decides which split may use it, so no question of one split can appear in another. The file does not
train, ask or score a model.
"""

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from wordlists import CITIES, CLOSERS, INTENTS, ITEMS, NAMES, OPENERS, WORDS

KIND_SHARES = {"intent": 0.25, "order_id": 0.20, "json": 0.20, "sort": 0.15, "total": 0.20}
"""Share of each kind in the traffic."""

SPLIT_BUCKETS = {
    "train": range(70),
    "evaluation": range(70, 77),
    "traffic": range(77, 87),
    "heldout": range(87, 95),
    "calibration": range(95, 100),
}
"""Hash buckets, of 100, that each split may draw from."""

MIN_PROMPT_CHARS = 20
MAX_PROMPT_CHARS = 110
MAX_ANSWER_CHARS = 45


@dataclass(frozen=True)
class Task:
    """One question with its right answer.

    Attributes:
        kind: Which of the five kinds the question belongs to; for people and plots, not for a router.
        prompt: The question, as the user types it.
        answer: The right answer.
        scorer: How to compare: `exact`, `number` or `json`.
        split_key: The text whose hash decides the split.
    """

    kind: str
    prompt: str
    answer: str
    scorer: str
    split_key: str


def bucket_of(text: str) -> int:
    """Return the hash bucket of a text, 0 to 99."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") % 100


def make_intent(rng: random.Random) -> Task:
    """Draw a customer message that is to be given one of eight labels."""
    label = rng.choice(sorted(INTENTS))
    clause = rng.choice(INTENTS[label]).format(item=rng.choice(ITEMS))
    message = f"{rng.choice(OPENERS)}{clause}{rng.choice(CLOSERS)}"
    frame = rng.choice(("Label this message: {}", "Which topic is this? {}", "{} - topic?", "Pick a label: {}"))
    prompt = frame.format(message)
    return Task("intent", prompt, label, "exact", prompt)


def make_order_id(rng: random.Random) -> Task:
    """Draw a noisy sentence that holds one order number."""
    order = f"ORD-{rng.randrange(10000, 100000)}"
    noise = rng.choice(
        (
            f"call {rng.randrange(100, 1000)}-{rng.randrange(1000, 10000)}",
            f"invoice INV-{rng.randrange(1000, 10000)}",
            f"paid {rng.randrange(10, 400)} on {rng.randrange(1, 29)}/{rng.randrange(1, 13)}",
            f"this is {rng.choice(NAMES)}, box {rng.randrange(10, 1000)}",
            f"the {rng.choice(ITEMS)} again",
        )
    )
    body = rng.choice(
        ("{order} is late, {noise}", "{noise}, my order {order} broke", "re {order}: {noise}", "{noise} ({order})")
    ).format(order=order, noise=noise)
    frame = rng.choice(
        ("Find the order number: {}", "Order number in: {}", "{}. Which order is it?", "Extract the id: {}")
    )
    prompt = frame.format(body)
    return Task("order_id", prompt, order, "exact", prompt)


def make_json(rng: random.Random) -> Task:
    """Draw a sentence whose name, city and quantity are to be copied into JSON."""
    slots = {"name": rng.choice(NAMES), "city": rng.choice(CITIES), "qty": rng.randrange(1, 100)}
    body = rng.choice(
        (
            "{name} from {city} wants {qty}",
            "send {qty} to {name} in {city}",
            "{qty} for {name}, {city}",
            "ship to {city}: {qty} pieces, ask for {name}",
            "{name} ({city}) ordered {qty}",
            "in {city}, {name} needs {qty} more",
        )
    ).format(**slots)
    frame = rng.choice(("As JSON: {}", "Fill the form as JSON: {}", "{}. Give JSON.", "Turn into JSON: {}"))
    prompt = frame.format(body)
    return Task("json", prompt, json.dumps(slots, separators=(",", ":")), "json", prompt)


def make_sort(rng: random.Random) -> Task:
    """Draw four to six short numbers or words that are to be put in order."""
    count = rng.randrange(4, 7)
    form = rng.choice(("up", "up", "down", "words"))
    if form == "words":
        values = rng.sample(WORDS, count)
        answer = sorted(values)
        frame = rng.choice(("Sort these words: {}", "Put in A to Z order: {}", "{} - alphabetical, please"))
    else:
        numbers = rng.sample(range(1, 100), count)
        values = [str(number) for number in numbers]
        answer = [str(number) for number in sorted(numbers, reverse=form == "down")]
        frames = {
            "up": ("Sort, smallest first: {}", "Sort these numbers: {}", "{} - in rising order, please"),
            "down": ("Sort, largest first: {}", "Sort downwards: {}", "{} - in falling order, please"),
        }
        frame = rng.choice(frames[form])
    prompt = frame.format(", ".join(values))
    return Task("sort", prompt, ", ".join(answer), "exact", prompt)


def draw_addends(rng: random.Random) -> tuple[int, int]:
    """Draw two numbers to add, each with two or three digits."""
    limits = ((10, 100), (100, 1000))
    first, second = (rng.randrange(*rng.choice(limits)) for _ in range(2))
    return first, second


def addends_key(first: int, second: int) -> str:
    """Return the split key of a sum: the same for every phrasing and for both orders."""
    return f"sum {min(first, second)} {max(first, second)}"


def make_total(rng: random.Random) -> Task:
    """Draw a sum of two numbers in one of several phrasings."""
    first, second = draw_addends(rng)
    item = rng.choice(ITEMS)
    frame = rng.choice(
        (
            "What do {a} and {b} come to?",
            "Add {a} and {b}, please.",
            "How much is {a} plus {b}?",
            "Total of {a} and {b} for the {item}?",
            "The {item} is {a}, postage {b}: total?",
            "I paid {a} and then {b}. Sum?",
            "Bill of {a} and fee of {b}: how much?",
        )
    )
    prompt = frame.format(a=first, b=second, item=item)
    return Task("total", prompt, str(first + second), "number", addends_key(first, second))


def work_out(task: Task) -> str:
    """Return the answer of a task with its working before it, for a sum; the bare answer for the other kinds.

    A sum is worked out column by column from the right, as on paper: "7+4=11 8+5+1=14 1+2+1=4: 441".
    """
    if task.kind != "total":
        return task.answer
    first, second = (number[::-1] for number in re.findall(r"\d+", task.prompt))
    steps, carry = [], 0
    for place in range(max(len(first), len(second))):
        digits = [number[place] for number in (first, second) if place < len(number)] + ["1"] * carry
        column = sum(map(int, digits))
        steps.append(f"{'+'.join(digits)}={column}")
        carry = column // 10
    return f"{' '.join(steps)}: {task.answer}"


MAKERS: dict[str, Callable[[random.Random], Task]] = {
    "intent": make_intent,
    "order_id": make_order_id,
    "json": make_json,
    "sort": make_sort,
    "total": make_total,
}
"""The generator of each kind."""


def fits(task: Task, split: str) -> bool:
    """Return whether a task belongs to the split and keeps to the length limits."""
    return (
        bucket_of(task.split_key) in SPLIT_BUCKETS[split]
        and MIN_PROMPT_CHARS <= len(task.prompt) <= MAX_PROMPT_CHARS
        and len(task.answer) <= MAX_ANSWER_CHARS
    )


def stream(split: str, rng: random.Random, shares: dict[str, float] | None = None) -> Iterator[Task]:
    """Yield tasks of one split without end; a question may come twice.

    Args:
        split: A key of `SPLIT_BUCKETS`.
        rng: The seeded generator to draw from.
        shares: Share of each kind; `KIND_SHARES` when None.

    Yields:
        The next task.
    """
    weights = shares or KIND_SHARES
    kinds = list(weights)
    while True:
        kind = rng.choices(kinds, weights=list(weights.values()))[0]
        task = MAKERS[kind](rng)
        while not fits(task, split):
            task = MAKERS[kind](rng)
        yield task


def draw(split: str, count: int, seed: int) -> list[Task]:
    """Return `count` tasks of one split, no question twice."""
    rng = random.Random(f"{seed}-{split}")  # noqa: S311  (a repeatable draw, not a secret)
    tasks: dict[str, Task] = {}
    for task in stream(split, rng):
        tasks.setdefault(task.prompt, task)
        if len(tasks) >= count:
            break
    return list(tasks.values())


def as_row(task: Task, row_id: str) -> dict[str, object]:
    """Return a task as one row of a JSON Lines file."""
    return {
        "id": row_id,
        "domain": "support",
        "kind": task.kind,
        "messages": [{"role": "user", "content": task.prompt}],
        "answer": task.answer,
        "scorer": task.scorer,
    }


def is_right(task: Task, reply: str) -> bool:
    """Return whether a reply gives the right answer under the scorer of the task.

    A number is right if it is the last one of the reply, so that a sum may be worked out before it is answered.
    """
    text = reply.strip()
    if task.scorer == "json":
        try:
            return bool(json.loads(text) == json.loads(task.answer))
        except ValueError:
            return False
    if task.scorer == "number":
        numbers = re.findall(r"\d+", text)
        return bool(numbers) and int(numbers[-1]) == int(task.answer)
    return text == task.answer
