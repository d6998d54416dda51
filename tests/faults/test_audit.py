"""The stored audit speaks of the releases that are pinned, and calls nothing clean that was not asked about."""

import json

import audit
import pytest

# Vulnerabilities that do not reach us: (package, identifier) and why.
ACCEPTED: dict[tuple[str, str], str] = {}


def test_the_stored_audit_covers_what_is_pinned():
    packages = json.loads(audit.STORED.read_text())["packages"]
    assert {name: entry["version"] for name, entry in packages.items()} == audit.pins(), "run: make audit"
    assert len(packages) > 100
    for name, entry in packages.items():
        assert (entry["asked"] is None) == (entry["verdict"] == audit.UNKNOWN), name
        if entry["verdict"] not in (audit.CLEAN, audit.UNKNOWN):
            open_ones = [v for v in entry["verdict"].split(", ") if (name, v) not in ACCEPTED]
            assert not open_ones, f"{name} {entry['version']}: {open_ones}"


def test_every_pinned_package_was_asked_about():
    """Skipped, and so named in the summary, as long as no machine with PyPI's advisories has run ``make audit``."""
    packages = json.loads(audit.STORED.read_text())["packages"]
    unknown = [name for name, entry in packages.items() if entry["verdict"] == audit.UNKNOWN]
    if unknown:
        pytest.skip(
            f"NOT AUDITED: {len(unknown)} of {len(packages)} pinned packages were never looked up in PyPI's "
            "advisories. On a machine that reaches pypi.org run: make audit, and commit tests/audit.json"
        )
    assert all(entry["asked"] for entry in packages.values())


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ('{"dependencies": [{"name": "a", "skip_reason": "not found"}]}', audit.UNKNOWN),
        ('{"dependencies": [{"name": "a", "version": "1", "vulns": []}]}', audit.CLEAN),
        ('{"dependencies": [{"name": "A", "version": "1", "vulns": [{"id": "X-1"}, {"id": "X-2"}]}]}', "X-1, X-2"),
        ("", audit.UNKNOWN),
    ],
)
def test_only_an_answer_counts(monkeypatch, answer, verdict):
    class Done:
        stdout, stderr = answer, "no route"

    monkeypatch.setattr(audit.subprocess, "run", lambda *_, **__: Done)
    assert audit.ask({"a": "1"}) == {"a": verdict}


def test_silence_is_never_called_clean(tmp_path, monkeypatch, capsys):
    """Where the release with famous vulnerabilities looks clean, nothing is."""
    monkeypatch.setattr(audit, "STORED", tmp_path / "audit.json")
    monkeypatch.setattr(audit, "pins", lambda: {"a": "1"})
    monkeypatch.setattr(audit, "ask", lambda packages: dict.fromkeys(packages, audit.CLEAN))
    assert audit.main() == 2
    assert "OFFLINE" in capsys.readouterr().out
    assert json.loads(audit.STORED.read_text())["packages"]["a"]["verdict"] == audit.UNKNOWN
