"""The traffic log, and reading it back as prompts."""

import json
from dataclasses import astuple, fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtier.core.errors import DiskError, InputFileError
from llmtier.core.prompt import Message, Prompt
from llmtier.store.parquet import write_rows
from llmtier.store.prompts import read_prompts
from llmtier.store.traffic import TRAFFIC_COLUMNS, Rotation, TrafficRow, TrafficWriter, read_traffic

TEXTS = st.text(max_size=8)
NUMBERS = st.none() | st.floats(0, 1e6)
COUNTS = st.none() | st.integers(0, 10**6)
ROWS = st.lists(
    st.builds(
        TrafficRow,
        request_id=TEXTS,
        received_at=TEXTS,
        tier=st.none() | TEXTS,
        reason=TEXTS,
        alias=TEXTS,
        domain=st.none() | TEXTS,
        predicted_accuracy=NUMBERS,
        need_accuracy=NUMBERS,
        n_in_flight=st.integers(0, 100),
        ttft_s=NUMBERS,
        e2el_s=NUMBERS,
        n_input_tokens=COUNTS,
        n_output_tokens=COUNTS,
        usd=NUMBERS,
        status=st.integers(100, 599),
        stream=st.booleans(),
        misses=TEXTS,
        prompt_sha256=TEXTS,
        messages_json=st.none() | TEXTS,
        is_met=st.none() | st.booleans(),
        probabilities=st.none() | st.dictionaries(TEXTS, st.floats(0, 1), max_size=3),
        propensity=NUMBERS,
        max_tokens=COUNTS,
    ),
    min_size=1,
    max_size=7,
)


def make_row(name="r1", *, text=None, at="2026-01-01T00:00:00+00:00"):
    messages = None if text is None else json.dumps([{"role": "user", "content": text}])
    return TrafficRow(
        request_id=name,
        received_at=at,
        tier="a",
        reason="cheapest_feasible",
        alias="auto",
        domain="math",
        predicted_accuracy=0.5,
        need_accuracy=None,
        n_in_flight=0,
        ttft_s=0.1,
        e2el_s=0.2,
        n_input_tokens=3,
        n_output_tokens=4,
        usd=1e-6,
        status=200,
        stream=True,
        misses="",
        prompt_sha256="ab" * 32,
        messages_json=messages,
    )


def write_log(folder, *rows):
    writer = TrafficWriter(folder)
    for row in rows:
        writer.append(row)
    writer.close()
    return folder


def test_written_rows_read_back_in_order_over_several_files(tmp_path_factory):
    @settings(max_examples=12, deadline=None)
    @given(ROWS, st.integers(1, 4))
    def check(rows, rotate_rows):
        folder = tmp_path_factory.mktemp("traffic")
        writer = TrafficWriter(folder, rotation=Rotation(rows=rotate_rows))
        for row in rows:
            writer.append(row)
        writer.close()

        assert rows == read_traffic(folder)

    check()


def test_each_flush_makes_one_numbered_file_and_an_empty_one_none(tmp_path):
    writer = TrafficWriter(tmp_path / "log", rotation=Rotation(rows=2))
    empty = writer.flush()
    for name in "abc":
        writer.append(make_row(name))
    last = writer.flush()
    TrafficWriter(tmp_path / "log").close()

    names = sorted(path.name for path in (tmp_path / "log").iterdir())
    assert empty is None
    assert ["traffic-000001-", "traffic-000002-"] == [name[:15] for name in names]
    assert ["c"] == [row.request_id for row in read_traffic(last)]


def test_later_writer_goes_on_counting(tmp_path):
    write_log(tmp_path, make_row("a"))
    write_log(tmp_path, make_row("b"))

    assert ["a", "b"] == [row.request_id for row in read_traffic(tmp_path)]


def test_full_disk_keeps_rows_for_the_next_try(tmp_path, fill_disk, monkeypatch):
    writer = TrafficWriter(tmp_path, rotation=Rotation(rows=2))
    writer.append(make_row("a"))
    with monkeypatch.context():
        fill_disk("write")
        with pytest.raises(DiskError, match="No space left"):
            writer.append(make_row("b"))
        left = list(tmp_path.iterdir())
    monkeypatch.undo()
    writer.append(make_row("c"))
    writer.close()

    assert [] == left
    assert ["a", "b", "c"] == [row.request_id for row in read_traffic(tmp_path)]
    assert 0 == writer.n_dropped


def test_long_full_disk_drops_the_oldest_and_counts_them(tmp_path, fill_disk, monkeypatch):
    writer = TrafficWriter(tmp_path, rotation=Rotation(rows=1))
    fill_disk("replace")
    for number in range(6):
        with pytest.raises(DiskError):
            writer.append(make_row(str(number)))
    monkeypatch.undo()
    writer.close()

    assert ["2", "3", "4", "5"] == [row.request_id for row in read_traffic(tmp_path)]
    assert 2 == writer.n_dropped


@pytest.mark.parametrize("change", [{"rows": 0}, {"age_s": 0.0}, {"size_bytes": 0}, {"keep_bytes": 0}])
def test_rotation_without_room_is_refused(change):
    with pytest.raises(ValueError, match="must be >"):
        Rotation(**change)


class Clock:
    """A clock that is set by hand."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


def test_a_row_waits_no_longer_than_a_file_may_take(tmp_path):
    clock = Clock()
    writer = TrafficWriter(tmp_path, rotation=Rotation(age_s=300.0), clock=clock)
    clock.now_s = 1000.0  # a quiet gateway is not late
    writer.append(make_row("a"))
    for clock.now_s in (1150.0, 1299.0):
        writer.flush_if_due()
    early = list(tmp_path.iterdir())
    clock.now_s = 1300.0
    writer.flush_if_due()

    assert [] == early
    assert ["a"] == [row.request_id for row in read_traffic(tmp_path)]


def test_a_file_is_full_when_its_rows_are_large(tmp_path):
    writer = TrafficWriter(tmp_path, rotation=Rotation(size_bytes=1_000_000))
    for number in range(512):
        writer.append(make_row(str(number), text="x" * 4000))
    sizes = [len(read_traffic(path)) for path in sorted(tmp_path.iterdir())]

    assert [256, 256] == sizes


def test_the_oldest_files_go_when_the_log_grows_beyond_its_size(tmp_path):
    one = len(next(write_log(tmp_path / "one", make_row("0")).iterdir()).read_bytes())
    writer = TrafficWriter(tmp_path / "log", rotation=Rotation(rows=1, keep_bytes=3 * one + one // 2))
    for number in range(7):
        writer.append(make_row(str(number)))

    assert ["4", "5", "6"] == [row.request_id for row in read_traffic(tmp_path / "log")]
    assert 4 == writer.n_files_removed


def test_the_newest_file_stays_however_small_the_log_may_be(tmp_path):
    writer = TrafficWriter(tmp_path, rotation=Rotation(rows=1, keep_bytes=1))
    for name in "ab":
        writer.append(make_row(name))

    assert ["b"] == [row.request_id for row in read_traffic(tmp_path)]


def test_the_log_is_its_owners_alone(tmp_path):
    folder = tmp_path / "log"
    writer = TrafficWriter(folder)
    writer.open()
    writer.append(make_row("a", text="secret"))
    [mark] = folder.iterdir()
    modes = [folder.stat().st_mode & 0o777, mark.stat().st_mode & 0o777]
    writer.close()

    assert [0o700, 0o600] == modes
    assert [0o600] == [path.stat().st_mode & 0o777 for path in folder.iterdir()]


def test_writers_in_one_folder_take_no_file_from_each_other(tmp_path):
    writers = [TrafficWriter(tmp_path, rotation=Rotation(rows=1)) for _ in range(3)]
    for writer in writers:
        writer.open()
    for number in range(4):
        for place, writer in enumerate(writers):
            writer.append(make_row(f"{number}{place}"))
    n_lost = [TrafficWriter(tmp_path).open() for _ in range(2)]
    for writer in writers:
        writer.close()

    assert 12 == len({row.request_id for row in read_traffic(tmp_path)})
    assert [0, 0] == n_lost


def test_rows_that_no_column_holds_are_dropped_alone(tmp_path):
    writer = TrafficWriter(tmp_path)
    rows = [make_row("a"), replace(make_row("b"), status=None), replace(make_row("c"), status="many"), make_row("d")]
    for row in rows:
        writer.append(row)
    writer.close()

    assert ["a", "d"] == [row.request_id for row in read_traffic(tmp_path)]
    assert 2 == writer.n_dropped


def test_what_files_cannot_hold_is_made_such_that_they_can(tmp_path):
    half = replace(make_row("a"), alias="half \ud83d pair", ttft_s=float("nan"))
    [row] = read_traffic(write_log(tmp_path, half))

    assert ("half \ufffd pair", None) == (row.alias, row.ttft_s)


def test_a_long_full_disk_drops_no_more_than_it_must(tmp_path, fill_disk, monkeypatch):
    """Rows gather in batches; the oldest go, be they a whole batch or the beginning of one."""
    writer = TrafficWriter(tmp_path, rotation=Rotation(rows=50))
    fill_disk("write")
    for start in range(0, 490, 70):
        with pytest.raises(DiskError):
            writer.extend([astuple(make_row(str(number))) for number in range(start, start + 70)])
    monkeypatch.undo()
    writer.close()
    kept = [int(row.request_id) for row in read_traffic(tmp_path)]

    assert list(range(290, 490)) == kept
    assert 290 == writer.n_dropped


def test_rows_that_the_disk_refuses_at_the_end_are_counted(tmp_path, fill_disk):
    writer = TrafficWriter(tmp_path)
    writer.append(make_row("a"))
    fill_disk("write")
    with pytest.raises(DiskError):
        writer.close()

    assert 1 == writer.n_dropped


def test_columns_are_the_fields_in_order():
    assert [field.name for field in fields(TrafficRow)] == [column.name for column in TRAFFIC_COLUMNS]


def test_a_file_of_version_1_reads_with_nulls(tmp_path):
    older = TRAFFIC_COLUMNS[: [column.name for column in TRAFFIC_COLUMNS].index("key_sha256") + 1]
    row = make_row("a", text="Hi")
    path = tmp_path / "traffic-000001-00000000.parquet"
    write_rows(path, [{column.name: getattr(row, column.name) for column in older}], older, artifact="traffic")

    assert [row] == read_traffic(tmp_path)
    assert "a" == read_prompts(tmp_path)[0].id


def test_folder_without_a_log_is_an_input_error(tmp_path):
    with pytest.raises(InputFileError, match="holds no traffic log"):
        read_traffic(tmp_path)


def test_log_with_texts_reads_as_prompts_with_arrivals(tmp_path):
    rows = [
        make_row("b", text="Ho", at="2026-01-01T00:00:01.5+00:00"),
        make_row("a", text="Hi"),
        make_row("silent"),
    ]
    folder = write_log(tmp_path, *rows)
    expected = [
        Prompt(id="b", messages=(Message(role="user", content="Ho"),), domain="math", arrival_s=1.5),
        Prompt(id="a", messages=(Message(role="user", content="Hi"),), domain="math", arrival_s=0.0),
    ]

    assert expected == read_prompts(folder)
    assert expected == read_prompts(next(folder.iterdir()))


def test_log_without_texts_names_the_setting(tmp_path):
    with pytest.raises(InputFileError, match=r"gateway\.log_text: true"):
        read_prompts(write_log(tmp_path, make_row()))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"messages_json": "["}, "row 1: cannot be read as a log's row"),
        ({"messages_json": "[]"}, "row 1: messages: "),
        ({"messages_json": "[1]", "received_at": "noon"}, "row 1: cannot be read as a log's row"),
    ],
)
def test_malformed_row_of_a_log_is_named(tmp_path, change, expected):
    with pytest.raises(InputFileError, match=rf"\.parquet: {expected}"):
        read_prompts(write_log(tmp_path, replace(make_row(text="Hi"), **change)))


def test_same_request_twice_is_refused_naming_both_files(tmp_path):
    for _ in range(2):
        write_log(tmp_path, make_row("r1", text="Hi"))

    with pytest.raises(InputFileError, match=r"id 'r1' is already that of traffic-000001-.*\.parquet:1"):
        read_prompts(tmp_path)


def test_empty_log_file_is_an_input_error(tmp_path):
    write_rows(tmp_path / "traffic-1-a.parquet", [], TRAFFIC_COLUMNS, artifact="traffic")

    with pytest.raises(InputFileError, match="holds no rows"):
        read_prompts(tmp_path)
