"""The C beside numpy: the same bits for any text, and an error for anything that is not what it takes."""

import importlib.util
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmtier.score import domain, native, words
from llmtier.score.blocks import MAX_DEVIATIONS, N_CURVES, N_DENSE, prepare
from llmtier.score.domain import N_COARSE, DomainModel
from llmtier.score.features import LOG_COUNTS, N_NUMERIC, extract_in_numpy, extract_text
from llmtier.score.head import Head
from llmtier.score.learned import LEARNED, extract_prompt, fit_learned
from llmtier.score.learned_model import load_model
from llmtier.score.signals import NO_SIGNALS
from llmtier.score.text import cut_text
from llmtier.score.words import N_BUCKETS

ROOT = Path(__file__).parents[2]
PECULIAR = " \n\t\u00a0\u3000aAbZ059_-+=?{\u0130\u03a3\u03c3\u00df\u1e9e\u0663\u4e2d\uff21\uffff\ufffe\U0001f600\U00010400\ud800\udfff\0\1\2\3"
characters = st.one_of(st.sampled_from(PECULIAR), st.characters(codec=None))
texts = st.one_of(
    st.text(characters, max_size=300),
    st.text(st.characters(max_codepoint=127), max_size=300),
    st.tuples(st.text(characters, min_size=1, max_size=9), st.integers(1, 40_000)).map(lambda pair: pair[0] * pair[1]),
)


def build(folder, *extra):
    """Compile the C of this checkout; skips where there is no compiler."""
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    hatch_build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hatch_build)
    path = folder / "_native.abi3.so"
    if reason := hatch_build.find_obstacle():
        pytest.skip(reason)
    try:
        hatch_build.compile_native(path, extra=("-Wall", "-Wextra", "-Werror", *extra))
    except hatch_build.CannotCompileError as exc:
        if "No such file" in str(exc):
            pytest.skip(str(exc))
        raise
    return path


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Return the module compiled from the source as it stands, never one that was left behind."""
    spec = importlib.util.spec_from_file_location("llmtier.score._native", build(tmp_path_factory.mktemp("native")))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def choose(compiled, monkeypatch):
    """Return a function that makes everything laid out from now on run in C, or in numpy."""

    def forget():
        native.find_native.cache_clear()
        words.native_reader.cache_clear()

    def chosen(*, pure, module=compiled):
        monkeypatch.setenv(native.PURE_VARIABLE, "1" if pure else "")
        monkeypatch.setitem(sys.modules, "llmtier.score._native", module)
        forget()

    yield chosen
    forget()


@pytest.fixture(scope="module")
def read(compiled):
    """Return a function that reads a text in C."""
    ascii_reader = compiled.Reader(words._ASCII.kinds, words._ASCII.values)
    wide_reader = compiled.Reader(*words.wide_tables())
    return lambda text: (ascii_reader if text.isascii() else wide_reader).read(text, len(text))


def test_any_text_has_the_same_features(read):
    @settings(deadline=None, max_examples=600)
    @given(texts)
    @example("")
    @example("\0")
    @example("a\uffff")
    @example("ΑΣ ΟΔΟΣ. ΣΑΣ")
    @example("?" * 4_001)
    @example("A{=1\n?" * 3_000)
    def check(text):
        cut = cut_text(text)
        expected = extract_in_numpy(cut, len(cut))
        buckets, counts, numeric = read(cut)

        assert expected.buckets.tobytes() == buckets
        assert expected.counts.tobytes() == counts
        assert np.array(expected.numeric).tobytes() == np.array(numeric).tobytes()

    check()


@pytest.mark.parametrize("unit", ["Prove it, 12 times.\n", "中文 a1 ", "\U0001f600İΣ b"])
def test_a_text_of_any_length_is_read(read, unit):
    """Callers cut texts first; whoever does not must not crash."""
    text = unit * (400_000 // len(unit))
    buckets, counts, numeric = read(text)

    assert len(buckets) == len(counts) > 400_000
    assert math.log1p(len(text)) == numeric[0]
    assert len(buckets) // 8 == np.frombuffer(counts, dtype=np.intp).sum()


def test_heads_and_guesses_have_the_same_bits(compiled):
    @settings(deadline=None, max_examples=150)
    @given(st.integers(1, 9), st.integers(1, 70), st.integers(0, 2**32), texts, st.booleans())
    def check(n_tiers, n_domains, seed, text, is_packed):
        draw = np.random.default_rng(seed)
        head, guesser, effects = draw_models(draw, n_tiers, n_domains)
        features = extract_in_numpy(cut_text(text), len(text))
        features = features.packed() if is_packed else features
        in_c = compiled.Head(
            head.table,
            LOG_COUNTS,
            np.array(head.means),
            np.array(head.inverse_deviations),
            head.first,
            head.second,
            MAX_DEVIATIONS,
        )
        guesses = compiled.Guesser(guesser.evidence, guesser.prior, effects, domain._SHIFT)

        assert head.outputs_in_numpy(features) == in_c.outputs(*features)
        assert guesser.expected(features, effects) == guesses.effects(features.buckets)

    check()


PREPARATION = prepare([extract_in_numpy(text, len(text)).packed() for text in ("Add 12.", "Prove it?", "", "x y z")])


def draw_models(draw, n_tiers, n_domains):
    head = Head.make(
        PREPARATION,
        draw.standard_normal((N_BUCKETS, n_tiers)),
        draw.standard_normal((N_DENSE, n_tiers)),
        draw.standard_normal(n_tiers),
        None,
    )
    evidence = draw.standard_normal((N_COARSE, n_domains)).astype(np.float16).astype(np.float32)
    domains = tuple(str(number) for number in range(n_domains))
    guesser = DomainModel(domains=domains, evidence=evidence, prior=draw.standard_normal(n_domains))
    return head, guesser, draw.standard_normal((n_domains, n_tiers))


@pytest.mark.parametrize("with_domains", [False, True])
def test_a_model_says_the_same_in_both(choose, make_labelled, make_prompt, with_domains):
    rows = make_labelled(60, with_domains=with_domains)
    scores = np.array([[row.scores["cheap"], row.scores["dear"]] for row in rows])
    prompts = [
        *(row.prompt for row in rows),
        make_prompt("prove\uffff", "hard"),
        make_prompt("", "?"),
        make_prompt("中文"),
    ]
    said, stored = [], []
    for pure in (True, False):
        choose(pure=pure)
        packed = [LEARNED.pack(extract_prompt(row.prompt, NO_SIGNALS)) for row in rows]
        stored.append(fit_learned(packed, scores, 0).to_bytes())
        model = load_model(stored[0])
        said.append([model.logits(extract_prompt(prompt, NO_SIGNALS)).tolist() for prompt in prompts])

    assert stored[0] == stored[1]
    assert said[0] == said[1]


def test_the_environment_leaves_it_out(choose):
    choose(pure=True)
    head = draw_models(np.random.default_rng(0), 2, 2)[0]

    assert head.native is None
    assert words.native_reader(is_ascii=True) is None
    assert "numpy, slower (LLMTIER_PURE is set)" == native.find_native().describe()
    choose(pure=False)
    assert draw_models(np.random.default_rng(0), 2, 2)[0].native is not None
    assert extract_text("a b").buckets.dtype == np.intp
    assert "C" == native.find_native().describe()


def test_a_file_of_another_revision_is_left_alone(choose):
    choose(pure=False, module=type(sys)("stale"))
    sys.modules["llmtier.score._native"].REVISION = native.REVISION + 1

    assert not native.find_native().is_native
    assert "install again" in native.find_native().describe()


def test_without_the_file_numpy_serves(choose):
    choose(pure=False, module=None)

    assert extract_text("a b").buckets.size == 3
    assert "not compiled" in native.find_native().describe()


HEAD = {
    "table": np.zeros((16, 2), np.float32),
    "logs": np.zeros(5),
    "means": np.zeros(N_NUMERIC),
    "inverses": np.ones(N_NUMERIC),
    "first": np.zeros((N_NUMERIC + 2, N_CURVES + 1)),
    "second": np.zeros((N_CURVES + 1, 1)),
}
WRONG_HEADS = [
    {"table": np.zeros((16, 2))},
    {"table": np.zeros((16, 1), np.float32)},
    {"table": np.zeros((32, 4), np.float32)[:, ::2]},
    {"table": np.frombuffer(bytes(129), np.uint8)[1:].view(np.float32).reshape(16, 2)},
    {"table": None},
    {"table": b"abcd"},
    {"logs": np.zeros(5, ">f8")},
    {"means": np.zeros(0), "inverses": np.zeros(0), "first": np.zeros((2, 1))},
    {"inverses": np.zeros(3)},
    {"first": np.zeros((3, 2))},
    {"second": np.zeros((N_CURVES + 1, 0))},
    {"second": np.zeros((3, 4, 1))},
]


@pytest.mark.parametrize("wrong", WRONG_HEADS)
def test_a_head_refuses_arrays_that_do_not_fit(compiled, wrong):
    with pytest.raises((TypeError, ValueError, BufferError)):
        compiled.Head(*{**HEAD, **wrong}.values(), 3.0)


def features(buckets, counts, numeric=(0.0,) * N_NUMERIC):
    return buckets, counts, numeric


WRONG_FEATURES = [
    features(np.array([16]), np.array([1])),
    features(np.array([-1]), np.array([1])),
    features(np.array([0]), np.array([5])),
    features(np.array([0]), np.array([-1])),
    features(np.array([0, 1]), np.array([1])),
    features(np.array([0]), np.array([1], np.uint16)),
    features(np.array([0.0]), np.array([1.0])),
    features(np.array([[0]]), np.array([[1]])),
    features("0", "1"),
    features(np.array([0]), np.array([1]), (0.0,)),
    features(np.array([0]), np.array([1]), [0.0] * N_NUMERIC),
    features(np.array([0]), np.array([1]), ("x",) * N_NUMERIC),
    (),
]


@pytest.mark.parametrize("wrong", WRONG_FEATURES)
def test_a_head_refuses_features_out_of_range(compiled, wrong):
    head = compiled.Head(*HEAD.values(), 3.0)

    assert [0.0] == head.outputs(np.array([15]), np.array([1]), (0.0,) * N_NUMERIC)
    with pytest.raises((TypeError, ValueError)):
        head.outputs(*wrong)


def test_a_guesser_refuses_what_does_not_fit(compiled):
    evidence, prior, effects = np.zeros((4, 3), np.float32), np.zeros(3), np.ones((3, 2))
    guesser = compiled.Guesser(evidence, prior, effects, 2)

    assert [1.0, 1.0] == pytest.approx(guesser.effects(np.arange(16)))
    for buckets in (np.array([16]), np.array([-1]), np.array([0.5]), None, np.zeros((1, 1), np.intp)):
        with pytest.raises((TypeError, ValueError)):
            guesser.effects(buckets)
    for wrong in ((evidence, prior[:2], effects, 2), (evidence, prior, effects[:2], 2), (evidence, prior, effects, -1)):
        with pytest.raises(ValueError, match="fit"):
            compiled.Guesser(*wrong)
    with pytest.raises(TypeError):
        compiled.Guesser(prior)


def test_a_reader_refuses_what_is_no_text(compiled):
    reader = compiled.Reader(words._ASCII.kinds, words._ASCII.values)
    for wrong in ((b"a", 1), ("a", "1"), ("a",), ("a", 1, 2), ("a", -1), ("a", 2**70), ("é", 1)):
        with pytest.raises((TypeError, ValueError, OverflowError)):
            reader.read(*wrong)
    with pytest.raises(ValueError, match="lengths"):
        compiled.Reader(words._ASCII.kinds, words._ASCII.values[1:])


SANITIZED = """
    import importlib.util, random, sys
    import numpy as np
    sys.path.insert(0, sys.argv[2])
    from llmtier.score import words
    spec = importlib.util.spec_from_file_location("llmtier.score._native", sys.argv[1])
    compiled = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(compiled)
    draw = random.Random(0)
    reader = compiled.Reader(*words.wide_tables())
    evidence = np.ones((4096, 11), np.float32)
    guesser = compiled.Guesser(evidence, np.zeros(11), np.ones((11, 3)), 4)
    hidden = np.ones((13, 67)), np.ones((67, 3))
    head = compiled.Head(np.ones((65536, 4), np.float32), np.ones(100_000), np.zeros(11), np.ones(11), *hidden, 3.0)
    sizes = [0, 1, 2, 1022, 1023, 1024, 4001, 40_000, *(draw.randrange(5_000) for _ in range(200))]
    for size in sizes:
        top = draw.choice((128, 0x250, 0x10000, 0x110000))
        text = "".join(chr(draw.randrange(top)) for _ in range(size))
        buckets, counts, numeric = reader.read(text, size)
        buckets, counts = np.frombuffer(buckets, np.intp), np.frombuffer(counts, np.intp)
        head.outputs(buckets, counts, numeric)
        guesser.effects(buckets)
    guesser.effects(np.arange(65536))
    print("clean")
"""


def test_sanitizers_find_nothing(tmp_path):
    """Address and undefined behaviour, over texts of many lengths and scripts."""
    compiler = os.environ.get("CC", "gcc")
    try:
        asked = subprocess.run([compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
        library = build(tmp_path, "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")
    except (OSError, subprocess.CalledProcessError) as exc:
        pytest.skip(f"no sanitizers: {exc}")
    runtime = asked.stdout.strip()
    if not Path(runtime).is_file():
        pytest.skip("no sanitizers")
    env = {**os.environ, "LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0", "LLMTIER_PURE": "1"}
    command = [sys.executable, "-c", textwrap.dedent(SANITIZED), str(library), str(ROOT)]
    found = subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    assert (0, "clean\n") == (found.returncode, found.stdout), found.stderr[-3_000:]
