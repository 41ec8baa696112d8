"""A replay finds everything again that it wrote, through retries, drops and restarts, and sees what isn't there."""

from __future__ import annotations

import argparse
import gzip
import io
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from app.cli.replay import add_parser
from app.cli.replay_client import retry_after
from app.cli.replay_report import Bar, Percentiles

CHECKOUT = Path(__file__).parents[2]
PROGRAMME = """
import argparse, signal, sys
from app.cli.replay import add_parser
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background of a shell
parser = argparse.ArgumentParser(prog="confide")
add_parser(parser.add_subparsers())
args = parser.parse_args()
sys.exit(args.run(args))
"""
SECRET = "cfd_dev_eu_0123456789_secret"


def confide(*arguments: object) -> int:
    """What the command line does with the arguments after the program's name."""
    parser = argparse.ArgumentParser(prog="confide")
    add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args([str(argument) for argument in arguments])
    return args.run(args)


@pytest.fixture
def play(capsys):
    """Runs ``confide replay … --json``: exit status and report."""

    def run(*arguments: object) -> tuple[int, dict]:
        status = confide("replay", *arguments, "--json")
        out, err = capsys.readouterr()
        assert SECRET not in out + err
        return status, json.loads(out) if out else {"stderr": err}

    return run


# ---------------------------------------------------------------- the main job


def test_everything_comes_back(served, service, recorded, play):
    dialogues = [json.loads(line) for line in recorded.read_bytes().splitlines()]
    status, report = play(recorded, "--concurrency", 4)
    users = sum(turn["speaker"] == "USER" for one in dialogues for turn in one["turns"])
    assert (status, report["outcome"]) == (0, "ok")
    assert (report["dialogues"], report["exchanges"]) == (len(dialogues), users)
    assert report["phases"]["write"]["done"] == users
    assert report["phases"]["read"]["done"] == len(dialogues)
    assert report["latency_ms"]["commit"]["count"] == report["latency_ms"]["load"]["count"] == users
    assert service.by_external.keys() == {"replay:" + one["dialogue_id"] for one in dialogues}
    for one in dialogues:
        session = service.sessions[service.by_external["replay:" + one["dialogue_id"]]]
        said = [(turn["speaker"], turn["utterance"]) for turn in one["turns"]]
        stored = [msgspec.json.decode(turn.json) for turn in session.turns]
        assert [(turn["speaker"], turn["utterance"]) for turn in stored] == said
        last = [turn["state"] for turn in one["turns"] if turn["state"] is not None][-1]
        assert {key: msgspec.json.decode(kept.json) for (_, key), kept in session.objects.items()} == last


def test_one_load_and_one_commit_for_each_user_turn(served, service, made, play):
    assert play(made, "--write-only")[0] == 0
    assert (service.calls["/v1/load"], service.calls["/v1/commit"], service.calls["turns"]) == (36, 36, 0)
    assert len(set(service.commit_keys)) == 36


@pytest.mark.parametrize("packed", [False, True])
def test_standard_input(served, made, play, monkeypatch, packed):
    content = gzip.compress(made.read_bytes()) if packed else made.read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(content))))
    status, report = play("-", "--limit", 3, "--prefix", "other/")
    assert (status, report["dialogues"], report["exchanges"]) == (0, 3, 6)
    assert set(served.service.by_external) == {"other/made_0", "other/made_1", "other/made_2"}


def test_an_opening_by_the_system_and_turns_without_state(served, service, lines_of, tmp_path, play):
    state = {"S": {"active_intent": "I", "requested_slots": [], "slot_values": {"a": ["b"]}}}
    turns = [
        {"speaker": "SYSTEM", "utterance": "welcome", "state": None},
        {"speaker": "USER", "utterance": "one", "state": state},
        {"speaker": "USER", "utterance": "two", "state": None},
        {"speaker": "SYSTEM", "utterance": "three"},
        {"speaker": "SYSTEM", "utterance": "four"},
    ]
    file = lines_of(tmp_path / "odd.jsonl", [{"dialogue_id": "odd", "turns": turns}])
    assert play(file)[0] == 0
    (session,) = service.sessions.values()
    assert [turn.commit for turn in session.turns] == [1, 1, 2, 2, 2]
    assert list(session.objects) == [("state", "S")]


def test_text_report(served, made, capsys):
    assert confide("replay", made) == 0
    out, err = capsys.readouterr()
    assert "8 dialogues, 36 exchanges" in out
    assert "retries: none" in out
    assert out.endswith("everything compared is equal\n")
    assert "write: 36 of 36 exchanges" in err
    assert "read: 8 of 8 dialogues" in err


# ---------------------------------------------------------------- interruptions


@pytest.mark.parametrize("remember", [False, True])
def test_restart_between_writing_and_reading(served, made, play, tmp_path, remember):
    state = ["--state", tmp_path / "state.json"] if remember else []
    assert play(made, "--write-only", *state)[0] == 0
    served.stop()
    served.start()
    commits = served.service.calls["/v1/commit"]
    status, report = play(made, "--read-only", *state)
    assert (status, report["phases"]["read"]["done"], list(report["phases"])) == (0, 8, ["read"])
    assert served.service.calls["/v1/commit"] == commits
    if remember:
        assert (tmp_path / "state.json").stat().st_mode & 0o777 == 0o600


def test_restart_while_writing(served, service, long, play):

    def restart() -> None:
        while service.calls["/v1/commit"] < 50:
            time.sleep(0.005)
        served.stop()
        time.sleep(0.5)
        served.start()

    thread = threading.Thread(target=restart)
    thread.start()
    status, report = play(long, "--concurrency", 6)
    thread.join()
    assert (status, report["phases"]["write"]["done"]) == (0, 600)
    assert report["retries"]["connection"] >= 1


def test_a_run_that_was_broken_off_goes_on(served, service, made, play):
    service.faults["/v1/commit"].extend([None] * 10 + [403])
    status, report = play(made, "--concurrency", 1)
    assert (status, report["outcome"]) == (3, "failed")
    assert "POST /v1/commit answered 403 (unavailable)" in report["error"]
    status, report = play(made, "--concurrency", 3)
    assert status == 0
    assert (report["found_before"], report["phases"]["write"]["done"]) == (10, 26)


def test_an_interrupted_run_goes_on(served, service, long, play):
    service.seconds = 0.1  # so that it isn't done before it is interrupted
    running = subprocess.Popen(
        [sys.executable, "-c", PROGRAMME, "replay", long], stderr=subprocess.PIPE, text=True, cwd=CHECKOUT
    )
    while service.calls["/v1/commit"] < 20:
        assert running.poll() is None
        time.sleep(0.005)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=120)
    assert (running.returncode, err) == (130, "interrupted; the same command goes on from here\n")
    service.seconds = 0.0
    status, report = play(long)
    assert (status, report["found_before"] + report["phases"]["write"]["done"]) == (0, 600)
    assert report["found_before"] >= 20


def test_busy_service_is_asked_again_with_the_same_key(served, service, made, play):
    service.retry_after = b"1"
    service.faults["/v1/commit"].extend([None, 503, 503, None, 429, None])
    service.faults["/v1/load"].extend([None, 503])
    started = time.monotonic()
    status, report = play(made, "--concurrency", 1)
    assert (status, report["retries"]) == (0, {"503": 3, "429": 1})
    assert time.monotonic() - started >= 4
    assert service.commit_keys[1] == service.commit_keys[2] == service.commit_keys[3]
    assert (len(service.commit_keys), len(set(service.commit_keys))) == (39, 36)


@pytest.mark.parametrize("fault", ["cut", "late-cut", ("late", 503)])
def test_lost_answers_are_applied_once(served, service, made, play, fault):
    service.faults["/v1/commit"].extend([fault, None, fault, fault, None])
    status, report = play(made)
    assert (status, sum(report["retries"].values())) == (0, 3)
    assert sum(session.commit for session in service.sessions.values()) == 36


# ---------------------------------------------------------------- what isn't there


def lose_a_turn(session) -> None:
    del session.turns[0]


def change_a_turn(session) -> None:
    session.turns[1] = msgspec.structs.replace(session.turns[1], json=msgspec.Raw(b'{"speaker":"USER"}'))


def swap_turns(session) -> None:
    session.turns[:2] = [
        msgspec.structs.replace(session.turns[1], number=1),
        msgspec.structs.replace(session.turns[0], number=2),
    ]


def add_a_turn(session) -> None:
    session.turns.append(msgspec.structs.replace(session.turns[-1], number=len(session.turns) + 1))


def change_an_object(session) -> None:
    name, kept = next(iter(session.objects.items()))
    session.objects[name] = msgspec.structs.replace(
        kept, json=msgspec.Raw(bytes(kept.json).replace(b"Intent", b"intent"))
    )


def lose_an_object(session) -> None:
    session.objects.popitem()


def add_an_object(session) -> None:
    kept = next(iter(session.objects.values()))
    session.objects["other", "key"] = msgspec.structs.replace(kept, collection="other", key="key")


def change_a_type(session) -> None:
    session.turns[0] = msgspec.structs.replace(session.turns[0], content_type="text/plain")


def count_a_commit(session) -> None:
    session.commit += 1


DAMAGES = [
    lose_a_turn,
    change_a_turn,
    swap_turns,
    add_a_turn,
    change_an_object,
    lose_an_object,
    add_an_object,
    change_a_type,
    count_a_commit,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_by_dialogue_and_not_shown(served, service, made, capsys, damage):
    assert confide("replay", made, "--write-only") == 0
    damage(service.sessions[service.by_external["replay:made_4"]])
    assert confide("replay", made, "--read-only") == 1
    out, err = capsys.readouterr()
    assert "mismatch in dialogue 'made_4'" in out
    assert out.count("mismatch in") == 1
    assert "Frage" not in out + err
    assert "ntent" not in out + err


def test_a_lost_session(served, service, made, play):
    assert play(made, "--write-only")[0] == 0
    del service.by_external["replay:made_2"]
    status, report = play(made, "--read-only")
    assert (status, report["mismatches"]) == (1, [{"dialogue_id": "made_2", "reason": "the session is absent"}])


def test_a_session_made_anew_is_seen_with_the_state_file(served, service, made, play, tmp_path):
    state = tmp_path / "state.json"
    assert play(made, "--write-only", "--state", state)[0] == 0
    service.sessions.clear()
    service.by_external.clear()
    assert play(made, "--write-only")[0] == 0
    assert play(made, "--read-only")[0] == 0
    status, report = play(made, "--read-only", "--state", state)
    assert (status, len(report["mismatches"])) == (1, 8)


def test_a_stale_load_is_seen_before_the_next_commit(served, service, made, play):
    def stale(answer):
        if answer.session.commit == 3:
            answer.session.context = answer.session.context[:-1]
        return answer

    service.lie = stale
    status, report = play(made)
    assert status == 1
    # A dialogue of three exchanges ends with the third commit: there it's the reading back that sees it.
    assert [one["dialogue_id"] for one in report["mismatches"]] == [f"made_{number}" for number in range(2, 8)]
    assert {one["reason"] for one in report["mismatches"]} == {"other context objects are stored than were committed"}
    assert max(session.commit for session in service.sessions.values()) == 3


def test_another_writer_ends_its_dialogue_only(served, service, made, play):
    service.faults["/v1/commit"].extend([None, 412])
    status, report = play(made, "--concurrency", 1)
    assert (status, len(report["mismatches"])) == (1, 1)
    assert "has moved" in report["mismatches"][0]["reason"]
    assert report["phases"]["read"]["done"] == 7


def test_a_mismatch_outranks_a_failure(served, service, made, play):
    service.faults["/v1/commit"].extend([None, 412, None, 403])
    status, report = play(made, "--concurrency", 1)
    assert (status, report["outcome"]) == (1, "mismatch")
    assert "403" in report["error"]


# ---------------------------------------------------------------- failures and wrong usage


def test_no_service(served, made, play):
    served.stop()
    started = time.monotonic()
    status, report = play(made, "--retry-for", 1)
    served.start()
    assert (status, report["outcome"]) == (3, "failed")
    assert "no answer for 1 s" in report["error"]
    assert time.monotonic() - started < 40  # it would go on for a minute by itself


def test_a_service_that_stays_busy(served, service, made, play):
    service.retry_after = b"3600"
    service.faults["/v1/load"].extend([503])
    status, report = play(made, "--concurrency", 1)
    assert (status, report["retries"]) == (3, {})
    assert "a pause of 3600 s asked for" in report["error"]


def test_a_wrong_key(served, made, play, monkeypatch):
    monkeypatch.setenv("CONFIDE_RUNTIME_KEY", "cfd_dev_eu_other")
    status, report = play(made)
    assert (status, report["error"]) == (3, "POST /v1/load answered 401 (unauthenticated): What to do.")


@pytest.mark.parametrize("answer", [b"<html>", b"{}", b'{"session":{"id":"x"}}', b"\xff"])
def test_an_answer_of_another_shape(served, service, made, play, answer):
    service.faults["/v1/load"].append(answer)
    status, report = play(made)
    assert (status, report["error"]) == (3, "POST /v1/load answered no LoadOut")


def test_key_file(served, made, play, monkeypatch, tmp_path):
    monkeypatch.delenv("CONFIDE_RUNTIME_KEY")
    status, report = play(made)
    assert (status, "CONFIDE_RUNTIME_KEY" in report["stderr"]) == (2, True)
    (tmp_path / "key").write_text(SECRET + "\n")
    assert play(made, "--key-file", tmp_path / "key")[0] == 0


@pytest.mark.parametrize(
    "url", ["", "localhost:8080", "ftp://host", "http://", "http://h:x", "http://u:p@h", "http://h?q"]
)
def test_a_bad_address(made, play, monkeypatch, url):
    monkeypatch.setenv("CONFIDE_RUNTIME_KEY", SECRET)
    assert play(made, "--url", url)[0] == 2


@pytest.mark.parametrize("key", [" ", "two words", "zwölf", "a\nb"])
def test_a_bad_key(made, play, monkeypatch, key):
    monkeypatch.setenv("CONFIDE_RUNTIME_KEY", key)
    assert play(made, "--url", "http://127.0.0.1:1")[0] == 2


GOOD = b'{"dialogue_id":"x","turns":[{"speaker":"USER","utterance":"geheim"}]}\n'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no dialogue"),
        (b"\n\n", "holds no dialogue"),
        (b"geheim", "line 1 is not"),
        (GOOD + b"\n" + GOOD.replace(b"USER", b"BOT"), "line 3 is not"),
        (GOOD + GOOD, "line 2: this dialogue_id"),
        (GOOD.replace(b"}]}", b',"geheim":1}]}'), "line 1 is not"),
        (b'{"dialogue_id":"x","turns":[]}', "no user turn"),
        (b'{"dialogue_id":"\xff","turns":[]}', "line 1 is not"),
        (gzip.compress(GOOD, mtime=0)[:-12], "can't be read"),
        (gzip.compress(GOOD, mtime=0)[:20] + b"\0" * 40, "can't be read"),
    ],
)
def test_a_bad_file(tmp_path, play, monkeypatch, content, said):
    monkeypatch.setenv("CONFIDE_RUNTIME_KEY", SECRET)
    (tmp_path / "in").write_bytes(content)
    status, report = play(tmp_path / "in", "--url", "http://127.0.0.1:1")
    assert status == 2
    assert said in report["stderr"]
    assert "geheim" not in report["stderr"]


def test_no_file(tmp_path, play, monkeypatch):
    monkeypatch.setenv("CONFIDE_RUNTIME_KEY", SECRET)
    status, report = play(tmp_path / "absent", "--url", "http://127.0.0.1:1")
    assert (status, "No such file" in report["stderr"]) == (2, True)


@pytest.mark.parametrize("content", [None, b"[]", b'{"prefix":"other:","sessions":{}}'])
def test_a_bad_state_file(made, play, monkeypatch, tmp_path, content):
    monkeypatch.setenv("CONFIDE_RUNTIME_KEY", SECRET)
    state = tmp_path / "state"
    if content is not None:
        state.write_bytes(content)
    assert play(made, "--url", "http://127.0.0.1:1", "--read-only", "--state", state)[0] == 2


@pytest.mark.parametrize(
    "wrong", [["--concurrency", "0"], ["--limit", "x"], ["--retry-for", "-1"], ["--write-only", "--read-only"]]
)
def test_wrong_arguments(made, wrong):
    with pytest.raises(SystemExit) as exit_:
        confide("replay", made, *wrong)
    assert exit_.value.code == 2


# ---------------------------------------------------------------- parts


def test_percentiles_are_latencies_that_occurred():
    hundred = Percentiles.of([number / 1000 for number in range(100, 0, -1)])
    assert (hundred.count, hundred.p50, hundred.p95, hundred.p99, hundred.max) == (100, 50, 95, 99, 100)
    one = Percentiles.of([0.25])
    assert (one.p50, one.p99, one.max) == (250, 250, 250)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0),
        ("17", 17),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("²", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
    ],
)
def test_retry_after(value, seconds):
    assert retry_after(value) == seconds


def test_bar_on_a_terminal():
    out = io.StringIO()
    bar = Bar(Console(file=out, force_terminal=True, width=100))
    bar.phase("write", "exchanges", 10)
    bar.advance(10)
    bar.note("a note with [brackets]")
    bar.end()
    assert "10/10" in out.getvalue()
    assert "a note with [brackets]" in out.getvalue()


def test_help_names_the_exit_statuses(capsys):
    with pytest.raises(SystemExit):
        confide("replay", "--help")
    assert "exit status: 0 all equal" in capsys.readouterr().out


def test_other_commands_do_not_wait_for_its_imports():
    script = "import sys, app.cli.replay; sys.exit('aiohttp' in sys.modules or 'rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, check=False).returncode == 0
