"""gpt/waiting.py: shown when it lasts, gone when it is over, from one process alone."""

import threading
import time

import pytest

from gpt import weights
from gpt.waiting import waiting


def test_what_is_quick_shows_nothing(capsys):
    with waiting("a moment", delay=5):
        pass
    assert capsys.readouterr() == ("", "")


def test_what_lasts_is_named_with_its_seconds_and_then_removed(capsys):
    with waiting("writing much", delay=0.05):
        time.sleep(1.3)
    said = capsys.readouterr().err
    assert "writing much 00:00" in said and "writing much 00:01" in said
    assert said.split("\r")[-1].strip() == "" and said.endswith("\r")


def test_no_thread_is_left_and_an_exception_passes():
    with pytest.raises(KeyError), waiting("in vain", delay=0.01):
        time.sleep(0.05)
        raise KeyError
    assert not [thread for thread in threading.enumerate() if thread.name == "waiting"]


def test_the_other_processes_are_silent(monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("RANK", "1")
    with waiting("the same", delay=0.01):
        time.sleep(0.05)
    assert capsys.readouterr() == ("", "")


def test_models_are_read_and_written_with_a_word(make_gpt, tokenizer, tmp_path, monkeypatch, capsys):
    """Slowed down, since a toy is quick."""
    for name in ("save_file", "load_file"):
        true = getattr(weights, name)
        monkeypatch.setattr(weights, name, lambda *words, true=true, **more: time.sleep(1.2) or true(*words, **more))
    model = make_gpt(vocab_size=tokenizer.vocab_size)
    weights.save_gpt(tmp_path / "model", model, tokenizer)
    again = weights.load_gpt(tmp_path / "model")
    said = capsys.readouterr().err
    assert "writing the model 00:01" in said and "reading the model 00:01" in said
    assert weights.fingerprint(again) == weights.fingerprint(model)
